"""``turbodiffusion plan``: will it fit, with which settings, and how long will it take."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turbodiffusion.models.cards import ModelCard
    from turbodiffusion.pipeline.planning import Planned
    from turbodiffusion.pipeline.request import Request
    from turbodiffusion.weights.download import Item

SCHEMA = 1
"""Version of the JSON form."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    p = subparsers.add_parser(
        "plan", help="say whether a video fits this machine, and how long it will take",
        description="Memory by phase, disk, download time, seconds and the settings that would be "
        "chosen, for this machine or one that is described with --gpu. Nothing is loaded and no "
        "network is touched. Exit status 4 if nothing fits.",
    )  # fmt: skip
    p.add_argument("model", nargs="?", help="a name that `models` lists; default: the embedded one")
    p.add_argument("--resolution", help="480p, 720p, 480, 512, 720 or WIDTHxHEIGHT")
    p.add_argument("--aspect", help="16:9, 9:16, 4:3, 3:4 or 1:1")
    p.add_argument("--frames", type=int, help="length of the video in frames")
    p.add_argument("--steps", type=int, help="network calls")
    p.add_argument("--baseline", action="store_true", default=None,
                   help="the unaccelerated sampler with guidance")  # fmt: skip
    p.add_argument("--quantised", choices=("auto", "yes", "no"), default="auto",
                   help="8-bit weights; auto: where the others do not fit")  # fmt: skip
    p.add_argument("--device", help="cpu, cuda or cuda:1 of this machine")
    p.add_argument("--gpu", help='another machine\'s GPU, such as "RTX 5090"; `list` shows all')
    p.add_argument("--vram", type=float, metavar="GB", help="its memory, if not the usual one")
    p.add_argument("--ram", type=float, metavar="GB", help="host memory there (default: twice)")
    p.add_argument("--mbit", type=float, default=100.0, metavar="N",
                   help="Mbit/s of the connection, for the download time")  # fmt: skip
    p.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the plan; 4 if nothing fits."""
    if args.gpu == "list":
        return _list()
    from turbodiffusion.models.cards import card
    from turbodiffusion.pipeline.jobs import Job, request_of
    from turbodiffusion.pipeline.load import pick_device
    from turbodiffusion.pipeline.planning import described_machine, plan_card, this_machine
    from turbodiffusion.pipeline.request import resolve
    from turbodiffusion.weights import places
    from turbodiffusion.weights.find import default_name

    name = args.model or default_name()
    quantised = "yes" if name.endswith("-quant") else args.quantised
    one = places.embedded_card(name) or card(name.removesuffix("-quant"))
    wanted = ("resolution", "aspect", "frames", "steps", "baseline")
    settings = {k: getattr(args, k) for k in wanted if getattr(args, k) is not None}
    request = resolve(request_of(Job({"prompt": "-", **settings}), one), one)
    if args.gpu or args.vram:
        device = None
        machine = described_machine(args.gpu or "GPU", args.vram, args.ram)
    else:
        device = pick_device(args.device)
        machine = this_machine(device)
    planned = plan_card(one, request, machine, quantised, device)
    files = _files(one, planned.plan.settings.quantised)
    if args.json:
        print(json.dumps(as_json(planned, request, files, args.mbit), indent=2))
    else:
        for line in lines(planned, request, files, args.mbit):
            print(line)
        if device is None and machine.rates is None:
            print("This GPU is not in the table and was taken for one that the kernels run on "
                  "(capability 8.0 or newer); an older one needs more memory.")  # fmt: skip
    return 0 if planned.plan.fits else 4


def _list() -> int:
    from turbodiffusion.memory.gpus import GIB, GPUS

    print(f"{'GPU':<24}{'memory':>9}{'bf16':>10}{'int8':>10}{'bandwidth':>12}{'host link':>11}")
    for name, one in GPUS.items():
        rates = f"{one.bf16 / 1e12:>7.0f} T/s{one.int8 / 1e12:>6.0f} T/s"
        moves = f"{one.bandwidth / 1e9:>7.0f} GB/s{one.link / 1e9:>6.0f} GB/s"
        print(f"{name:<24}{one.memory / GIB:>5g} GiB{rates}{moves}")
    return 0


def _files(card: ModelCard, quantised: bool) -> list[Item]:
    from turbodiffusion.weights.download import needed

    return [] if card.embedded else needed(card, quantised)


def lines(planned: Planned, request: Request, files: list[Item], mbit: float) -> list[str]:
    """The plan as text."""
    from turbodiffusion.memory.plan import gib
    from turbodiffusion.pipeline.planning import duration
    from turbodiffusion.weights.download import gigabytes

    made, card = planned.plan, planned.shape.card
    where = made.machine.name
    if made.machine.gpu:
        where += f", {gib(made.machine.gpu)} of GPU memory free"
    out = [
        f"{card.name}: {request.width}×{request.height}, {request.frames} frames, "
        f"{request.steps} step{'s' if request.steps != 1 else ''}"
        f"{' with guidance' if request.guided else ''}",
        f"on {where}, {gib(made.machine.ram)} of host memory free",
        "",
        f"{'phase':<11}{'GPU memory':>12}{'host memory':>13}{'time':>10}  basis of the time",
    ]
    for p in made.phases:
        on_gpu = gib(p.gpu) if made.machine.gpu else "-"
        time = duration(p.seconds) if p.seconds is not None else "?"
        out.append(f"{p.name:<11}{on_gpu:>12}{gib(p.host):>13}{time:>10}  {p.basis}")
    total = duration(made.seconds) if made.seconds is not None else "?"
    peak = gib(made.gpu_peak) if made.machine.gpu else "-"
    out += [f"{'peak, sum':<11}{peak:>12}{gib(made.host_peak):>13}{total:>10}", ""]
    out += [f"- {step}" for step in made.steps]
    plain = "float32" if planned.shape.element == 4 else "bf16"
    weights = "8-bit" if made.settings.quantised else plain
    out.append(f"- {weights} weights, {planned.attention.kind} attention")
    if files:
        missing = sum(i.remote.bytes for i in files if i.here is None)
        disk = f"- disk: {gigabytes(sum(i.remote.bytes for i in files))} in all"
        if missing:
            time = duration(missing * 8 / mbit / 1e6)
            disk += f", {gigabytes(missing)} to download ({time} at {mbit:g} Mbit/s)"
        out.append(disk)
    out.append("")
    out.append("It fits." if made.fits else f"It does not fit: {made.problem}.")
    if not made.machine.gpu and not card.embedded:
        out.append("Without a GPU this model is impractical.")
    return out


def as_json(planned: Planned, request: Request, files: list[Item], mbit: float) -> dict[str, Any]:
    """The plan as JSON values: bytes and seconds."""
    made = planned.plan
    missing = sum(i.remote.bytes for i in files if i.here is None)
    return {
        "schema": SCHEMA,
        "model": planned.shape.card.name,
        "request": {
            k: getattr(request, k) for k in ("width", "height", "frames", "steps", "baseline")
        },
        "machine": {
            "name": made.machine.name,
            "gpu_memory": made.machine.gpu,
            "host_memory": made.machine.ram,
            "in_table": made.machine.rates is not None,
        },
        "fits": made.fits,
        "problem": made.problem or None,
        "settings": {**vars(made.settings), "attention": planned.attention.kind},
        "steps": list(made.steps),
        "phases": [vars(phase) for phase in made.phases],
        "gpu_peak": made.gpu_peak,
        "host_peak": made.host_peak,
        "seconds": made.seconds,
        "disk": sum(i.remote.bytes for i in files),
        "download": missing,
        "download_seconds": missing * 8 / mbit / 1e6,
    }
