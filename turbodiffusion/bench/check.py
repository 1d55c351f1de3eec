"""Every row of the benchmark at small, awkward shapes, with a bound on its error.

A quick answer to "do the kernels compute the right thing on this GPU", where the test suite cannot
be run or takes too long. The full tests are those in ``tests/ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from turbodiffusion.bench import attention, elementwise, linear, network
from turbodiffusion.bench.cases import Case, Setting
from turbodiffusion.bench.shapes import Geometry, Rate, Shape, shapes
from turbodiffusion.bench.timing import reason

BOUNDS = {
    "block_map": 1e-6,
    # bf16 results: one rounding of 2⁻⁹ at the most, 4e-3 with the products' own.
    **dict.fromkeys(("sla", "cross_attention", "int8", "fp8", "rms_norm"), 4e-3),
    **dict.fromkeys(("layer_norm", "layer_norm_modulate", "rms_norm_rope"), 4e-3),
    "sla_backward": 1e-2,
    # 8-bit results, and 8-bit products inside.
    **dict.fromkeys(("int8_fused", "layer_norm_quantize", "modulate_quantize"), 0.012),
    **dict.fromkeys(("sage", "sagesla", "forward"), 0.05),
}
"""Largest relative L2 error by operator, in bf16."""

GRIDS = ((1, 1, 1), (1, 7, 9), (3, 1, 43), (6, 10, 10), (10, 10, 10))
"""1, 63, 129, 600 and 1000 tokens: below, around and above blocks, never a multiple of one."""

GEOMETRIES = (Geometry(0.3, 128, 64), Geometry(0.3, 64, 128), Geometry(0.3, 64, 64))


def check(device: torch.device, say: Callable[[str], None]) -> int:
    """Run all of them, one line each; returns how many were wrong or failed."""
    bad = 0
    for case, setting in _work(device):
        name = f"{case.operator} {case.variant}".strip()
        g = setting.geometry
        place = f"{name}, {case.shape.reduced}, blocks {g.block_q}×{g.block_k}"
        try:
            with torch.no_grad() if case.operator != "sla_backward" else torch.enable_grad():
                error = case.make(setting).error().l2
        except Exception as failure:
            bad += 1
            say(f"FAILED {place}: {reason(failure)}")
            continue
        bound = BOUNDS[case.operator]
        bad += not error <= bound
        say(f"{'ok    ' if error <= bound else 'WRONG '} {place}: {error:.1e}, bound {bound:.1e}")
    return bad


def _work(device: torch.device) -> Iterator[tuple[Case, Setting]]:
    rates: dict[Rate, float] = {"bf16": 1.0, "8-bit": 1.0, "copy": 1.0}
    for s in (shapes()["1.3b-480p"], shapes()["14b-720p"]):
        for grid in GRIDS:
            for case, g in cases_at(s, grid):
                yield case, Setting(device, g, rates, 0.0)


def cases_at(s: Shape, grid: tuple[int, int, int]) -> Iterator[tuple[Case, Geometry]]:
    """Rows at few heads, norms at the full width, sparse attention with several geometries."""
    small, wide = s.reduce(grid, 2), s.reduce(grid, s.heads)
    first = GEOMETRIES[0]
    for g in GEOMETRIES:
        for case in attention.cases(small, g):
            if g == first or case.operator in ("block_map", "sla", "sla_backward", "sagesla"):
                yield case, g
    for room in (linear, network):
        yield from ((case, first) for case in room.cases(small, first))
    yield from ((case, first) for case in elementwise.cases(wide, first))
