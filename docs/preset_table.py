"""Print the settings of a size's stages by their dotted names, for the page about training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from turbodiffusion.train.config import TrainConfig
from turbodiffusion.train.stages import STAGES, roles, settings_of

NAMED = ("stage", "preset", "out")  # say only which table this is
SHOWN = ("batch", "micro_batch")  # whatever they are


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value of every setting."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif prefix or name not in NAMED:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            yield prefix + name, text if value not in ("", None) else "-"


def main(size: str) -> None:
    """One column for each stage; what no stage changes is left out."""
    configs = [settings_of(stage, size) for stage in STAGES]
    columns = [dict(flat(config.as_json())) for config in configs]
    for config, column in zip(configs, columns, strict=True):
        if "fake_score" not in roles(config):
            for name in [name for name in column if name.startswith("fake_score.")]:
                del column[name]
    common = dict(flat(TrainConfig("", "", columns[0]["card"], "").as_json()))
    names = list(dict.fromkeys(name for column in reversed(columns) for name in column))
    rows = [["", *STAGES]]
    for name in names:
        found = [column.get(name, "") for column in columns]
        if name in SHOWN or any(value not in ("", common.get(name)) for value in found):
            rows.append([name, *found])
    print(f"card {columns[0]['card']}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    main(sys.argv[1])
