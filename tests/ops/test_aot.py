"""Every kernel, compiled for GPUs that are not here: no spills, memory that fits, right products.

One child process builds the specimens, since kernels are interpreted, not compiled, in the tests'
own process. Triton keeps what it built, so an unchanged kernel costs its assembly only. Half of the
capabilities, one of every kind of matrix instruction with 8-bit integers, are built in every run;
the others are marked ``slow``.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from turbodiffusion.ops import aot

pytest.importorskip("triton", reason="Triton is not installed; it exists for Linux and Windows")

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "turbodiffusion" / "ops"


def child(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )


USUAL = (80, 90, 120)
CAPABILITIES = [
    pytest.param(c, marks=() if c in USUAL else pytest.mark.slow) for c in aot.CAPABILITIES
]


@cache
def rows(capabilities: tuple[int, ...] = USUAL) -> list[dict[str, Any]]:
    """What became of every specimen on these capabilities."""
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    chosen = map(str, capabilities)
    done = child(
        "-m", "turbodiffusion.ops.aot", "--json", "--jobs", jobs, "--capability", *chosen
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("operator", aot.OPERATORS)
def test_kernels_have_no_faults(operator, capability):
    group = USUAL if capability in USUAL else tuple(set(aot.CAPABILITIES) - set(USUAL))
    mine = [
        row for row in rows(group)
        if row["operator"] == operator and row["capability"] == capability
    ]  # fmt: skip
    if not mine:
        assert not (OPS / operator / "triton.py").exists(), f"{operator} shows no specimen"
        pytest.skip(f"{operator} has no kernels")
    faults = [fault for row in mine for fault in row["faults"]]
    assert not faults, "\n".join(faults)
    assert all(row["registers"] > 0 for row in mine)


def jit_functions() -> dict[str, tuple[str, set[str]]]:
    """Every ``@triton.jit`` function of the operators: ``module.name`` → place, names it uses.

    A name it uses is one of its own module, or the function that its module imports so called.
    """
    found: dict[str, tuple[str, set[str]]] = {}
    for path in sorted(OPS.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any(map(_is_jit, node.decorator_list)):
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                uses = {imported.get(name, f"{module}.{name}") for name in names}
                place = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
                found[f"{module}.{node.name}"] = place, uses
    return found


def _is_jit(decorator: ast.expr) -> bool:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
    return name == "jit"


def test_no_kernel_escapes():
    """Each is a specimen, or called by one."""
    functions = jit_functions()
    reached: set[str] = set()
    waiting = {row["kernel"] for row in rows()}
    while waiting:
        name = waiting.pop()
        if name in functions and name not in reached:
            reached.add(name)
            waiting |= functions[name][1]
    assert reached or not functions
    escaped = sorted(f"{name} ({functions[name][0]})" for name in functions.keys() - reached)
    assert not escaped, f"no specimen compiles {', '.join(escaped)}"


BAD = '''
import triton, triton.language as tl
from turbodiffusion.ops.aot import INT8_PRODUCT, Specimen, build, faults

@triton.jit
def wide_kernel(x, y, N: tl.constexpr):
    """Holds two rows of 8192 numbers in one warp: 512 registers a thread, where 255 exist."""
    o = tl.arange(0, N)
    a = tl.load(x + o)
    b = tl.load(x + N + o)
    tl.debug_barrier()
    tl.store(y + o, tl.cumsum(a) * tl.sum(b) + b)

bad = Specimen("wide", wide_kernel, {"x": "*fp32", "y": "*fp32"}, {"N": 8192}, num_warps=1,
               expects=(INT8_PRODUCT[80],))
print(*faults(build(bad, 80), bad), sep="\\n")
'''


def test_a_bad_kernel_is_caught(tmp_path):
    script = tmp_path / "bad.py"
    script.write_text(BAD, "utf-8")
    done = child("-c", f"import runpy; runpy.run_path({str(script)!r})")
    assert done.returncode == 0, done.stderr
    spills, product = done.stdout.splitlines()
    assert spills.startswith("wide spills ") and spills.endswith(" bytes on sm_80")
    assert product.startswith("wide has no mma")


def test_memory_beyond_the_limit_is_a_fault():
    specimen = aot.Specimen("kernel", None, {}, {})
    built = aot.Build("kernel", 89, 64, 0, aot.SHARED_LIMIT[89], "")
    assert aot.faults(built, specimen) == []
    built = aot.Build("kernel", 89, 64, 0, aot.SHARED_LIMIT[89] + 1, "")
    assert "wants 101377 bytes of shared memory of 101376" in aot.faults(built, specimen)[0]


def test_a_kernel_that_cannot_be_built_is_a_row(monkeypatch):
    def kernel():
        pass

    jit = type("Kernel", (), {"fn": staticmethod(kernel), "arg_names": ["x"]})
    specimen = aot.Specimen("broken", jit(), {"y": "*fp32"}, {})
    monkeypatch.setattr(aot, "specimens", lambda operator, capability: [specimen])
    (row,) = aot.rows(["norm"], [90])
    assert row.faults == (
        "broken on sm_90: RuntimeError: broken: unknown ['y'], missing ['x']",
    )  # fmt: skip
