"""Times every launch of the linear kernels that ``ops/linear/config.py`` lists, on this GPU.

    python benchmarks/tune_linear.py --rows 32760 --out benchmarks/results/tune_linear.json

Products take quantised activations and have the epilogue of their place in the block; the fp8 rows
include their quantiser. What a candidate computes is first compared with the first one's result,
bit by bit. Rivals are the vendor's bf16 linear and its int8 product, which has no scales.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from triton.testing import do_bench

from turbodiffusion.ops import gpu
from turbodiffusion.ops.linear import quantize_fp8, quantize_group, quantize_weight
from turbodiffusion.ops.linear import triton as kernels
from turbodiffusion.ops.linear.config import candidates, fp8_candidates
from turbodiffusion.ops.linear.specimens import label

WIDTHS = {"1.3B": (1536, 8960), "14B": (5120, 13824)}
Row = dict[str, object]


def contest(layer: str, m: int, n: int, k: int, device: torch.device, skip: str = "") -> list[Row]:
    """All candidates and rivals for one product of a block, but those with ``skip`` in the name."""
    found: list[Row] = []

    def measure(name: str, call: Callable[[], object]) -> None:
        ms = do_bench(call, warmup=20, rep=100, return_mode="median")
        tops = 2e-9 * m * n * k / ms
        found.append({"layer": layer, "name": name, "m": m, "n": n, "k": k, "ms": ms, "tops": tops})
        print(f"{layer:<5} {m:>6} {n:>6} {k:>6}  {name:<34} {ms:>8.3f} ms {tops:>6.0f} TOP/s")

    x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    weight = torch.randn(n, k, device=device, dtype=torch.bfloat16) / k**0.5
    bias = torch.randn(n, device=device, dtype=torch.bfloat16)
    q, w, w8 = quantize_group(x), quantize_weight(weight), quantize_fp8(weight)
    product, first = _epilogue(layer, m, n, device), None
    for config in candidates(gpu.capability(device), m):
        name = f"int8 {label(config)} g{config.group_m}"
        if skip and skip in name:
            continue
        call = partial(product, *q, *w, bias, config=config)
        out = call()
        out = out[0] if isinstance(out, tuple) else out
        first = out if first is None else first
        different = "" if torch.equal(out, first) else " DIFFERENT"
        measure(name + different, call)
    if gpu.has_fp8(device):
        for fp8 in fp8_candidates(gpu.capability(device), m):
            name = f"fp8 {fp8.block_m}×{fp8.block_n} w{fp8.num_warps} s{fp8.num_stages}"
            measure(name, partial(kernels.fp8_linear, x, *w8, bias, fp8))
    measure("bf16", partial(F.linear, x, weight, bias))
    if m % 8 == 0:
        measure("_int_mm", partial(torch._int_mm, q.q, w[0].T))
    measure("quantize_group alone", partial(quantize_group, x))
    return found


def _epilogue(layer: str, m: int, n: int, device: torch.device) -> Callable[..., Any]:
    if layer == "ffn1":
        return kernels.int8_linear_gelu
    if layer == "qkv":
        return partial(kernels.int8_matmul, dtype=torch.bfloat16, released=False)
    residual = torch.randn(1, m, n, device=device, dtype=torch.bfloat16)
    gate = torch.randn(1, 1, n, device=device)
    return partial(kernels.int8_linear_residual, residual_BLN=residual, gate_B1N=gate)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[32760])
    parser.add_argument("--size", nargs="*", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--layer", nargs="*", default=["qkv", "o", "ffn1", "ffn2"])
    parser.add_argument("--skip", default="", help="leave out int8 launches with this in the name")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    machine = {
        "gpu": torch.cuda.get_device_name(device), "torch": torch.__version__,
        "triton": triton.__version__,
    }  # fmt: skip
    print(machine)
    rows: list[Row] = []
    for size in args.size:
        dim, ffn_dim = WIDTHS[size]
        shapes = {
            "qkv": (3 * dim, dim), "o": (dim, dim), "ffn1": (ffn_dim, dim), "ffn2": (dim, ffn_dim),
        }  # fmt: skip
        for m in args.rows:
            for layer in args.layer:
                rows += contest(layer, m, *shapes[layer], device, args.skip)
    if args.out:
        args.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
