"""Compare the planner with what really happens on this machine, and record the speeds for it.

Each case runs in a process of its own, so that the largest resident size is its own. The speeds of
the first case of a model are what the others' seconds are predicted from: the table shows how far
they carry. ``--record`` writes them to ``turbodiffusion/memory/measured.json``, which plans on such
a device then use.

    python benchmarks/check_plan.py [--model NAME] [--device cuda] [--record]
    python benchmarks/check_plan.py --model TurboWan2.1-T2V-1.3B-480P-quant --synthetic DIR
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZES = {
    "micro-teacher": [(64, 64, 17, 50), (64, 64, 17, 20), (128, 64, 17, 20), (128, 128, 9, 20),
              (192, 128, 17, 10)],
    "480P": [(832, 480, 81, 4), (832, 480, 33, 4), (1280, 720, 81, 4)],
    "720P": [(1280, 720, 81, 4), (832, 480, 81, 4), (1280, 720, 33, 4)],
}  # fmt: skip
"""By the end of a model's name: width, height, frames, steps; the first one is the reference."""


def measure(model: str, case: tuple[int, int, int, int], device: str | None) -> dict[str, Any]:
    """Run one case three times in this process: the best seconds, the largest bytes."""
    import torch

    from turbodiffusion.memory.host import peak_ram
    from turbodiffusion.pipeline.load import load
    from turbodiffusion.pipeline.placement import apply
    from turbodiffusion.pipeline.planning import plan_files
    from turbodiffusion.pipeline.request import Request, resolve
    from turbodiffusion.weights.find import find

    width, height, frames, steps = case
    files = find(model)
    request = resolve(
        Request("a red circle moving right on a black background", width=width, height=height,
                frames=frames, steps=steps),
        files.card,
    )  # fmt: skip
    planned = plan_files(files, [request], {"device": device} if device else {})
    pipe = load(files, device=device)
    apply(pipe, planned.plan.settings)
    on_gpu = pipe.device.type == "cuda"
    # The CPU time of one thread is its wall time on a machine that nobody shares.
    alone = not on_gpu and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}

    def phase(name: str, run: Any) -> Any:
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats(pipe.device)
        start = clock()
        out = run()
        if on_gpu:
            torch.cuda.synchronize()
            peaks[name] = torch.cuda.max_memory_reserved(pipe.device)
        spent = clock() - start
        seconds[name] = min(spent, seconds.get(name, spent))
        return out

    for _ in range(3):  # the first run compiles kernels and reads the files
        texts = [request.prompt, request.negative or ""][: 2 if request.guided else 1]
        rows = phase("text", lambda texts=texts: [pipe.encode_prompts([t]) for t in texts])
        negative = rows[1] if request.guided else None
        latent = phase("denoise", lambda a=rows[0], b=negative: pipe.denoise([request], a, b))
        phase("decode", lambda z=latent: sum(f.shape[1] for f in pipe.decode(z)))
    return {
        "device": planned.device, "card": files.card.name, "quantised": pipe.any_expert.quantized,
        "attention": planned.attention.kind, "cores": planned.plan.machine.cores,
        "seconds": seconds, "gpu": peaks, "host": peak_ram(),
        "streamed": bool(planned.plan.settings.streamed or planned.plan.settings.tile),
    }  # fmt: skip


