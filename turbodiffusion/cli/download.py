"""``turbodiffusion download``: a released model and what it needs, from the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from turbodiffusion.models.cards import CARDS, card
from turbodiffusion.weights import hub, places
from turbodiffusion.weights.download import fetch_all, gigabytes, needed


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "download",
        help="fetch a model and what it needs from the Hugging Face hub",
        description="Fetch the network, autoencoder, text encoder and tokenizer of a model into "
        "the Hugging Face cache, resuming what was interrupted. Files that are here already are "
        "not fetched again. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help=f"a name that `models` lists ({', '.join(_released())}), "
        "or a hub id OWNER/NAME",
    )  # fmt: skip
    parser.add_argument("--quantised", choices=("auto", "yes", "no"), default="auto",
                        help="8-bit weights; auto: where the GPU's memory is short")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched")


def _released() -> list[str]:
    return [name for name, one in CARDS.items() if not one.embedded]


def run(args: argparse.Namespace) -> int:
    """Announce names and sizes, check the disk, then fetch; paths go to stdout."""
    name = args.model
    if places.embedded_card(name):
        print(f"{name} is an embedded model: it comes with the package, nothing is downloaded.")
        return 0
    stem = name.rpartition("/")[2] if name.startswith("TurboDiffusion/") else name
    stem, quantised = stem.removesuffix("-quant"), args.quantised
    if "/" in stem:
        return _repository(stem, args.dry_run)
    if name.endswith("-quant"):
        quantised = "yes"
    items = needed(card(stem), _is_quantised(stem, quantised))
    missing = sum(item.remote.bytes for item in items if item.here is None)
    for item in items:
        where = str(item.here) if item.here else f"from {item.remote.repository}"
        print(f"{item.role:<13} {item.remote.name:<42} {gigabytes(item.remote.bytes):>10}  {where}")
    if not missing:
        print("Everything is here.")
        return 0
    print(f"{gigabytes(missing)} to fetch into {hub.cache_folder()}", flush=True)
    if args.dry_run:
        return 0
    for path in fetch_all(items, lambda text: print(text, file=sys.stderr, flush=True)):
        print(path, flush=True)
    return 0


def _is_quantised(name: str, choice: str) -> bool:
    if choice != "auto":
        return choice == "yes"
    from turbodiffusion.pipeline.advice import prefers_quantised

    return prefers_quantised(name)


def _repository(repository: str, dry_run: bool) -> int:
    """A repository of somebody else's, whole: its size is not known beforehand."""
    print(f"{repository}: weights and configuration, into {hub.cache_folder()}", flush=True)
    if not dry_run:
        print(hub.fetch_folder(repository))
    return 0
