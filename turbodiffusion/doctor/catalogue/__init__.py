"""Every failure this project can name, with what it means and what removes it.

The first section, :data:`FAILURES`, is about other software: what drivers, torch, Triton, pip,
the hub and Windows say, by category, one file each. The second, :data:`OWN`, is about the codes
that our own commands print. ``turbodiffusion errors`` shows both, ``doctor --explain`` searches
logs for them, and ``docs/errors.md`` is made from them.
"""

from __future__ import annotations

from difflib import get_close_matches

from turbodiffusion.doctor.catalogue import (
    arch,
    checkpoint,
    compilers,
    disk,
    driver,
    memory,
    model_load,
    network,
    own_media,
    own_networks,
    own_requests,
    own_setup,
    own_training,
    own_weights,
    python_abi,
    toolkit,
    torch_build,
    triton,
    windows,
)
from turbodiffusion.doctor.catalogue.entry import Entry, Fix
from turbodiffusion.errors import UsageError

__all__ = ["CATEGORIES", "FAILURES", "OWN", "OWN_CATEGORIES", "Entry", "Fix", "entry"]

CATEGORIES: dict[str, tuple[Entry, ...]] = {
    "driver": driver.ENTRIES,
    "toolkit": toolkit.ENTRIES,
    "torch build": torch_build.ENTRIES,
    "GPU architecture": arch.ENTRIES,
    "C++ compiler": compilers.ENTRIES,
    "Python": python_abi.ENTRIES,
    "Triton": triton.ENTRIES,
    "memory": memory.ENTRIES,
    "checkpoint file": checkpoint.ENTRIES,
    "network in use": model_load.ENTRIES,
    "hub": network.ENTRIES,
    "Windows": windows.ENTRIES,
    "disk": disk.ENTRIES,
}
"""The first section, by what the failures are about."""

FAILURES: tuple[Entry, ...] = tuple(one for group in CATEGORIES.values() for one in group)
"""Failures of other software."""

OWN_CATEGORIES: dict[str, tuple[Entry, ...]] = {
    "environment and tools": own_setup.ENTRIES,
    "what was asked for": own_requests.ENTRIES,
    "images and videos": own_media.ENTRIES,
    "checkpoints and the hub": own_weights.ENTRIES,
    "networks, the embedded model and benchmarks": own_networks.ENTRIES,
    "training": own_training.ENTRIES,
}
"""The second section, by what the codes are about."""

OWN: tuple[Entry, ...] = tuple(one for group in OWN_CATEGORIES.values() for one in group)
"""Error codes of our own commands."""


def entry(name: str) -> Entry:
    """The entry with this id, in any case; disk-full and DISK-FULL are two.

    Raises:
        UsageError: there is none (``errors-unknown``).
    """
    exact = {one.id: one for one in (*FAILURES, *OWN)}
    known = {one.id.lower(): one for one in (*OWN, *FAILURES)}
    if found := exact.get(name) or known.get(name.lower()):
        return found
    near = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    near += [one for one in known if name.lower() in one and one not in near][: 3 - len(near)]
    likely = ", ".join(known[one].id for one in near)
    raise UsageError(
        "errors-unknown",
        f"There is no entry {name!r} in the error catalogue.",
        f"Perhaps {likely} is meant." if likely else "`turbodiffusion errors` lists all.",
    )
