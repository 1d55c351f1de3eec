"""Compiles Triton kernels for GPUs that are not here, and reads what the assembler says.

Each operator folder with kernels has a ``specimens.py`` whose ``specimens(capability)`` lists its
kernels as they are launched on that GPU. :func:`build` compiles one to PTX without a GPU, runs the
``ptxas -v`` that comes with Triton on it, and returns registers, spills and shared memory; what
must be true of them is stated beside the specimen and checked by :func:`faults`.

    python -m turbodiffusion.ops.aot sla --capability 90      # a table of that operator's kernels
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

CAPABILITIES = (80, 86, 89, 90, 100, 120)
OPERATORS = ("attention", "linear", "norm", "rope", "sage", "sla", "tangent")

SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes of shared memory that one block may use, by capability."""

INT8_PRODUCT = {
    **dict.fromkeys((80, 86, 89, 120), r"mma\.sync.*\.s8\.s8"),
    90: r"wgmma\.mma_async.*\.s8\.s8",
    # Triton has no 8-bit integer form of tcgen05. Integers up to 256 are exact in bf16, and sums
    # below 2^24 in float32, so there the same product runs as kind::f16 with the same result.
    100: r"tcgen05\.mma",
}
HALF_PRODUCT = {
    **dict.fromkeys((80, 86, 89, 120), r"mma\.sync.*\.(bf16|f16)"),
    90: r"wgmma\.mma_async.*\.(bf16|f16)",
    100: r"tcgen05\.mma.*kind::f16",
}
FP8_PRODUCT = {
    **dict.fromkeys((89, 120), r"mma\.sync.*\.e4m3"),
    90: r"wgmma\.mma_async.*\.e4m3",
    100: r"tcgen05\.mma.*kind::f8f6f4",
}
"""Matrix instructions to look for in the PTX, as patterns by capability."""


@dataclass(frozen=True)
class Specimen:
    """One kernel with the types and constants of a real launch.

    Args:
        name: what the table prints; unique within the operator.
        kernel: the ``@triton.jit`` function.
        signature: Triton type of every runtime argument, such as ``*bf16``, ``i32``, ``fp32``.
        constants: values of the ``tl.constexpr`` arguments.
        expects: patterns that must occur in the PTX (the matrix instructions meant).
        aligned: runtime arguments that are multiples of 16, beside the pointers.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    expects: tuple[str, ...] = ()
    aligned: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Build:
    """What became of a specimen on one capability."""

    name: str
    capability: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    ptx: str


def build(specimen: Specimen, capability: int) -> Build:
    """Compile for ``capability`` (such as 90) and assemble with ``ptxas -v``.

    Must run in a process without ``TRITON_INTERPRET``, where kernels are not compiled at all.

    Raises:
        RuntimeError: Triton or ptxas rejected the kernel; the message holds what they said.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = specimen.kernel.arg_names
    unknown = {*specimen.signature, *specimen.constants} - set(names)
    missing = set(names) - {*specimen.signature, *specimen.constants}
    if unknown or missing:
        raise RuntimeError(f"{specimen.name}: unknown {sorted(unknown)}, missing {sorted(missing)}")
    signature = {n: specimen.signature.get(n, "constexpr") for n in names}
    divisible = [
        n for n, kind in specimen.signature.items() if kind[0] == "*" or n in specimen.aligned
    ]
    attrs = {(names.index(n),): [["tt.divisibility", 16]] for n in divisible}
    constants = {(names.index(n),): value for n, value in specimen.constants.items()}
    if specimen.kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
    source = ASTSource(specimen.kernel, signature, constexprs=constants, attrs=attrs)
    options = {
        "num_warps": specimen.num_warps, "num_stages": specimen.num_stages, **specimen.options,
    }  # fmt: skip
    said = io.StringIO()
    with contextlib.redirect_stdout(said), triton.knobs.nvidia.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    # A kernel out of Triton's cache was assembled before, and says nothing.
    registers, spill = verdict(said.getvalue()) or assemble(ptx, capability)
    return Build(specimen.name, capability, registers, spill, int(compiled.metadata.shared), ptx)


