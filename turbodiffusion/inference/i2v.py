"""``wan2.2_i2v_infer.py``: image to video with the released flags."""

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
from turbodiffusion.media.sizes import adaptive_size, resolution


def build_parser() -> argparse.ArgumentParser:
    """The released flags with their defaults."""
    p = make_parser("Image to video with the TurboWan2.2-I2V-A14B experts.", resolution="720p")
    p.add_argument("--image_path", help="first frame; required")
    p.add_argument("--high_noise_model_path", required=True, help="expert of the first steps")
    p.add_argument("--low_noise_model_path", required=True, help="expert of the last steps")
    p.add_argument("--boundary", type=float, default=0.9, help="where the second expert takes over")
    p.add_argument("--model", choices=("Wan2.2-A14B",), default="Wan2.2-A14B",
                   help="kind of network; the file decides")  # fmt: skip
    p.add_argument("--sigma_max", type=float, default=200, help="first noise level")
    p.add_argument("--adaptive_resolution", action="store_true",
                   help="keep the image's shape, with the area of --resolution")  # fmt: skip
    p.add_argument("--ode", action="store_true",
                   help="no fresh noise between steps: sharper, less robust")  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    return run_script(build_parser(), argv, _run)


def _run(args: argparse.Namespace) -> None:
    refuse_missing(args, "prompt", "image_path")
    files = find_files(args, args.high_noise_model_path, "i2v", args.low_noise_model_path)
    warn_of_model(args, files.card.name)
    size = resolution(args.resolution, args.aspect_ratio)
    if args.adaptive_resolution:
        from turbodiffusion.media.image import load_image

        _, height, width = load_image(args.image_path).shape
        size = adaptive_size(height, width, size[0] * size[1], files.card.size_multiple)
    generate(args, files, size, sigma_max=args.sigma_max, boundary=args.boundary, ode=args.ode,
             image=args.image_path)  # fmt: skip
