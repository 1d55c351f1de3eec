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
# (task, few steps) → stems of the DiT's files by layout: int8, plain. One stem for each expert.
_DIT: dict[tuple[str, bool], dict[bool, str]] = {
    ("t2v", False): {False: "{size}_t2v_teacher"},
    ("t2v", True): {True: "{size}_t2v_student_int8", False: "{size}_t2v_student"},
    ("i2v", False): {False: "{size}_i2v_teacher_{expert}"},
    ("i2v", True): {True: "{size}_i2v_{expert}_int8", False: "{size}_i2v_{expert}"},
}
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
    """The card behind the name of an embedded model. Where a student's files are not shipped and
    its teacher's are, or might be, that is the teacher's card. None for other names."""
    card, teacher = CARDS.get(name), CARDS.get(f"{name}-teacher")
    if teacher and not (card and embedded_dit(card)) and (name in SIZES or embedded_dit(teacher)):
        card = teacher
    return card if card and card.embedded else None


def embedded_dit(card: ModelCard, quantized: bool | None = None) -> dict[str, Path]:
    """Expert → shipped file of an embedded card, in the first layout that is complete; else {}.

    Args:
        quantized: int8 or plain weights; None takes int8 where they are shipped.
    """
    for layout in embedded_layouts(card):
        if quantized in (None, layout):
            files = embedded_dit_places(card, layout)
            if all(path.is_file() for path in files.values()):
                return files
    return {}


def embedded_layouts(card: ModelCard) -> tuple[bool, ...]:
    """The layouts an embedded card is shipped in, the default first; True stands for int8."""
    return tuple(_DIT[card.task, card.few_step])


def embedded_dit_places(card: ModelCard, quantized: bool) -> dict[str, Path]:
    """Expert → where the DiT of an embedded card lies in one of its layouts."""
    stem, size = _DIT[card.task, card.few_step][quantized], embedded_size(card)
    return {
        expert: data_folder() / f"{stem.format(size=size, expert=expert)}.safetensors"
        for expert in card.experts
    }


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
