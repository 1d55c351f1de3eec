"""The table of `turbodiffusion mini judge`: counts, shares with intervals, text, and its record."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from turbodiffusion.mini.export import read_report, update_report
from turbodiffusion.mini.metrics import interval
from turbodiffusion.mini.recipe import SizeRecipe

ATTRIBUTES = ("background", "colour", "shape", "motion", "joint")


@dataclass
class Row:
    """Counts of one row of the table. ``hits[attribute] = [right, judged]``."""

    name: str
    split: str
    objects: int
    hits: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    square: list[float] = field(default_factory=list)
    seconds: float = 0.0
    videos: int = 0
    calls: int = 0

    def add(self, scores: dict[str, bool | None]) -> None:
        """Count one video; an attribute that the caption leaves open is not judged."""
        self.videos += 1
        for name, right in scores.items():
            if right is not None:
                self.hits[name][0] += bool(right)
                self.hits[name][1] += 1

    def as_json(self) -> dict[str, Any]:
        """Plain values: accuracy, 95 % interval and sample count of every attribute."""
        values: dict[str, Any] = {
            "row": self.name, "split": self.split, "objects": self.objects, "videos": self.videos,
            "network_calls": self.calls,
        }  # fmt: skip
        if self.videos:
            values["seconds_per_video"] = round(self.seconds / self.videos, 4)
        for name in ATTRIBUTES:
            right, count = self.hits[name]
            if count:
                low, high = interval(right, count)
                values[name] = {
                    "accuracy": round(right / count, 4),
                    "interval95": [round(low, 4), round(high, 4)],
                    "samples": count,
                }
        if self.square:
            mean = sum(self.square) / len(self.square)
            values["psnr_db"] = round(-10 * torch.log10(torch.tensor(mean)).item(), 2)
        return values


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of :meth:`Row.as_json` as aligned text, accuracies in percent with 95 % intervals."""
    header = [
        "row",
        "combinations",
        "objects",
        "videos",
        *ATTRIBUTES,
        "PSNR dB",
        "calls",
        "s/video",
    ]
    lines = [header]
    for row in rows:
        cells = [
            row["row"],
            row["split"].replace("_", "-"),
            str(row["objects"]),
            str(row["videos"]),
        ]
        for name in ATTRIBUTES:
            value = row.get(name)
            if value is None:
                cells.append("–")
                continue
            low, high = value["interval95"]
            cells.append(f"{100 * value['accuracy']:.1f} ({100 * low:.0f}–{100 * high:.0f})")
        cells.append(f"{row['psnr_db']:.1f}" if "psnr_db" in row else "–")
        cells.append(str(row["network_calls"] or "–"))
        seconds = row.get("seconds_per_video")
        cells.append(f"{seconds:.2f}" if seconds else "–")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def record(size: SizeRecipe, folder: Path, result: dict[str, Any]) -> Path:
    """Store a measured table in the report file of ``folder``.

    Each row carries the machine it was measured on. Rows of earlier calls stay unless they are
    measured again or a part that both calls used has other weights now.
    """
    old = read_report(size, folder).get("quality", {})
    before, now = old.get("weights", {}), result["weights"]
    kept = {}
    if all(before[part] == now[part] for part in before.keys() & now.keys()):
        kept = {_row_key(row): row for row in old.get("rows", ())}
        now = {**before, **now}
    new = {_row_key(row): {**row, "machine": result["machine"]} for row in result["rows"]}
    rows = [*{**kept, **new}.values()]
    quality = {"model": result["model"], "weights": now, "rows": rows}
    return update_report(size, folder, quality=quality)


def _row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["row"], row["split"], row["objects"], row["network_calls"]