def assemble(ptx: str, capability: int) -> tuple[int, int]:
    """:func:`verdict` on PTX, by Triton's own ptxas with the flags that Triton gives it."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    try:
        program = get_ptxas(capability).path
    except TypeError:  # before Triton 3.7 it took no argument
        program = get_ptxas().path
    arch = sm_arch_from_capability(capability)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.ptx")
        with open(path, "w", encoding="utf-8") as file:
            file.write(ptx)
        done = subprocess.run(
            [program, "-v", *_flags(), f"--gpu-name={arch}", path, "-o", path + ".cubin"],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"ptxas: {done.stderr.strip()}")
    found = verdict(done.stderr)
    assert found is not None, done.stderr
    return found


def verdict(log: str) -> tuple[int, int] | None:
    """(registers a thread, bytes of spill stores and stack) from what ``ptxas -v`` says."""
    registers = re.findall(r"Used (\d+) registers", log)
    spills = re.findall(r"(\d+) bytes (?:stack frame|spill stores)", log)
    return (max(map(int, registers)), sum(map(int, spills))) if registers else None


def _flags() -> list[str]:
    """What Triton adds since 3.7, against a fault of ptxas 13."""
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    return ["--regAllocOptLevel=2"] if version >= (3, 7) else []


def faults(built: Build, specimen: Specimen) -> list[str]:
    """What is wrong with a built kernel, as sentences; empty when all is as it should be."""
    found = []
    if built.spill_bytes:
        found.append(f"{built.name} spills {built.spill_bytes} bytes on sm_{built.capability}")
    limit = SHARED_LIMIT[built.capability]
    if built.shared_bytes > limit:
        found.append(f"{built.name} wants {built.shared_bytes} bytes of shared memory of {limit}")
    for pattern in specimen.expects:
        if not re.search(pattern, built.ptx):
            found.append(f"{built.name} has no {pattern} on sm_{built.capability}")
    return found


def specimens(operator: str, capability: int) -> list[Specimen]:
    """The kernels of an operator as launched on ``capability``; none where it has no kernels."""
    path = f"turbodiffusion.ops.{operator}.specimens"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        return []
    return list(module.specimens(capability))


@dataclass(frozen=True)
class Row:
    """One line of the table: a specimen on one capability, and what is wrong with it."""

    operator: str
    name: str
    kernel: str
    capability: int
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    faults: tuple[str, ...] = ()


def rows(
    operators: Sequence[str], capabilities: Sequence[int], match: str = "", jobs: int = 1
) -> Iterator[Row]:
    """Build the specimens whose name contains ``match``, ``jobs`` at a time.

    A kernel that cannot be built is a row whose fault holds what Triton or ptxas said.
    """
    wanted = [
        (operator, capability, index)
        for capability in capabilities
        for operator in operators
        for index, specimen in enumerate(specimens(operator, capability))
        if match in specimen.name
    ]
    if jobs <= 1:
        yield from (_row(*task) for task in wanted)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_row, *zip(*wanted, strict=True)) if wanted else ()


def _row(operator: str, capability: int, index: int) -> Row:
    specimen = specimens(operator, capability)[index]
    function = specimen.kernel.fn
    kernel = f"{function.__module__}.{function.__name__}"
    try:
        built = build(specimen, capability)
    except Exception as error:
        text = f"{specimen.name} on sm_{capability}: {type(error).__name__}: {error}"
        return Row(operator, specimen.name, kernel, capability, faults=(text,))
    return Row(
        operator, specimen.name, kernel, capability, built.registers, built.spill_bytes,
        built.shared_bytes, tuple(faults(built, specimen)),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; the exit status is 1 when a kernel has a fault."""
    parser = argparse.ArgumentParser(prog="python -m turbodiffusion.ops.aot")
    parser.add_argument("operator", nargs="*", default=list(OPERATORS))
    parser.add_argument("--capability", type=int, nargs="*", default=list(CAPABILITIES))
    parser.add_argument("--match", default="", help="only kernels whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="kernels compiled at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    args = parser.parse_args(argv)
    bad = 0
    if not args.json:
        print(f"{'kernel':<44} {'sm':>4} {'registers':>9} {'spills':>7} {'shared':>8}")
    for row in rows(args.operator, args.capability, args.match, args.jobs):
        bad += bool(row.faults)
        text = json.dumps(asdict(row)) if args.json else (
            f"{row.name:<44} {row.capability:>4} {row.registers:>9} {row.spill_bytes:>7} "
            f"{row.shared_bytes:>8}  {'; '.join(row.faults)}"
        )  # fmt: skip
        print(text, flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
