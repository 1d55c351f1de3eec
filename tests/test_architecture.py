"""The rooms of the package and the arrows between them, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "turbodiffusion"

LEVELS = (
    ("errors",),
    ("bootstrap",),
    ("ops",),
    ("models",),
    ("sampling", "weights", "memory", "media", "parallel"),
    ("pipeline",),
    ("train",),
    ("serve", "bench", "mini", "integrations"),  # mini distils with the losses of train
    ("doctor",),  # measures speed with bench and tries itself out with mini
    ("cli", "inference"),
    ("door",),
)
"""A room imports rooms of earlier levels only."""

DOOR = ("turbodiffusion.bootstrap.main", "turbodiffusion.bootstrap.places")
"""What ``turbo.py`` opens: these start the command line, so nothing may import them."""


def level(room: str) -> int:
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("turbodiffusion.")}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if ".".join(("turbodiffusion", *parts)).removesuffix(".py") in DOOR:
        return "door"
    return parts[0] if len(parts) > 1 else path.stem


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)


def test_there_is_source_to_check():
    assert len(SOURCES) > 50


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path):
    room = room_of(path)
    wrong = []
    for name in imports(path):
        other = "door" if name in DOOR else name.split(".")[1]
        if other in (room, "__version__", "load", "Pipeline", "Video"):
            continue
        if level(other) >= level(room):
            wrong.append(name)
    assert not wrong, f"{room} must not import {sorted(wrong)}"


HEAVY = ("torch", "numpy", "transformers", "av", "PIL", "safetensors", "huggingface_hub")


@pytest.mark.parametrize(
    "statement",
    [
        "import turbodiffusion",
        "import turbodiffusion.media",
        "import turbodiffusion.weights.detect",
        "from turbodiffusion.cli.main import main; main([])",
        "import turbodiffusion.bootstrap.main",
    ],
)
def test_light_imports_stay_light(statement: str):
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
