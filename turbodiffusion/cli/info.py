"""``turbodiffusion info FILE``: what a video is and the settings that made it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from turbodiffusion.media import probe, read_settings


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "info",
        help="show the settings stored in a video or picture",
        description="Show size, length and the stored settings of an mp4, webm, gif, png, jpg or "
        "folder of png frames that turbodiffusion wrote. generate --like FILE repeats them.",
    )
    parser.add_argument("file", metavar="FILE", help="video, picture or folder of frames")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts and settings of ``args.file``; a file without settings is an error."""
    settings = read_settings(args.file)
    facts = probe(args.file)
    if args.json:
        content = {
            "file": args.file,
            "format": facts.format,
            "width": facts.width,
            "height": facts.height,
            "frames": facts.frames,
            "fps": facts.fps,
            "seconds": round(facts.duration, 3),
            "settings": settings,
        }
        print(json.dumps(content))
        return 0
    unit = "frame" if facts.frames == 1 else "frames"
    print(
        f"{args.file}: {facts.format}, {facts.width}×{facts.height}, {facts.frames} {unit}", end=""
    )
    print(f", {facts.fps:g} fps, {facts.duration:.2f} s" if facts.frames > 1 else "")
    width = max((len(name) for name in settings), default=0)
    for name, value in settings.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"  {name:<{width}}  {shown}")
    return 0
