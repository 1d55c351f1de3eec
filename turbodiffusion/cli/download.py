"""``turbodiffusion download``: released models and what they need, from the Hugging Face hub."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from turbodiffusion.models.cards import CARDS, card
from turbodiffusion.weights import places
from turbodiffusion.weights.download import (
    Item,
    fetch_all,
    gigabytes,
    into,
    needed,
    repository_items,
    require_space,
    target,
)

EVERY = 15.0
"""Seconds between two lines of progress where nobody watches a bar."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "download",
        help="fetch a model and what it needs from the Hugging Face hub",
        description="Fetch the network, autoencoder, text encoder and tokenizer of models into "
        "the Hugging Face cache, several files at a time. What was interrupted goes on where it "
        "stopped; what is here is not fetched again; what has a published sha256 is compared with "
        "it. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.",
    )
    parser.add_argument(
        "models", metavar="MODEL", nargs="+",
        help=f"a name that `models` lists ({', '.join(_released())}), or a hub id OWNER/NAME",
    )  # fmt: skip
    parser.add_argument("--dir", type=Path, metavar="DIR",
                        help="put the files into this folder instead of the cache")  # fmt: skip
    parser.add_argument("--from", type=Path, metavar="DIR", dest="origin",
                        help="copy what this folder or hub cache has")  # fmt: skip
    parser.add_argument("--quantised", choices=("auto", "yes", "no"), default="auto",
                        help="8-bit weights; auto: where the GPU's memory is short")  # fmt: skip
    parser.add_argument("--verify", action="store_true",
                        help="also read what is here already and compare it")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched")


def _released() -> list[str]:
    return [name for name, one in CARDS.items() if not one.embedded]


def run(args: argparse.Namespace) -> int:
    """Announce names and sizes, check the disk, then fetch; paths go to stdout."""
    items = _items(args)
    if not items:
        return 0
    missing = sum(item.remote.bytes for item in items if item.here is None)
    width = max(len(item.remote.name) for item in items)
    for item in items:
        where = str(item.here) if item.here else f"from {item.source or item.remote.repository}"
        size = gigabytes(item.remote.bytes)
        print(f"{item.role:<13} {item.remote.name:<{width}} {size:>10}  {where}")
    for verb, some in (("copy", True), ("fetch", False)):
        part = [i for i in items if i.here is None and bool(i.source) == some]
        if part:
            size = gigabytes(sum(i.remote.bytes for i in part))
            print(f"{size} to {verb} into {target(part[0], args.dir)}", flush=True)
    if not missing:
        print("Everything is here.")
    if args.verify and (code := _verify(items)):
        return code
    if args.dry_run or not missing:
        return 0
    require_space(items, args.dir)
    show = Progress(missing)
    try:
        paths = fetch_all(items, args.dir, show.watch)
    except KeyboardInterrupt:
        show.close()
        print(f"\nInterrupted with {gigabytes(show.here)} here; the same command goes on from "
              "there.", file=sys.stderr)  # fmt: skip
        return 130
    finally:
        show.close()
    for path in paths:
        print(path, flush=True)
    if args.dir is not None and not _is_searched(args.dir):
        print(f"Models are looked for in ./checkpoints and in TURBODIFFUSION_MODELS; set that to "
              f"{args.dir.absolute()}.", file=sys.stderr)  # fmt: skip
    return 0


def _items(args: argparse.Namespace) -> list[Item]:
    """Every file of every model named, each once."""
    items: dict[tuple[str, str], Item] = {}
    for name in args.models:
        if places.embedded_card(name):
            print(f"{name} is an embedded model: it comes with the package, nothing is downloaded.")
            continue
        for item in _model_items(name, args.quantised):
            items.setdefault((item.remote.repository, item.remote.path), item)
    return into(list(items.values()), args.dir, args.origin)


def _model_items(name: str, quantised: str) -> Iterable[Item]:
    stem = name.rpartition("/")[2] if name.startswith("TurboDiffusion/") else name
    stem = stem.removesuffix("-quant")
    if "/" in stem:
        return repository_items(stem)
    if name.endswith("-quant"):
        quantised = "yes"
    return needed(card(stem), _is_quantised(stem, quantised))


def _is_quantised(name: str, choice: str) -> bool:
    if choice != "auto":
        return choice == "yes"
    from turbodiffusion.pipeline.advice import prefers_quantised

    return prefers_quantised(name)


def _is_searched(folder: Path) -> bool:
    return any(os.path.abspath(folder) == os.path.abspath(f) for f in places.search_folders())


def _verify(items: Sequence[Item]) -> int:
    """Compare what is here; 1 if something is damaged."""
    from turbodiffusion.cli.models import show_verdict
    from turbodiffusion.weights.verify import check

    verdicts = [check(item.remote, item.here) for item in items if item.here is not None]
    for verdict in verdicts:
        show_verdict(verdict)
    return int(any(v.state == "damaged" for v in verdicts))


class Progress:
    """Bytes of all files together: a bar where a person watches, else a line now and then."""

    def __init__(self, total: int) -> None:
        self.here = 0
        self._total = total
        self._lock = threading.Lock()
        self._start = self._last = time.monotonic()
        self._arrived = 0
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr,
                             dynamic_ncols=True, leave=False)  # fmt: skip

    def watch(self, item: Item) -> _Watch:
        """The watch of one file that starts now."""
        verb = "copying" if item.source else "fetching"
        self.note(f"{verb} {item.remote.name} ({gigabytes(item.remote.bytes)})")
        return _Watch(self, item.remote.name)

    def moved(self, count: int) -> None:
        """``count`` more bytes, of whichever file."""
        with self._lock:
            self.here += count
            if self._bar is not None:
                self._bar.update(count)
                return
            now = time.monotonic()
            if now - self._last >= EVERY:
                rate = (self.here - self._arrived) / (now - self._last)
                left = max(0, self._total - self.here) / rate / 60 if rate > 0 else float("inf")
                self._last, self._arrived = now, self.here
                print(f"{gigabytes(self.here)} of {gigabytes(self._total)}, {rate / 1e6:.1f} MB/s, "
                      f"{left:.0f} min left", file=sys.stderr, flush=True)  # fmt: skip

    def note(self, text: str) -> None:
        """One line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


class _Watch:
    """One file's share of the progress."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def moved(self, count: int) -> None:
        self._progress.moved(count)

    def note(self, text: str) -> None:
        self._progress.note(f"{self._name}: {text}")