def child(model: str, case: tuple[int, ...], device: str | None) -> dict[str, Any]:
    """:func:`measure` in a process of its own."""
    words = [sys.executable, __file__, "--model", model, "--case", json.dumps(case)]
    done = subprocess.run(
        words + (["--device", device] if device else []), check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def write_synthetic_files(model: str, folder: Path) -> None:
    """Random weights of a released model with everything it needs: time and memory do not depend
    on values. 14 GB for the smallest one, most of it text encoder."""
    from turbodiffusion.mini.captions import WORDS
    from turbodiffusion.mini.vocabulary import build_tokenizer
    from turbodiffusion.models.cards import card
    from turbodiffusion.weights.catalogue import BASE_FILES, dit_files
    from turbodiffusion.weights.synthetic import write_synthetic

    quantised = model.endswith("-quant")
    one = card(model.removesuffix("-quant"))
    wanted: list[tuple[str, str, bool]] = [
        (remote.name, "dit", quantised) for remote in dit_files(one, quantised).values()
    ]
    wanted += [(BASE_FILES[role].path, role, False) for role in ("vae", "text_encoder")]
    folder.mkdir(parents=True, exist_ok=True)
    for name, role, eight in wanted:
        if not (folder / name).exists():
            write_synthetic(one, folder / name, eight, role=role)
    build_tokenizer(list(WORDS), folder / "tokenizer.json")
    os.environ["TURBODIFFUSION_MODELS"] = str(folder)


def shares(
    found: dict[str, Any], model: str, case: tuple[int, ...], device: str | None
) -> list[Any]:
    """What the planner learns from a measured case."""
    from turbodiffusion.memory.plan import floor_seconds
    from turbodiffusion.memory.work import phases
    from turbodiffusion.pipeline.rates import Rate

    planned = predict(found, model, case, device)
    layout = planned.layouts[0]
    return [
        Rate(found["device"], found["card"], w.name, found["quantised"], found["attention"],
             round(floor / found["seconds"][w.name], 5))
        for w in phases(planned.shape, layout.sizes, planned.attention, layout.quantised)
        if (floor := floor_seconds(w, planned.plan.machine)) and w.name in found["seconds"]
    ]  # fmt: skip


def predict(found: dict[str, Any], model: str, case: tuple[int, ...], device: str | None) -> Any:
    """The plan of a case with the rates that are in force now."""
    from turbodiffusion.pipeline.planning import plan_files
    from turbodiffusion.pipeline.request import Request, resolve
    from turbodiffusion.weights.find import find

    width, height, frames, steps = case
    files = find(model, quantized=found["quantised"] or None)
    request = resolve(
        Request("-", width=width, height=height, frames=frames, steps=steps), files.card
    )
    planned = plan_files(files, [request], {"device": device} if device else {})
    machine = replace(planned.plan.machine, cores=found["cores"])
    return replace(planned, plan=replace(planned.plan, machine=machine))


def main() -> None:
    """Measure, print the table, and perhaps record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="micro-teacher")
    parser.add_argument("--device")
    parser.add_argument("--synthetic", type=Path, metavar="DIR",
                        help="use random weights of the model, written there")  # fmt: skip
    parser.add_argument("--record", action="store_true", help="keep the speeds in the package")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.model, tuple(json.loads(args.case)), args.device)))
        return
    from turbodiffusion.pipeline import planning

    if args.synthetic:
        write_synthetic_files(args.model, args.synthetic)
    known = args.model.removesuffix("-quant")
    cases = next(v for k, v in SIZES.items() if known.endswith(k) or known.startswith(k))
    measured = [child(args.model, case, args.device) for case in cases]
    learned = shares(measured[0], args.model, cases[0], args.device)
    planning.recorded = lambda: learned
    print(f"{args.model} on {measured[0]['device']}, {platform.machine()}, "
          f"{measured[0]['cores']} cores, {commit()}, {datetime.date.today()}\n")  # fmt: skip
    print(f"{'case':<22}{'phase':<9}{'seconds':>9}{'planned':>9}{'ratio':>7}"
          f"{'GPU MiB':>10}{'planned':>9}{'host MiB':>10}{'planned':>9}")  # fmt: skip
    for i, (case, found) in enumerate(zip(cases, measured, strict=True)):
        plan = predict(found, args.model, case, args.device).plan
        width, height, frames, steps = case
        for phase in plan.phases:
            name = f"{width}x{height}x{frames}, {steps}" if phase.name == "text" else ""
            spent, planned = found["seconds"].get(phase.name, 0.0), phase.seconds or 0.0
            ratio = "fitted" if i == 0 else f"{planned / spent:.2f}" if spent > 0.02 else "-"
            gpu = f"{found['gpu'].get(phase.name, 0) / 2**20:>10.0f}{phase.gpu / 2**20:>9.0f}"
            host = f"{found['host'] / 2**20:>10.0f}{plan.host_peak / 2**20:>9.0f}"
            tail = host if phase.name == "text" else ""
            print(f"{name:<22}{phase.name:<9}{spent:>9.3f}{planned:>9.3f}{ratio:>7}{gpu}{tail}")
    if args.record:
        record(learned, measured[0]["cores"])


def record(learned: list[Any], cores: int) -> None:
    """Replace this device's and model's rows of the shipped file."""
    import torch

    from turbodiffusion.pipeline.rates import SHIPPED, as_row

    rows = json.loads(SHIPPED.read_text("utf-8")) if SHIPPED.exists() else []
    new = {(r.device, r.card, r.quantised) for r in learned}
    rows = [r for r in rows if (r["device"], r["card"], r["quantised"]) not in new]
    note = {"cores": cores, "torch": torch.__version__, "commit": commit(),
            "date": str(datetime.date.today())}  # fmt: skip
    rows += [{**as_row(r), **note} for r in learned]
    SHIPPED.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(f"\nrecorded {len(learned)} speeds in {SHIPPED.relative_to(ROOT)}")


def commit() -> str:
    """Abbreviated commit of the checkout."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
