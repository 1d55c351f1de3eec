"""What the two released scripts share: flags, files, and one run of the pipeline.

The flags describe a checkpoint that describes itself, so where the two disagree the file wins and
the flag becomes a warning. Frame counts are rounded down, as the released scripts do silently.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from turbodiffusion.errors import UsageError, run_guarded, show_warning

VAE = "checkpoints/Wan2.1_VAE.pth"
TEXT_ENCODER = "checkpoints/models_t5_umt5-xxl-enc-bf16.pth"
SEED_HELP = (
    "seed of the noise, which is drawn on the CPU here and means the same on every machine; the "
    "scripts as first released drew it on the GPU, so their seeds give other videos"
)


def make_parser(description: str, resolution: str) -> argparse.ArgumentParser:
    """A parser with the flags that both scripts have."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--num_samples", type=int, default=1,
                   help="videos in one file, side by side, with seeds counting up")  # fmt: skip
    p.add_argument("--num_steps", type=int, choices=(1, 2, 3, 4), default=4, help="network calls")
    p.add_argument("--vae_path", default=VAE, help="autoencoder")
    p.add_argument("--text_encoder_path", default=TEXT_ENCODER, help="umT5 encoder")
    p.add_argument("--num_frames", type=int, default=81, help="length; rounded down to 4n+1")
    p.add_argument("--prompt", help="what to show; required")
    p.add_argument("--resolution", default=resolution, help="480p, 720p, 480, 512 or 720")
    p.add_argument("--aspect_ratio", default="16:9", help="16:9, 9:16, 4:3, 3:4 or 1:1")
    p.add_argument("--seed", type=int, default=0, help=SEED_HELP)
    p.add_argument("--save_path", default="output/generated_video.mp4", help="file to write")
    p.add_argument("--attention_type", choices=("sla", "sagesla", "original"), default="sagesla",
                   help="original is dense and ignores the projection in the file")  # fmt: skip
    p.add_argument("--sla_topk", type=float, default=0.1, help="share of key blocks that are kept")
    p.add_argument("--quant_linear", action="store_true", help="the file holds 8-bit linears")
    p.add_argument("--default_norm", action="store_true",
                   help="accepted without effect: norms are always exact")  # fmt: skip
    p.add_argument("--serve", action="store_true",
                   help="not available; see `turbodiffusion generate --prompts`")  # fmt: skip
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return p


def run_script(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace], None],
) -> int:
    """Parse, run, and turn errors into exit codes as the ``turbodiffusion`` command does."""
    args = parser.parse_args(argv)

    def guarded() -> int:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            run(args)
        return 0

    from turbodiffusion.doctor.explain_error import recognised

    return run_guarded(guarded, debug=args.debug, recognise=recognised)


def refuse_missing(args: argparse.Namespace, *names: str) -> None:
    """``--serve``, and flags that a run needs and that were not given."""
    if args.serve:
        raise UsageError(
            "serve-unavailable",
            "--serve, the interactive mode, is not available in this version.",
            "To make many videos with one load use `turbodiffusion generate --prompts FILE`.",
        )
    for name in names:
        if getattr(args, name) is None:
            raise UsageError("flag-missing", f"--{name} is required.", f"Add --{name} ….")


def find_files(args: argparse.Namespace, dit: str, task: str, low: str | None = None) -> Any:
    """The checkpoint with its companions; a default path that is not there is looked for.

    Returns:
        A :class:`turbodiffusion.weights.find.Files`.
    """
    from turbodiffusion.weights.find import find

    given: dict[str, Any] = {} if low is None else {"low": low}
    for role, path, default in (
        ("vae", args.vae_path, VAE), ("text_encoder", args.text_encoder_path, TEXT_ENCODER),
    ):  # fmt: skip
        if path != default or Path(path).exists():
            given[role] = path
    files = find(Path(dit), **given)
    if files.card.task != task:
        other = "wan2.2_i2v_infer.py" if task == "t2v" else "wan2.1_t2v_infer.py"
        raise UsageError("script-task", f"{dit} is a {files.card.task} network.",
                         f"Use {other} with it.")  # fmt: skip
    return files


def generate(args: argparse.Namespace, files: Any, size: tuple[int, int], **settings: Any) -> Path:
    """One file of ``args.num_samples`` videos of ``size`` (width, height) each.

    ``settings`` are those of a request, and ``image``. Returns where the file was written.
    """
    from turbodiffusion.pipeline.batch import check_jobs, open_pipeline, run_job
    from turbodiffusion.pipeline.jobs import plan_jobs
    from turbodiffusion.pipeline.outputs import plan_outputs
    from turbodiffusion.pipeline.progress import Progress

    flags = {
        "prompt": args.prompt, "seed": args.seed, "steps": args.num_steps,
        "frames": args.num_frames, "output": args.save_path, **settings,
    }  # fmt: skip
    jobs = plan_jobs(flags, {"samples": args.num_samples, "width": size[0], "height": size[1]})
    requests = check_jobs(jobs, files.card, fit="released")
    [name] = plan_outputs(jobs, requests)
    progress = Progress(1)
    pipe = open_pipeline(files, attention_flags(args, files), progress)
    result = run_job(pipe, jobs[0], requests[0], name, progress)
    assert result.path is not None
    print(result.path)
    return result.path


def attention_flags(args: argparse.Namespace, files: Any) -> dict[str, Any]:
    """Attention as the flags ask and the file allows; warns where the two disagree."""
    from turbodiffusion.weights.detect import describe
    from turbodiffusion.weights.header import read_header

    if args.default_norm:
        warnings.warn("--default_norm is without effect: norms are always exact.",
                      stacklevel=2)  # fmt: skip
    for path in files.dit.values():
        found = describe(read_header(path))
        if found.quantized != args.quant_linear:
            holds = "8-bit" if found.quantized else "unquantised"
            flag = "was not given" if found.quantized else "was given"
            warnings.warn(f"--quant_linear {flag}, but {path.name} holds {holds} linears; the file "
                          "decides.", stacklevel=2)  # fmt: skip
    if args.attention_type == "original":
        return {"attention": "dense"}
    if found.attention == "dense":
        warnings.warn(
            f"--attention_type {args.attention_type}: {path.name} has no projection for sparse "
            "attention; it runs dense.",
            stacklevel=2,
        )
        return {"attention": "dense"}
    return {"attention": args.attention_type, "topk": args.sla_topk}


def warn_of_model(args: argparse.Namespace, card_name: str) -> None:
    """``--model`` names a size; what the file is stands in the file."""
    size = args.model.rpartition("-")[2]
    if f"-{size}-" not in card_name:
        warnings.warn(f"--model {args.model}: the file is {card_name}, which decides.",
                      stacklevel=2)  # fmt: skip
