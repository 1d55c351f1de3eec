"""Speeds that were measured: recorded with the package, and by every run on this machine.

A speed is a share: the seconds that the datasheet's rates allow for a phase over the seconds it
took (on a CPU: 1e9 operations a core and second over those it took, so it may exceed 1). Shares of
one device carry over from one size to another far better than seconds do.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from turbodiffusion.weights.identity import cache_folder

SHIPPED = Path(__file__).resolve().parent.parent / "memory" / "measured.json"
"""Written by ``python benchmarks/check_plan.py --record``."""


@dataclass(frozen=True)
class Rate:
    """One measured phase. ``device`` is the GPU's name, or ``cpu``."""

    device: str
    card: str
    phase: str
    quantised: bool
    attention: str
    share: float
    here: bool = True
    """Measured on this machine or on the same GPU; a CPU's rates are only alike elsewhere."""


STORED = ("device", "card", "phase", "quantised", "attention", "share")


def as_row(rate: Rate) -> dict[str, object]:
    """The stored form."""
    return {name: getattr(rate, name) for name in STORED}


def recorded() -> list[Rate]:
    """Those of this machine first, then the shipped ones."""
    return [*_read(_path()), *(replace(r, here=r.device != "cpu") for r in _read(SHIPPED))]


def lookup(
    rates: list[Rate], device: str, card: str, phase: str, quantised: bool, attention: str
) -> tuple[float, str] | None:
    """The share for a phase and its basis: ``measured`` if it was this model on this device, else
    ``estimate``: another model there, or this one, or any, on another GPU. None if nothing is
    known; a CPU and a GPU say nothing about each other."""

    def of(rate: Rate) -> tuple[object, ...]:
        # Text encoder and autoencoder are the same whatever the layout of the network.
        full = rate.card, rate.quantised, rate.attention
        return full if phase == "denoise" else full[:1]

    wanted = (card, quantised, attention) if phase == "denoise" else (card,)
    alike = [r for r in rates if r.phase == phase and (r.device == "cpu") == (device == "cpu")]
    here = [r for r in alike if r.device == device]
    for r in here:
        if of(r) == wanted:
            return r.share, "measured" if r.here else "estimate"
    for r in (*here, *(r for r in alike if of(r) == wanted), *alike):
        return r.share, "estimate"
    return None


def remember(new: list[Rate]) -> None:
    """Keep the best share of each phase that this machine has reached."""
    best = {_key(r): r for r in _read(_path())}
    for rate in new:
        known = best.get(_key(rate))
        if known is None or rate.share > known.share:
            best[_key(rate)] = rate
    with contextlib.suppress(OSError):  # a read-only home must not stop a run
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        temporary.write_text(json.dumps([as_row(r) for r in best.values()], indent=1), "utf-8")
        os.replace(temporary, path)


def _key(rate: Rate) -> tuple[object, ...]:
    return rate.device, rate.card, rate.phase, rate.quantised, rate.attention


def _path() -> Path:
    return cache_folder() / "rates.json"


def _read(path: Path) -> list[Rate]:
    try:
        rows = json.loads(path.read_text("utf-8"))
        return [Rate(**{k: row[k] for k in STORED}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        return []  # a lost record only costs the basis of an estimate
