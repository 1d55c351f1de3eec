"""The text of `turbodiffusion mini judge`: four small tables of the values of a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from turbodiffusion.mini.tally import ATTRIBUTES

NOTHING = "–"
Values = dict[str, Any]


def align(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as aligned text, the first one a heading."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def tables(result: Values) -> str:
    """All tables of a result, an empty line between them; those without rows are left out."""
    parts = [accuracy(result.get("rows", []))]
    for draw, part in (
        (differences, "differences"), (quality, "whole"), (distribution, "whole"),
    ):  # fmt: skip
        if result.get(part):
            parts.append(draw(result[part]))
    return "\n\n".join(parts)


def accuracy(rows: Sequence[Values]) -> str:
    """Share of videos that show each attribute as asked, percent with 95 % intervals."""
    lines = [["row", "combinations", "objects", "videos", *ATTRIBUTES]]
    for row in rows:
        cells = [row["row"], _split(row), str(row["objects"]), str(row["videos"])]
        for name in ATTRIBUTES:
            value = row.get(name)
            if value is None:
                cells.append(NOTHING)
                continue
            low, high = value["interval95"]
            cells.append(f"{100 * value['accuracy']:.1f} ({100 * low:.0f}–{100 * high:.0f})")
        lines.append(cells)
    return align(lines)


def differences(rows: Sequence[Values]) -> str:
    """Differences of joint accuracy in points, on the same prompts and noise."""
    lines = [["joint accuracy", "combinations", "videos", "points (95 %)", "lost", "won", "aim"]]
    for row in rows:
        low, high = row["interval95"]
        aim = NOTHING
        if "aim" in row:
            aim = f"{signed(100 * row['aim'], 0)} {'met' if row['met'] else 'not met'}"
        lines.append([
            f"{row['later']} − {row['earlier']}", _split(row), str(row["videos"]),
            f"{signed(100 * row['difference'])} ({signed(100 * low)} to {signed(100 * high)})",
            str(row["only_earlier"]), str(row["only_later"]), aim,
        ])  # fmt: skip
    return align(lines)


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, as + or −."""
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else ("−" if value < 0 else "+") + text


Column = tuple[str, str, Callable[[Any], str]]


def _digits(digits: int, scale: float = 1.0) -> Callable[[Any], str]:
    return lambda value: f"{scale * value:.{digits}f}"


QUALITY: tuple[Column, ...] = (
    ("IoU", "overlap", _digits(3)),
    ("sharpness", "sharpness", _digits(2)),
    ("flicker", "flicker", _digits(2)),
    ("jerk %", "jerk", _digits(2, 100)),
    ("colour drift", "colour_drift", _digits(2)),
    ("shape drift", "shape_drift", _digits(4)),
)
DISTRIBUTION: tuple[Column, ...] = (
    ("Fréchet", "frechet", _digits(3)),
    ("fine detail", "fine_energy", _digits(3)),
    ("diversity", "diversity", _digits(2)),
    ("against", "reference", str),
    ("PSNR dB", "reference_psnr_db", _digits(1)),
    ("cosine", "reference_cosine", _digits(4)),
    ("least per step", "step_cosine", lambda steps: f"{min(steps):.4f}"),
    ("calls", "network_calls", lambda calls: str(calls) if calls else NOTHING),
    ("denoise s", "denoising_seconds", _digits(4)),
    ("decode s", "decoding_seconds", _digits(4)),
)


def quality(rows: Sequence[Values]) -> str:
    """How the videos are drawn: fidelity and dynamics, over all prompts."""
    return _columns(rows, QUALITY)


def distribution(rows: Sequence[Values]) -> str:
    """How the videos are distributed, how near a row is to its reference, and how long it takes."""
    return _columns(rows, DISTRIBUTION)


def _columns(rows: Sequence[Values], columns: Sequence[Column]) -> str:
    lines = [["row", "videos", *(title for title, _, _ in columns)]]
    for row in rows:
        cells = [show(row[key]) if key in row else NOTHING for _, key, show in columns]
        lines.append([row["row"], str(row["videos"]), *cells])
    return align(lines)


def _split(row: Values) -> str:
    return str(row["split"]).replace("_", "-")
