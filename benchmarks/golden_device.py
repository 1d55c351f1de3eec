"""Replay golden vectors on a device: the networks and the SLA operator, bf16 and its gradients.

    TURBODIFFUSION_BACKEND=triton python benchmarks/golden_device.py cuda [FOLDER]

The folder is that of ``TURBODIFFUSION_GOLDEN`` unless it is given. The test suite replays the same
files on the CPU; this needs no pytest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch import Tensor  # noqa: E402

from turbodiffusion.models.cards import Attention, DiTConfig  # noqa: E402
from turbodiffusion.models.dit import WanDiT  # noqa: E402
from turbodiffusion.ops.sla import block_map, sparse_linear_attention  # noqa: E402

BF16, FP32 = torch.bfloat16, torch.float32
INTEGERS = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim",
            "text_len", "freq_dim")  # fmt: skip
NETWORK_BOUND = {"original": 1e-2, "sla": 5e-3}
OUT_BOUND = {BF16: 1e-2, FP32: 1e-5}
GRADIENT_BOUND = {BF16: 2e-2, FP32: 1e-4}
Finding = tuple[str, float, float]
"""What was compared, its relative L2 error, and the bound."""


def read(path: Path, device: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt", device=device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative L2; NaN counts as infinite."""
    difference = torch.linalg.vector_norm(actual.double() - expected.double())
    found = (difference / torch.linalg.vector_norm(expected.double())).item()
    return found if found == found else float("inf")


def network(path: Path, device: str) -> Iterator[Finding]:
    tensors, meta = read(path, device)
    config = DiTConfig(**{name: int(meta[name]) for name in INTEGERS}, eps=float(meta["eps"]))
    attention = Attention("dense")
    if meta["attention"] == "sla":
        attention = Attention("sla", topk=float(meta["sla_topk"]), block_q=128, block_k=64)
    dtype = getattr(torch, meta["compute_dtype"])
    dit = WanDiT(config, attention).to(device, dtype)
    dit.load_state_dict({k[3:]: v for k, v in tensors.items() if k.startswith("sd.")})
    time = tensors["in.t"].to(dtype)
    with torch.no_grad():
        out = dit(tensors["in.x"], time, tensors["in.context"], tensors.get("in.y"))
    bound = (
        1e-5 if dtype is FP32 and attention.kind == "dense" else NETWORK_BOUND[meta["attention"]]
    )
    yield "output", error(out, tensors["out"]), bound


def operator(path: Path, device: str) -> Iterator[Finding]:
    tensors, meta = read(path, device)
    kept = tensors["block_map"].bool()
    blocks = kept.nonzero()[:, -1].view(*kept.shape[:-1], -1)
    names = ("q", "k", "v", "proj_l.weight", "proj_l.bias")
    geometry: dict[str, Any] = {"topk": float(meta["topk_ratio"])}
    geometry |= {name: int(meta[name]) for name in ("block_q", "block_k")}
    chosen = block_map(tensors["in.q"], tensors["in.k"], **geometry)
    yield "share of blocks chosen otherwise", (chosen != kept).float().mean().item(), 1e-9
    for dtype in (BF16, FP32):
        leaves = [tensors[f"in.{n}"].to(dtype) for n in "qkv"]
        leaves += [tensors[n].clone() for n in names[3:]]
        q, k, v, weight, bias = (t.requires_grad_() for t in leaves)
        out = sparse_linear_attention(
            q, k, v, weight, bias, **geometry, feature_map=meta["feature_map"], blocks=blocks
        )
        label = str(dtype).removeprefix("torch.")
        expected = tensors["out" if dtype is BF16 else "out_fp32"]
        yield f"{label} output", error(out, expected), OUT_BOUND[dtype]
        grad = tensors["in.grad_out"].to(dtype)
        found = torch.autograd.grad(out, [q, k, v, weight, bias], grad)
        for name, value in zip(names, found, strict=True):
            yield f"{label} gradient of {name}", error(value, tensors[f"grad.{name}"]), (
                GRADIENT_BOUND[dtype]
            )  # fmt: skip


def main() -> int:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    default = os.environ.get("TURBODIFFUSION_GOLDEN", ROOT.parent / "shared" / "golden")
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else default)
    paths = [(p, network) for p in sorted(folder.glob("dit_*.safetensors"))]
    paths += [(p, operator) for p in sorted(folder.glob("sla_*.safetensors"))]
    if not paths:
        print(f"no golden vectors in {folder}")
        return 1
    bad = 0
    for path, replay in paths:
        try:
            for name, value, bound in replay(path, device):
                bad += not value < bound
                verdict = "ok   " if value < bound else "WRONG"
                print(f"{verdict} {path.stem} {name}: {value:.1e}, bound {bound:.0e}", flush=True)
        except Exception as failure:
            bad += 1
            print(f"FAILED {path.stem}: {type(failure).__name__}: {failure}", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
