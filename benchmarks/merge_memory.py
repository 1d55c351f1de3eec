"""Measure the memory that merging, adding a LoRA and quantising take on files of the 14B layout.

The inputs are made full-sized but sparse: their tensors were never written and read as zeros, so
they take no room; what is computed from them does, one file at a time. Memory does not depend on
the values. Each command runs in a process of its own, whose largest resident size is read from the
kernel.

    python benchmarks/merge_memory.py FOLDER [--blocks 40] [--record NAME]
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from turbodiffusion.models.cards import DIT_14B, DiTConfig
from turbodiffusion.weights.dtypes import BY_NAME
from turbodiffusion.weights.spec import Spec, TensorSpec, dit_spec, spec_bytes

ROOT = Path(__file__).resolve().parent.parent
RANK = 128
RUN = """
import sys, time
from pathlib import Path
from turbodiffusion.cli.main import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text()
print(next(n for n in status.splitlines() if n.startswith("VmHWM")).split()[1], time.process_time())
sys.exit(code)
"""


@dataclass(frozen=True)
class Measured:
    """One command: bytes read and written, largest resident size, seconds of the processor."""

    name: str
    read: int
    written: int
    peak: int
    seconds: float


def sparse(path: Path, spec: Spec) -> Path:
    """A safetensors file of these tensors that takes no room on the disk."""
    table, end = {}, 0
    for name, tensor in spec.items():
        offsets = [end, end := end + tensor.nbytes]
        code = BY_NAME[tensor.dtype].code
        table[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def lora_spec(network: Spec) -> Spec:
    """Products of rank :data:`RANK` for every linear of the blocks, in ComfyUI's names."""
    found: Spec = {}
    for name, one in network.items():
        if name.startswith("blocks.") and name.endswith(".weight") and len(one.shape) == 2:
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            out, into = one.shape
            found[f"{key}.lora_up.weight"] = TensorSpec((out, RANK), "bfloat16")
            found[f"{key}.lora_down.weight"] = TensorSpec((RANK, into), "bfloat16")
    return found


def measure(name: str, words: list[str | Path], inputs: list[Path], out: Path) -> Measured:
    """Run one command of ours; the file it writes is removed.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, words)], cwd=ROOT, text=True, check=False,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout}")
    size = out.stat().st_size
    out.unlink()
    peak, seconds = done.stdout.split()[-2:]
    read = sum(path.stat().st_size for path in inputs)
    return Measured(name, read, size, 1024 * int(peak), float(seconds))


def measure_all(folder: Path, config: DiTConfig) -> list[Measured]:
    """The three commands, one after the other."""
    dense, out = dit_spec(config, sla=False), folder / "out.safetensors"
    needed, free = math.ceil(1.01 * spec_bytes(dense)), shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(f"{needed / 1e9:.1f} GB are needed in {folder}, {free / 1e9:.1f} GB are free.")
    base, minus = (sparse(folder / f"{n}.safetensors", dense) for n in ("student", "teacher"))
    plus = sparse(folder / "sla.safetensors", dit_spec(config))
    lora = sparse(folder / "lora.safetensors", lora_spec(dense))
    try:
        return [
            measure("merge --plus --minus", ["merge", base, out, "--plus", plus, "--minus", minus],
                    [base, plus, minus], out),
            measure("merge --lora", ["merge", base, out, "--lora", lora], [base, lora], out),
            measure("quantize", ["quantize", base, out], [base], out),
        ]  # fmt: skip
    finally:
        for path in (base, minus, plus, lora, out):
            path.unlink(missing_ok=True)


def table(rows: list[Measured]) -> str:
    """As Markdown."""
    lines = ["| command | read GB | written GB | peak memory GB | CPU seconds |",
             "|---|---:|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| `{r.name}` | {r.read / 1e9:.1f} | {r.written / 1e9:.1f} | {r.peak / 1e9:.2f} | "
        f"{r.seconds:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="for the files, on a disk with room for one")
    parser.add_argument("--blocks", type=int, default=DIT_14B.num_layers, help="of the network")
    parser.add_argument("--record", metavar="NAME", help="write benchmarks/results/NAME.json, .md")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    config = replace(DIT_14B, num_layers=args.blocks)
    rows = measure_all(args.folder, config)
    print(table(rows))
    if args.record:
        import torch

        from turbodiffusion.bench.machine import read

        command = f"python benchmarks/merge_memory.py FOLDER --blocks {args.blocks}"
        machine = read(torch.device("cpu"), command).as_json()
        path = ROOT / "benchmarks" / "results" / f"{args.record}.json"
        record = {"machine": machine, "blocks": args.blocks, "rows": [asdict(r) for r in rows]}
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        heads = "\n".join(f"- {name}: {value}" for name, value in machine.items() if value)
        text = f"# Memory of the weight tools on 14B files ({args.blocks} blocks)\n\n{heads}\n\n"
        path.with_suffix(".md").write_text(text + table(rows) + "\n", "utf-8")


if __name__ == "__main__":
    main()
