"""Time the launch candidates of every kernel on this GPU and print them sorted.

    python benchmarks/tune_ops.py --seconds 60 --out tune.json

Every candidate is checked against the definition first; one that is wrong or does not compile is
listed with the reason and not timed. The results are for the config classes in
``turbodiffusion/ops/*/config.py``; see docs/bench.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    from turbodiffusion.bench import machine, table
    from turbodiffusion.bench.run import CPU_GRID, QUICK_GRID, REDUCED_HEADS, choose_device
    from turbodiffusion.bench.shapes import Geometry, named
    from turbodiffusion.bench.tune import tunables, tune

    known = [t.name for t in tunables()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each operator")
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="OPERATOR")
    parser.add_argument("--shapes", nargs="+", default=["1.3b-480p", "14b-720p"])
    parser.add_argument(
        "--blocks", nargs="+", default=["128x64"], help="queries x keys of sparse attention"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--commit")
    parser.add_argument("--out", type=Path, help="JSON file, written after every row")
    args = parser.parse_args()

    device = choose_device(args.device)
    facts = machine.read(device, shlex.join(["python", *sys.argv]), args.commit)
    print("\n".join(table.heading(facts)), flush=True)
    sizes = named(args.shapes)
    if device.type == "cpu":
        print("The kernels do not run on a CPU: what is timed here is the portable form.")
        sizes = [s.reduce(QUICK_GRID if args.seconds < 60 else CPU_GRID, REDUCED_HEADS)
                 for s in sizes]  # fmt: skip
    geometries = [Geometry(0.1, *map(int, text.split("x"))) for text in args.blocks]
    results = []
    for tunable in tunables():
        if tunable.name not in args.only:
            continue
        print(f"\n{tunable.name}: {tunable.owner.__name__}.{tunable.method}", flush=True)
        for result in tune(tunable, sizes, geometries, device, args.seconds):
            print("\n".join(result.lines()), flush=True)
            results.append(result.as_json())
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                content = {"machine": facts.as_json(), "results": results}
                args.out.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
