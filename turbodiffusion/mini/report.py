"""A finished evaluation as plain values, and how it is stored beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turbodiffusion.mini.evaluate import Evaluation
from turbodiffusion.mini.export import read_report, size_name, update_report
from turbodiffusion.mini.metrics.latents import LatentSet
from turbodiffusion.mini.metrics.shares import Paired
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.rows import PAIRS, ROWS, TEACHER, TOLERANCE, Pair
from turbodiffusion.mini.runtime import machine
from turbodiffusion.mini.tally import RowTally
from turbodiffusion.pipeline.identity import WeightIdentity

SHARED = ("vae", "text_encoder", "tokenizer")
"""Parts that every row uses, so that none of them outlives a change of one."""


def as_json(evaluation: Evaluation, real: LatentSet | None, **settings: Any) -> dict[str, Any]:
    """Rows by kind of prompt, rows as a whole, differences, and right or wrong of every video."""
    networks, tallies = evaluation.networks, evaluation.tallies
    done = {name: tally for name, tally in tallies.items() if tally.groups}
    return {
        "model": size_name(networks.size),
        "weights": WeightIdentity(networks.files).as_dict(),
        "machine": machine(networks.device),
        "settings": {**settings, "real_clips": len(real) if real else 0},
        "rows": [group.as_json() for tally in done.values() for group in tally.groups.values()],
        "whole": [tally.as_json(real) for tally in done.values()],
        "differences": differences(done),
        "outcomes": {
            tally.name: {
                f"{split}-{objects}": "".join("01"[bool(s["joint"])] for s in group.scores)
                for (split, objects), group in tally.groups.items()
            }
            for tally in done.values()
        },
    }


def differences(tallies: Mapping[str, RowTally]) -> list[dict[str, Any]]:
    """Joint accuracy of one row minus another's on the same videos, for each split and for all."""
    found = []
    for pair in PAIRS:
        if pair.later not in tallies or pair.earlier not in tallies:
            continue
        later, earlier = tallies[pair.later], tallies[pair.earlier]
        by_split: dict[str, list[tuple[bool, bool]]] = {}
        for key, group in later.groups.items():
            both = zip(group.marks("joint"), earlier.groups[key].marks("joint"), strict=True)
            by_split.setdefault(key[0], []).extend(both)
        if len(by_split) > 1:
            by_split["all"] = [both for part in list(by_split.values()) for both in part]
        found += [_difference(pair, split, Paired.of(marks)) for split, marks in by_split.items()]
    return found


def _difference(pair: Pair, split: str, counts: Paired) -> dict[str, Any]:
    low, high = counts.interval()
    values: dict[str, Any] = {
        "later": pair.later, "earlier": pair.earlier, "split": split, "videos": counts.total,
        "difference": round(counts.difference, 5), "interval95": [round(low, 5), round(high, 5)],
        "only_later": counts.only_later, "only_earlier": counts.only_earlier,
    }  # fmt: skip
    if pair.aim is not None:
        values |= {"aim": pair.aim / 100, "met": 100 * low > pair.aim - TOLERANCE}
    return values


def record(size: SizeRecipe, folder: Path, result: dict[str, Any]) -> Path:
    """Store a measured table in the report file of ``folder``.

    Each row carries the machine it was measured on. Rows of earlier calls stay unless they are
    measured again, or their network or a part that all rows share has other weights now. What
    single videos were judged is not stored.
    """
    old = read_report(size, folder).get("quality", {})
    before, now = old.get("weights", {}), result["weights"]
    changed = {part for part in before.keys() & now.keys() if before[part] != now[part]}
    parts = {row.shown: "dit" if row.part == TEACHER else row.part for row in ROWS}

    def stays(row: dict[str, Any]) -> bool:
        names = [row[key] for key in ("row", "reference", "later", "earlier") if row.get(key)]
        return not changed & {*SHARED, *(parts.get(name, "") for name in names)}

    keys = {
        "rows": ("row", "split", "objects", "network_calls"),
        "whole": ("row", "network_calls"),
        "differences": ("later", "earlier", "split"),
    }
    quality: dict[str, Any] = {"model": result["model"], "weights": {**before, **now}}
    for part, names in keys.items():
        rows = {
            tuple(row[name] for name in names): row
            for row in [
                *filter(stays, old.get(part, ())),
                *({**row, "machine": result["machine"]} for row in result.get(part, ())),
            ]
        }
        quality[part] = sorted(rows.values(), key=_place)
    return update_report(size, folder, quality=quality)


def _place(row: dict[str, Any]) -> int:
    """Where a row stands in the table, so that calls in any order make the same one."""
    names = [one.shown for one in ROWS]
    pairs = [(pair.later, pair.earlier) for pair in PAIRS]
    if "later" in row:
        key = row["later"], row["earlier"]
        return pairs.index(key) if key in pairs else len(pairs)
    return names.index(row["row"]) if row["row"] in names else len(names)
