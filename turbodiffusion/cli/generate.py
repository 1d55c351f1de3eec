"""``turbodiffusion generate``: prompts in, video files out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from turbodiffusion.errors import TurboDiffusionError, describe, show_warning


def add_parser(subparsers: Any) -> None:
    """Register the command. Defaults come from the model's card, so most flags default to None."""
    p = subparsers.add_parser(
        "generate", help="make a video from a prompt",
        description="Make videos from prompts. Without --model the embedded model is used.",
    )  # fmt: skip
    p.add_argument("prompt", nargs="?", help="what to show")
    p.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="many prompts, one a line, or JSON lines with any of these settings",
    )
    p.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="repeat the settings stored in a video; other flags win over them",
    )
    p.add_argument("--model", help="a name that `models` lists, a file, a folder or a hub id")
    p.add_argument("--low", type=Path, help="low-noise expert, when --model is the high-noise file")
    p.add_argument("--vae", type=Path, help="autoencoder file, when it is not beside the model")
    p.add_argument("--text-encoder", type=Path, help="text encoder file")
    p.add_argument("--tokenizer", type=Path, help="tokenizer.json of the text encoder")
    p.add_argument("--image", help="first frame, for image-to-video models")
    p.add_argument(
        "--output",
        "-o",
        help="file; its extension is the format (mp4 webm gif png jpg). Several videos are "
        "numbered: clip.mp4 becomes clip-000.mp4, folder/ becomes folder/000.mp4",
    )
    p.add_argument("--num", type=int, help="videos of each prompt, with seeds counting up")
    p.add_argument("--seed", type=int, help="of the noise (default 0); the same on every machine")
    p.add_argument("--steps", type=int, help="network calls, 1 to 4; any number with --baseline")
    p.add_argument("--frames", type=int, help="length of the video in frames")
    p.add_argument("--resolution", help="480p, 720p, 480, 512, 720 or WIDTHxHEIGHT")
    p.add_argument("--aspect", help="16:9, 9:16, 4:3, 3:4 or 1:1; `image` follows --image")
    p.add_argument("--baseline", action="store_true", default=None,
                   help="the unaccelerated sampler with guidance")  # fmt: skip
    p.add_argument("--guidance", type=float, help="of the baseline")
    p.add_argument("--negative", help="what to steer away from, with the baseline")
    p.add_argument("--solver", choices=("unipc", "euler"), help="of the baseline")
    p.add_argument("--shift", type=float, help="noise schedule of the baseline")
    p.add_argument("--sigma-max", type=float, help="first noise level of the few-step sampler")
    p.add_argument("--ode", action="store_true", default=None, help="no re-noising between steps")
    p.add_argument("--boundary", type=float, help="noise level at which the low expert takes over")
    p.add_argument("--attention", help="dense, sla or sagesla; default: what the file is made for")
    p.add_argument("--topk", type=float, help="share of key blocks that sparse attention keeps")
    p.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    p.add_argument("--no-plan", action="store_true", default=None,
                   help="do not ask the planner whether it fits, try it")  # fmt: skip
    p.add_argument("--monitor", action="store_true", default=None,
                   help="store seconds, memory and the GPU's readings in the file")  # fmt: skip
    p.add_argument("--json", action="store_true", help="results as JSON lines on stdout")


def run(args: argparse.Namespace) -> int:
    """Plan, load, and make one video after the other; finished ones stay whatever happens."""
    import warnings

    from turbodiffusion.mini.language import read_prompt
    from turbodiffusion.pipeline.batch import generate_all

    flags = {k: v for k, v in vars(args).items() if v is not None and k not in ("command", "json")}
    failed, embedded, image = 0, False, False
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            for result in generate_all(flags, read_prompt):
                embedded |= result.embedded
                image |= result.embedded and "image" in result.job.settings
                if args.json:
                    print(json.dumps(result.as_json()), flush=True)
                elif result.error is None:
                    print(result.path, flush=True)
                if result.error is not None:
                    failed += 1
                    print(describe(result.error), file=sys.stderr)
        except TurboDiffusionError as error:
            if args.json:
                print(json.dumps({"error": error.as_json()}), flush=True)
            raise
    if embedded:
        from turbodiffusion.pipeline.advice import real_model_command

        print(f"For a real model: {real_model_command(image=image)}", file=sys.stderr)
    return 1 if failed else 0
