"""Where files lie: the folders that are searched and the names files have there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from turbodiffusion.models.cards import CARDS, ModelCard
from turbodiffusion.weights import hub
from turbodiffusion.weights.catalogue import BASE_FILES, dit_files

SUFFIXES = (".safetensors", ".pth", ".pt")
SIZES = ("mini", "micro")  # embedded models, the better one first
UPWARDS = 4  # folders above a checkpoint in which its companions are looked for

_EMBEDDED = {
    "vae": "{}_vae.safetensors",
    "text_encoder": "{}_text.safetensors",
    "tokenizer": "{}_tokenizer.json",
}
_TEACHER = ("{}_t2v_teacher.safetensors",)
_STUDENT = ("{}_t2v_turbo_int8.safetensors", "{}_t2v_turbo.safetensors")
_TOKENIZER = (
    "google/umt5-xxl/tokenizer.json",
    "umt5-xxl/tokenizer.json",
    "tokenizer/tokenizer.json",
    "tokenizer.json",
)


def data_folder() -> Path:
    """Where the embedded models lie inside the package."""
    return Path(__file__).resolve().parent.parent / "mini" / "weights"


def search_folders() -> list[Path]:
    """``TURBODIFFUSION_MODELS`` (one or several, separated as in PATH), then ``./checkpoints``."""
    chosen = os.environ.get("TURBODIFFUSION_MODELS", "")
    return [Path(p).expanduser() for p in chosen.split(os.pathsep) if p] + [Path("checkpoints")]


def around(path: Path) -> list[Path]:
    """Folders in which the companions of a checkpoint are looked for: its own, the ones above it
    and their ``checkpoints``, then :func:`search_folders`."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    near = [folder, *list(folder.parents)[:UPWARDS]]
    folders = [f for n in near for f in (n, n / "checkpoints")] + search_folders()
    return list(dict.fromkeys(folders))


def embedded_size(card: ModelCard) -> str:
    """``micro`` or ``mini`` for an embedded card: the prefix of its files."""
    return card.name.split("-")[0]


def companion_names(card: ModelCard, role: str) -> list[str]:
    """File names of a card's VAE, text encoder or tokenizer, relative to a searched folder."""
    if card.embedded:
        return [_EMBEDDED[role].format(embedded_size(card))]
    if role == "tokenizer":
        return list(_TOKENIZER)
    stem = Path(BASE_FILES[role].path).stem
    return [stem + suffix for suffix in SUFFIXES]


def companion(card: ModelCard, role: str, folders: Iterable[Path]) -> Path | None:
    """A companion in the first of ``folders`` that has it, else in the hub's cache."""
    places = [*folders, *([data_folder()] if card.embedded else [])]
    for folder in places:
        for name in companion_names(card, role):
            if (folder / name).is_file():
                return folder / name
    if card.embedded:
        return None
    return hub.cached_file(BASE_FILES[role].repository, BASE_FILES[role].path)


def embedded_card(name: str) -> ModelCard | None:
    """The card behind ``micro`` or ``mini``: the student where its file is shipped, else the
    teacher. None for other names."""
    card = CARDS.get(name)
    if name in SIZES and (card is None or embedded_dit(card) is None):
        card = CARDS.get(f"{name}-teacher")
    return card if card and card.embedded else None


def embedded_dit(card: ModelCard) -> Path | None:
    """The shipped DiT of an embedded card, or None."""
    return next((p for p in embedded_dit_places(card) if p.is_file()), None)


def embedded_dit_places(card: ModelCard) -> list[Path]:
    """Where the DiT of an embedded card may lie."""
    names = _STUDENT if card.few_step else _TEACHER
    return [data_folder() / name.format(embedded_size(card)) for name in names]


def released_dit(card: ModelCard, quantized: bool) -> dict[str, Path]:
    """Expert → file of a released card, for the experts that are on this machine."""
    found = {}
    for expert, remote in dit_files(card, quantized).items():
        stem = Path(remote.name).stem
        places = [
            folder / sub / (stem + suffix)
            for folder in search_folders()
            for sub in ("", card.name)
            for suffix in SUFFIXES
        ]
        path = next((p for p in places if p.is_file()), None)
        path = path or hub.cached_file(remote.repository, remote.path)
        if path:
            found[expert] = path
    return found
