"""``wan2.1_t2v_infer.py``: text to video with the released flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from turbodiffusion.inference.common import (
    find_files,
    generate,
    make_parser,
    refuse_missing,
    run_script,
    warn_of_model,
)
from turbodiffusion.media.sizes import resolution


def build_parser() -> argparse.ArgumentParser:
    """The released flags with their defaults."""
    p = make_parser("Text to video with a TurboWan2.1 checkpoint.", resolution="480p")
    p.add_argument("--dit_path", required=True, help="network: .pth or .safetensors")
    p.add_argument("--model", choices=("Wan2.1-1.3B", "Wan2.1-14B"), default="Wan2.1-1.3B",
                   help="size of the network; the file decides")  # fmt: skip
    p.add_argument("--sigma_max", type=float, default=80, help="first noise level")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    return run_script(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> None:
    refuse_missing(args, "prompt")
    files = find_files(args, args.dit_path, "t2v")
    warn_of_model(args, files.card.name)
    generate(args, files, resolution(args.resolution, args.aspect_ratio), sigma_max=args.sigma_max)
