"""Every error code that the package can raise, read from its source."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "turbodiffusion").rglob("*.py")), ROOT / "turbo.py"]
BASE = "TurboDiffusionError"

TABLES = {
    "bootstrap/pip.py": ("turbodiffusion.bootstrap.pip", "CAUSES", 1),
    "weights/check.py": ("turbodiffusion.weights.check", "_UNSUPPORTED", 0),
    "media/libraries.py": (None, ("media-no-av", "media-no-pil"), 0),
}
"""Files whose codes come as a variable → where its values are: module, table, column."""

PRINTED = {"setup-python": "turbo.py"}
"""Codes that are printed without an error being raised."""


@dataclass(frozen=True)
class Raised:
    """One place that raises a code; ``message`` has x for every value."""

    code: str
    place: str
    message: str


def family(trees: dict[Path, ast.Module]) -> dict[str, str]:
    """Names of the error classes → the code that a class sets by itself, or ""."""
    names = {BASE: ""}
    before = 0
    while len(names) > before:
        before = len(names)
        for tree in trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and any(name(b) in names for b in node.bases):
                    names[node.name] = fixed_code(node)
    return names


def name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return getattr(node, "id", getattr(node, "attr", ""))


def fixed_code(node: ast.ClassDef) -> str:
    """The code in a class's own ``super().__init__("code", …)``, or ""."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and name(call.func) == "__init__" and call.args:
            first = call.args[0]
            if isinstance(first, ast.Constant):
                return str(first.value)
    return ""


def words(node: ast.expr) -> str:
    """A message with x in place of every value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(p.value) if isinstance(p, ast.Constant) else "x" for p in node.values)
    return "x"


def raised() -> tuple[list[Raised], list[str]]:
    """(codes, places where the code is neither a literal nor in one of :data:`TABLES`)."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in SOURCES}
    classes = family(trees)
    found = [Raised(code, place, "x") for code, place in PRINTED.items()]
    wrong = []
    for path, tree in trees.items():
        inside = path.relative_to(ROOT).as_posix()
        found += [
            Raised(code, inside, "x") for code in table(inside.removeprefix("turbodiffusion/"))
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or name(node.func) not in classes or not node.args:
                continue
            place = f"{inside}:{node.lineno}"
            message = words(node.args[1]) if len(node.args) > 1 else "x"
            first = node.args[0]
            if classes[name(node.func)]:
                found.append(Raised(classes[name(node.func)], place, words(first)))
            elif isinstance(first, ast.Constant):
                found.append(Raised(str(first.value), place, message))
            elif not (isinstance(first, ast.Name) and inside.split("/", 1)[-1] in TABLES):
                wrong.append(place)
    return found, wrong


def table(inside: str) -> tuple[str, ...]:
    """The codes that a file takes from its table."""
    if inside not in TABLES:
        return ()
    module, rows, column = TABLES[inside]
    if module is None:
        return rows
    values = getattr(__import__(module, fromlist=[rows]), rows)
    values = values.values() if isinstance(values, dict) else values
    return tuple(row[column] for row in values)
