"""Times operators of this checkout against those of another one, and their launch candidates.

    git worktree add build/before HEAD~10
    python benchmarks/against.py --other build/before --out results/against.json

Both checkouts run in one process, in turn, from a cold cache: the other one's package is copied
under another name. Before anything is timed, every contestant's result is compared with the naive
form. Kernels are compiled by child processes at the same time first, since that takes longer than
all the rest. ``--only`` names groups:

    sagesla   the whole operator in both cuts, and the launches of its attention kernel
    prepare   the passes around it
    sla       the whole operator in bf16, and the launches of its attention kernel
    gelu      the first linear of the FFN with GELU and quantisation
    norm      layer norm, modulated and quantised, at 1536 and 5120
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
OTHER = "turbodiffusion_other"
SIZES = {"1.3b": (32760, 12, 8960), "14b": (32760, 40, 13824)}  # tokens, heads of 128, FFN width
GROUPS = ("sagesla", "gelu", "sla", "prepare", "norm")
BOUND = {"sagesla": 5e-3, "sla": 4e-3, "gelu": 1e-3, "norm": 2e-3}
"""Relative L2 to the naive form on the same blocks; integers may differ by a step on a tie."""
SMALL = (2040, 2, 1280)  # where results are compared; blocks are as even or odd as at full size
CHILDREN = 3  # that compile a group

PREDICTED = """
Predicted for an H100 (14B, 480p; ms): sagesla 128×64 in two parts 3.9 (attention 2.2, keys 0.75,
queries 0.45, pooling and map 0.4), 64×128 5.2 (attention as before, bound by the L2 cache: 3.1),
before 5.7; other queries 1.0 to 0.45, state alone 0.63 to 0.35. sla 6.9 to 6.4, in two parts 5.
gelu 5.54 to 5.0, at 1.3B 1.45 to 1.15. norm at 1536 with two rows a warp, which share scale and
shift: 0.06 instead of 0.072.
"""

Entrants = dict[str, Callable[[], Any]]
Build = Callable[..., Entrants]


def copy_other(checkout: Path, folder: Path) -> None:
    """The package of ``checkout`` in ``folder`` under the name OTHER."""
    target = folder / OTHER
    shutil.copytree(checkout / "turbodiffusion", target, ignore=shutil.ignore_patterns("weights"))
    for path in target.rglob("*.py"):
        text = path.read_text("utf-8")
        path.write_text(re.sub(r"\bturbodiffusion\b(?=[.\s])", OTHER, text), "utf-8")


@contextmanager
def chosen(owner: type, method: str, answer: Any) -> Iterator[None]:
    """Have a heuristic of a launch config give ``answer``."""
    original = owner.__dict__[method]
    setattr(owner, method, classmethod(lambda cls, *_, **__: answer))
    try:
        yield
    finally:
        setattr(owner, method, original)


def with_choice(
    call: Callable[[], Any], owner: type, method: str, answer: Any
) -> Callable[[], Any]:
    def run() -> Any:
        with chosen(owner, method, answer):
            return call()

    return run


def packages(other: bool) -> list[tuple[str, str]]:
    """(label, package) of the contestants."""
    return [("this", "turbodiffusion"), *([("other", OTHER)] if other else [])]


def randn(*size: int, seed: int, scale: float = 1.0) -> Any:
    import torch

    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.empty(size, dtype=torch.bfloat16, device="cuda")
    return x.normal_(generator=generator).mul_(scale)


def attention_inputs(tokens: int, heads: int) -> tuple[Any, ...]:
    q, k, v = (randn(1, tokens, heads, 128, seed=i) for i in range(3))
    k = k + randn(1, 1, heads, 128, seed=3)
    return q, k, v, randn(128, 128, seed=4, scale=128**-0.5), randn(128, seed=5, scale=0.1)


def listed(inputs: tuple[Any, ...], block_q: int, block_k: int) -> dict[str, Any]:
    """The blocks to use, where results are compared: two right choices may differ."""
    if inputs[0].shape[1] != SMALL[0]:
        return {}
    from turbodiffusion.ops.sla import select_blocks

    q, k, *_ = inputs
    return {"blocks": select_blocks(q, k, topk=0.1, block_q=block_q, block_k=block_k)}


def sagesla(tokens: int, heads: int, _: int, *, other: bool) -> Entrants:
    inputs = attention_inputs(tokens, heads)
    found: Entrants = {}
    for label, package in packages(other):
        sage = importlib.import_module(f"{package}.ops.sage")
        config = importlib.import_module(f"{package}.ops.sage.config").CoreConfig
        for block_q, block_k in ((128, 64), (64, 128)):

            def call(sage: Any = sage, block_q: int = block_q, block_k: int = block_k) -> Any:
                return sage.sage_sparse_linear_attention(
                    *inputs, topk=0.1, block_q=block_q, block_k=block_k, feature_map="softmax",
                    **listed(inputs, block_q, block_k),
                )  # fmt: skip

            name = f"{label} {block_q}×{block_k}"
            found[name] = call
            if label == "other":
                continue
            launches = [
                config(4, 2, parts=2), config(4, 4, parts=2), config(8, 2), config(8, 3),
                config(8, 2, 128),
            ] if block_q == 128 else [config(4, 1), config(4, 3), config(4, 2, 168)]  # fmt: skip
            for c in launches:
                text = f"w{c.num_warps} s{c.num_stages} r{c.registers} p{c.parts}"
                found[f"{name} {text}"] = with_choice(call, config, "pick", c)
    return found


def prepare(tokens: int, heads: int, _: int, *, other: bool) -> Entrants:
    q, k, v, weight, bias = attention_inputs(tokens, heads)
    found: Entrants = {}
    for label, package in packages(other):
        module = importlib.import_module(f"{package}.ops.sage.triton")
        config = importlib.import_module(f"{package}.ops.sage.config").PrepareConfig
        sla = importlib.import_module(f"{package}.ops.sla.triton")
        out = q.new_empty(q.shape)
        found[f"{label} state alone"] = partial(sla.token_product, k, v, "softmax")
        for block_q, block_k in ((128, 64), (64, 128)):

            def keys(module: Any = module, block_k: int = block_k) -> Any:
                return module.prepare_keys(
                    k, v, block_k, "fp8", feature_map="softmax", proj_weight=weight
                )

            made = module.prepare_keys(
                k, v, 64, "fp8", feature_map="softmax", proj_weight=weight
            )  # fmt: skip

            def queries(
                module: Any = module, block_q: int = block_q, out: Any = out, made: Any = made
            ) -> Any:
                return module.prepare_queries(q, block_q, made, bias, out)

            found[f"{label} keys {block_k}"] = keys
            found[f"{label} queries {block_q}"] = queries
            if label == "other":
                continue
            if block_k == 64:
                for c in (config(8, 3), config(8, 2, 8), config(8, 2, 2)):
                    name = f"{label} keys {block_k} s{c.num_stages} ×{c.programs}"
                    found[name] = with_choice(keys, config, "keys", c)
            for c in (config(8, 2, 4), config(4, 2, 12), config(8, 2, 8, 64), config(4, 2, 8, 64)):
                name = f"{label} queries {block_q} w{c.num_warps} ×{c.programs} rows{c.rows}"
                found[name] = with_choice(queries, config, "queries", c)
    return found


def sla(tokens: int, heads: int, _: int, *, other: bool) -> Entrants:
    inputs = attention_inputs(tokens, heads)
    found: Entrants = {}
    for label, package in packages(other):
        operator = importlib.import_module(f"{package}.ops.sla").sparse_linear_attention
        config = importlib.import_module(f"{package}.ops.attention.config")

        def call(operator: Any = operator) -> Any:
            return operator(
                *inputs, topk=0.1, block_q=128, block_k=64, feature_map="softmax",
                **listed(inputs, 128, 64),
            )  # fmt: skip

        found[label] = call
        if label == "other":
            continue
        for c in config.candidates((9, 0)):
            if c.tile_q == 128 and (c.num_warps == 8 or c.parts == 2):
                text = f"{c.tile_q}×{c.tile_k} w{c.num_warps} s{c.num_stages} p{c.parts}"
                found[f"{label} {text}"] = with_choice(call, config.AttentionConfig, "forward", c)
    return found


def gelu(tokens: int, heads: int, ffn: int, *, other: bool) -> Entrants:
    found: Entrants = {}
    x = randn(max(tokens, 2100), heads * 128, seed=0)  # Hopper's kernel begins at 2048 rows
    weight = randn(ffn, heads * 128, seed=1, scale=(heads * 128) ** -0.5)
    bias = randn(ffn, seed=2)
    for label, package in packages(other):
        linear = importlib.import_module(f"{package}.ops.linear")
        quantised, parts = linear.quantize_group(x), linear.quantize_weight(weight)
        found[label] = partial(linear.int8_linear_gelu, quantised, *parts, bias)
    return found


def norm(tokens: int, heads: int, _: int, *, other: bool) -> Entrants:
    width = heads * 128
    found: Entrants = {}
    x = randn(1, tokens, width, seed=0)
    scale, shift = randn(1, 1, width, seed=1).float(), randn(1, 1, width, seed=2).float()
    for label, package in packages(other):
        module = importlib.import_module(f"{package}.ops.norm")
        config = importlib.import_module(f"{package}.ops.norm.config")

        def call(f: Any = module.layer_norm_modulate_quantize) -> Any:
            return f(x, scale, shift, 1e-6)

        found[label] = call
        if label == "this":
            for c in config.candidates(90, width):
                text = f"{c.count}·{c.chunk} rows{c.rows} w{c.num_warps}"
                found[f"{label} {text}"] = with_choice(call, config.RowConfig, "quantising", c)
    return found


def distance(call: Callable[[], Any]) -> float:
    """Relative L2 of a result to that of the naive form."""
    import torch

    from turbodiffusion.bench.network import forced

    def numbers(result: Any) -> Any:
        if isinstance(result, torch.Tensor):
            return result.double()
        q, scale = result
        return (q.double().unflatten(-1, (-1, 128)) * scale.double().unsqueeze(-1)).flatten(-2)

    actual = numbers(call())
    with forced("naive"):
        expected = numbers(call())
    error = torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)
    return float(error)


def check(group: str, share: int, sizes: list[str], other: bool) -> dict[str, str]:
    """What is wrong with a share of a group's contestants; compiles them at full size too."""
    build: Build = globals()[group]
    faults: dict[str, str] = {}
    for size in [SMALL, *(SIZES[name] for name in sizes)]:
        for name, call in list(build(*size, other=other).items())[share::CHILDREN]:
            try:
                if group not in BOUND or size != SMALL:
                    call()
                    continue
                error = distance(call)
                print(f"  {group:<8} {name:<34} error {error:.2e}", flush=True)
                if not error <= BOUND[group]:
                    faults[name] = f"error {error:.2e}, bound {BOUND[group]:.0e}"
            except Exception as failure:
                faults[name] = f"{type(failure).__name__}: {str(failure)[:200]}"
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--other", type=Path, help="another checkout")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["14b", "1.3b"])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each group and size")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--warm", metavar="GROUP", help="compile and check a share of a group, end")
    parser.add_argument("--share", type=int, default=0)
    args = parser.parse_args()
    other = args.other is not None or bool(os.environ.get(OTHER))
    begin = time.monotonic()
    if args.warm:
        print(json.dumps(check(args.warm, args.share, args.sizes, other)))
        return 0

    folder = tempfile.mkdtemp()
    if args.other:
        copy_other(args.other, Path(folder))
        sys.path.insert(0, folder)
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", OTHER: "1" if other else "",
    }  # fmt: skip
    children = [
        (group, subprocess.Popen(
            [
                sys.executable, __file__, "--warm", group, "--share", str(share),
                "--sizes", *args.sizes,
            ],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ))
        for group in args.only
        for share in range(CHILDREN)
    ]  # fmt: skip
    results: list[dict[str, Any]] = []
    wrong: dict[str, dict[str, str]] = {group: {} for group in args.only}
    for group, child in children:
        text = child.communicate()[0]
        print(text, end="", flush=True)
        last = (text.strip().splitlines() or ["nothing was said"])[-1]
        wrong[group] |= json.loads(last) if last.startswith("{") else {"*": last}
    print(f"compiled and checked after {time.monotonic() - begin:.0f} s", flush=True)

    import torch

    from turbodiffusion.bench.timing import clock, race

    print(PREDICTED)
    ticker = clock(torch.device("cuda"))
    for group in args.only:
        for size in args.sizes:
            build: Build = globals()[group]
            calls = build(*SIZES[size], other=other)
            calls = {name: call for name, call in calls.items() if name not in wrong[group]}
            times, failures = race(calls, ticker, seconds=args.seconds)
            print(f"\n{group} {size}")
            for name, taken in sorted(times.items(), key=lambda pair: pair[1].median):
                print(f"  {taken.median * 1e3:9.3f} ms ±{100 * taken.spread:4.1f} %  {name}")
                results.append(
                    {
                        "group": group, "size": size, "name": name, "ms": taken.median * 1e3,
                        "spread": taken.spread,
                    }
                )  # fmt: skip
            for name, why in {**failures, **wrong[group]}.items():
                print(f"          –  {name}: {why}")
            sys.stdout.flush()
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                content = {"gpu": torch.cuda.get_device_name(), "wrong": wrong, "rows": results}
                args.out.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
            del calls
            torch.cuda.empty_cache()
    print(f"\ndone after {time.monotonic() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
