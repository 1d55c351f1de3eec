"""Sparse-linear attention on a CPU against PyTorch's dense attention, in one run.

    python benchmarks/cpu_sparse.py --name cpu-2026-11-24-sparse

Every contestant of a case runs in turn from a cold cache; medians are printed and stored with the
machine, the versions, the commit and the load. ``--flex`` adds FlexAttention with the same blocks,
which needs a C++ compiler and a minute for every case. The error is that of the first head against
the definition, at the same blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands set it

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from turbodiffusion.bench import machine, table  # noqa: E402
from turbodiffusion.bench.timing import CpuClock, race  # noqa: E402
from turbodiffusion.ops.sla import naive, select_blocks, sparse_linear_attention  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
TOPK = 0.1
MOST_TRACKED_HEADS = 4  # dense attention of more takes minutes with its gradient
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Case:
    tokens: int
    heads: int
    width: int
    block_q: int
    block_k: int
    dtype: str

    @property
    def name(self) -> str:
        return (
            f"{self.tokens} tokens, {self.heads} × {self.width}, "
            f"{self.block_q}×{self.block_k}, {self.dtype}"
        )


CASES = [
    Case(8192, heads, width, *blocks, "bf16")
    for heads in (1, 4, 12)
    for width in (64, 128)
    for blocks in ((64, 64), (128, 64))
] + [Case(tokens, 4, 64, 64, 64, dtype) for tokens, dtype in (
    (8192, "fp32"), (2304, "fp32"), (2304, "bf16")
)]  # fmt: skip
"""The last two are the self-attention of the embedded model ``mini``."""


def contestants(case: Case, flex: bool) -> dict[str, Callable[[], object]]:
    dtype, d = DTYPES[case.dtype], case.width
    shape = 1, case.tokens, case.heads, d
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    weight, bias = torch.randn(d, d, generator=generator) / d**0.5, torch.zeros(d)
    geometry = {"topk": TOPK, "block_q": case.block_q, "block_k": case.block_k}
    blocks = select_blocks(q, k, **geometry)

    def sla(*inputs: Tensor, blocks: Tensor | None = None) -> Tensor:
        return sparse_linear_attention(*inputs, **geometry, feature_map="softmax", blocks=blocks)

    def dense(*inputs: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs))

    def tracked(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
        leaves = [x.clone().requires_grad_() for x in inputs]

        def both_ways() -> object:
            out = function(*leaves)
            return torch.autograd.grad(out, leaves, torch.ones_like(out))

        return both_ways

    wide = [x.float() for x in (q, k, v)]
    calls: dict[str, Callable[[], object]] = {
        "dense": lambda: dense(q, k, v),
        "dense fp32": lambda: dense(*wide),
        "SLA": lambda: sla(q, k, v, weight, bias),
        "SLA, blocks given": lambda: sla(q, k, v, weight, bias, blocks=blocks),
        "block map": lambda: select_blocks(q, k, **geometry),
    }
    if case.heads <= MOST_TRACKED_HEADS:
        calls["dense with gradient"] = tracked(dense, q, k, v)
        calls["SLA with gradient"] = tracked(sla, q, k, v, weight, bias)
    if flex:
        calls["FlexAttention, blocks given"] = flex_attention(q, k, v, blocks, case)
    return calls


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, case: Case
) -> Callable[[], object]:
    """The sparse branch alone by PyTorch's compiled kernel."""
    from torch.nn.attention import flex_attention as flex

    kernel = torch.compile(flex.flex_attention, dynamic=False)
    key_blocks = -(-case.tokens // case.block_k)
    full = F.pad(blocks, (0, key_blocks - blocks.shape[-1])).int()
    count = torch.full(blocks.shape[:-1], blocks.shape[-1], dtype=torch.int32)
    none = torch.zeros_like(count), torch.zeros_like(full)
    mask = flex.BlockMask.from_kv_blocks(
        *none, count, full, BLOCK_SIZE=(case.block_q, case.block_k),
        seq_lengths=(case.tokens, case.tokens),
    )  # fmt: skip
    inputs = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    return lambda: kernel(*inputs, block_mask=mask)


def first_head_error(case: Case) -> float:
    """Relative L2 of the operator against the definition, one head, the same blocks."""
    shape = 1, case.tokens, 1, case.width
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(shape, generator=generator).to(DTYPES[case.dtype]) for _ in range(3))
    weight, bias = torch.randn(case.width, case.width, generator=generator), torch.zeros(case.width)
    geometry = {"block_q": case.block_q, "block_k": case.block_k, "feature_map": "softmax"}
    blocks = select_blocks(q, k, topk=TOPK, block_q=case.block_q, block_k=case.block_k)
    out = sparse_linear_attention(q, k, v, weight, bias, topk=TOPK, **geometry, blocks=blocks)
    expected = naive.sparse_linear_attention(q, k, v, weight, bias, blocks, **geometry).double()
    return ((out.double() - expected).norm() / expected.norm()).item()


def measure(case: Case, clock: CpuClock, seconds: float, flex: bool) -> dict[str, object]:
    before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    times, failures = race(contestants(case, flex), clock, seconds=seconds)
    ms = {name: [round(1e3 * s, 2) for s in t.seconds] for name, t in times.items()}
    return {
        **asdict(case),
        "milliseconds": ms,
        "failures": failures,
        "error": first_head_error(case),
        "load": before,
    }


COLUMNS = (
    "case", "dense ms", "fp32 ms", "SLA ms", "×", "blocks given ms", "×", "map ms",
    "with gradient: dense ms", "SLA ms", "×", "error", "load",
)  # fmt: skip


def cells(case: Case, row: dict[str, object]) -> list[str]:
    taken: dict[str, list[float]] = row["milliseconds"]  # type: ignore[assignment]
    ms = {name: statistics.median(values) for name, values in taken.items()}

    def shown(name: str) -> str:
        return f"{ms[name]:.1f}" if name in ms else "–"

    def times(slow: str, fast: str) -> str:
        return f"{ms[slow] / ms[fast]:.2f}" if slow in ms and fast in ms else "–"

    given = "SLA, blocks given"
    tracked = "dense with gradient", "SLA with gradient"
    cells = [
        case.name, shown("dense"), shown("dense fp32"), shown("SLA"), times("dense", "SLA"),
        shown(given), times("dense", given), shown("block map"),
        shown(tracked[0]), shown(tracked[1]), times(*tracked),
        f"{row['error']:.1e}", "" if row["load"] is None else f"{row['load']:.1f}",
    ]  # fmt: skip
    flex = "FlexAttention, blocks given"
    return [*cells, shown(flex)] if flex in ms or flex in row["failures"] else cells  # type: ignore[operator]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", help="of the two files written to benchmarks/results")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each case, 3 rounds least")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--flex", action="store_true", help="FlexAttention too")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    facts = machine.read(torch.device("cpu"), shlex.join(["python", *sys.argv]))
    columns = [*COLUMNS, "FlexAttention, blocks given ms"] if args.flex else list(COLUMNS)
    lines = [f"- {line}" for line in table.heading(facts)]
    lines.append(f"- threads wait: {os.environ['OMP_WAIT_POLICY']}")
    lines += ["", f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    print("\n".join(lines), flush=True)
    clock, rows = CpuClock(), []
    for case in CASES:
        if args.only not in case.name:
            continue
        rows.append(measure(case, clock, args.seconds, args.flex))
        lines.append(f"| {' | '.join(cells(case, rows[-1]))} |")
        print(lines[-1], flush=True)
    if args.name:
        content = {
            "machine": facts.as_json(),
            "wait": os.environ["OMP_WAIT_POLICY"],
            "topk": TOPK,
            "rows": rows,
        }
        (RESULTS / f"{args.name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        (RESULTS / f"{args.name}.md").write_text("\n".join(lines) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
