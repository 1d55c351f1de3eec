"""From a model's name, path or hub id to the files of its networks, before anything is loaded.

The embedded models lie in the package; a path is taken as it is, with its companions (VAE, text
encoder, tokenizer) looked for around it; a released name is looked for in the folders of
:mod:`.places` and the Hugging Face cache. What is missing is an error that says where it was looked
for and which command fetches it; this module downloads only when asked to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import CARDS, ModelCard, card
from turbodiffusion.weights import download as fetching
from turbodiffusion.weights import hub, places
from turbodiffusion.weights.catalogue import BASE_FILES, dit_files
from turbodiffusion.weights.check import require_config, require_kind, some
from turbodiffusion.weights.detect import (
    Description,
    config_line,
    describe,
    expert_of,
    warn_if_swapped,
)
from turbodiffusion.weights.header import diffusers_components, read_header

COMPANIONS = ("vae", "text_encoder", "tokenizer")
_EXPERT_FOLDERS = {"high": "high_noise_model", "low": "low_noise_model"}


@dataclass(frozen=True)
class Files:
    """Everything a run reads. ``dit`` maps expert (``""``, or ``high`` and ``low``) to its file."""

    card: ModelCard
    dit: dict[str, Path]
    vae: Path
    text_encoder: Path
    tokenizer: Path


@dataclass(frozen=True)
class _Request:
    given: Mapping[str, str | Path | None]
    role: str | None
    download: bool

    def needs(self, role: str) -> bool:
        return self.role in (None, role)


def default_name(task: Literal["t2v", "i2v"] = "t2v") -> str:
    """The model used when none is named: ``mini`` where its files are shipped, else ``micro``;
    ``mini-i2v`` to animate an image, where it is shipped."""
    names = ["mini-i2v"] * (task == "i2v") + list(places.SIZES)
    for name in names:
        one = places.embedded_card(name)
        parts = [places.companion(one, role, ()) for role in COMPANIONS] if one else []
        if one and places.embedded_dit(one) and all(parts):
            return name
    return "micro"


def find(
    name_or_path: str | Path | None = None,
    role: str | None = None,
    *,
    quantized: bool | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    low: str | Path | None = None,
    download: bool = False,
) -> Files:
    """Locate the files of a model.

    Args:
        name_or_path: ``micro``, ``mini``, a card (with or without ``-quant``), a checkpoint file,
            a folder (diffusers, Wan, or of one checkpoint), a hub id, None for the default.
        role: where only one network is needed (``dit``, ``vae``, ``text_encoder``,
            ``tokenizer``), only that must exist; the others say where they would be.
        quantized: int8 or plain weights; None takes what is present: plain first of a released
            model, int8 first of an embedded one.
        vae, text_encoder, tokenizer: companions given by hand.
        low: the low-noise expert where ``name_or_path`` is the file of the high-noise one.
        download: fetch what is missing from the hub (HF_HUB_OFFLINE forbids it).

    Raises:
        WeightsError: a file is missing (with the command that fetches it) or unsuitable.
        UsageError: a name that is neither a model, a path nor a hub id.
    """
    if role not in (None, "dit", *COMPANIONS):
        raise ValueError(f"role {role!r} is neither 'dit' nor one of {COMPANIONS}")
    given = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}
    request = _Request(given, role, download)
    name = str(name_or_path) if name_or_path is not None else default_name()
    if one := places.embedded_card(name):
        return _complete(one, _shipped_dit(one, quantized, request), [], request)
    plain = name.removesuffix("-quant")
    stem = plain.rpartition("/")[2] if plain.startswith("TurboDiffusion/") else plain
    if stem in CARDS:
        wanted = True if name.endswith("-quant") else quantized
        dit = _released_dit(CARDS[stem], wanted, request)
        return _complete(CARDS[stem], dit, places.around(next(iter(dit.values()))), request)
    path = Path(name).expanduser()
    if path.exists():
        return _from_path(path, low, request)
    if _looks_like_hub_id(name):
        folder = hub.cached_folder(name)
        if folder is None and not download:
            raise WeightsError(
                "weights-missing",
                f"{name} is neither a path here nor in the hub cache {hub.cache_folder()}.",
                f"Fetch it with `turbodiffusion download {name}`.",
            )
        return _from_path(folder or fetching.fetch_folder(name), low, request)
    if path.suffix in places.SUFFIXES or len(path.parts) > 1:
        raise WeightsError(
            "weights-missing",
            f"There is no checkpoint at {path}.",
            f"Check the path, or use a model name: {', '.join([*places.SIZES, *CARDS])}.",
        )
    return find(card(name).name)  # an unknown name raises here, with the known ones


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    plain = all(part and part[0].isalnum() for part in parts)
    return len(parts) == 2 and plain and Path(name).suffix not in places.SUFFIXES


def _shipped_dit(one: ModelCard, quantized: bool | None, request: _Request) -> dict[str, Path]:
    layouts = places.embedded_layouts(one)
    wanted = quantized if quantized in layouts else None
    files = places.embedded_dit(one, wanted)
    if not files:
        files = places.embedded_dit_places(one, layouts[0] if wanted is None else wanted)
        if request.needs("dit"):
            raise _not_shipped(one, next(p for p in files.values() if not p.is_file()))
    return files


def _not_shipped(one: ModelCard, path: Path) -> WeightsError:
    size = places.embedded_size(one)
    return WeightsError(
        "weights-missing",
        f"The embedded model {one.name} has no {path.name} in {path.parent}.",
        f"Make it with `turbodiffusion mini train` (size {size}), or use another model.",
    )


def _released_dit(one: ModelCard, quantized: bool | None, request: _Request) -> dict[str, Path]:
    """Files of all experts in one layout; the first layout of which every expert is present."""
    layouts = (False, True) if quantized is None else (quantized,)
    for layout in layouts:
        found = places.released_dit(one, layout)
        if len(found) == len(one.experts):
            return found
    remote = dit_files(one, layouts[0])
    if request.download and request.needs("dit"):
        return {e: fetching.fetch_file(f.repository, f.path) for e, f in remote.items()}
    folders = places.search_folders()
    if request.needs("dit"):
        names = [f.name for layout in layouts for f in dit_files(one, layout).values()]
        raise WeightsError(
            "weights-missing",
            f"None of {', '.join(names)} (nor .safetensors) is in {_listed(folders)} "
            f"or the hub cache {hub.cache_folder()}.",
            f"Fetch it with `turbodiffusion download {one.name}`.",
        )
    return {expert: folders[0] / f.name for expert, f in remote.items()}


def _from_path(path: Path, low: str | Path | None, request: _Request) -> Files:
    """A file or folder: identify the DiT, find its partner expert and its companions."""
    parts = diffusers_components(path)
    if "transformer" in parts:
        main, second = parts["transformer"], parts.get("transformer_2")
        local = {role: parts.get(role) for role in ("vae", "text_encoder")}
        local["tokenizer"] = path / "tokenizer" / "tokenizer.json"
        given = {role: request.given[role] or local[role] for role in COMPANIONS}
        request = _Request(given, request.role, request.download)
    elif (path / _EXPERT_FOLDERS["high"]).is_dir():
        main, second = (path / _EXPERT_FOLDERS[e] for e in ("high", "low"))
    else:
        main, second = _dit_in_folder(path) if path.is_dir() else (path, None)
    found = describe(read_header(main))
    require_kind(found, "dit")
    if not found.card:
        raise WeightsError(
            "weights-card",
            f"{main} fits no known model: {config_line(found.config)}.",
            f"Known models are {', '.join(CARDS)}.",
        )
    one = CARDS[found.card]
    second = Path(low) if low else second
    dit = {"": main} if len(one.experts) == 1 else _experts(found, main, second, one)
    return _complete(one, dit, places.around(main), request)


def _dit_in_folder(folder: Path) -> tuple[Path, Path | None]:
    """The DiT among the files of a folder that may also hold the VAE and the text encoder."""
    if list(folder.glob("*.index.json")):
        return folder, None
    files = sorted(f for s in places.SUFFIXES for f in folder.glob(f"*{s}"))
    networks = [f for f in files if describe(read_header(f)).kind == "dit"]
    pair = {expert_of(f): f for f in networks}
    if len(networks) == 2 and set(pair) == {"high", "low"}:
        return pair["high"], pair["low"]
    if len(networks) != 1:
        names = tuple(f.name for f in networks)
        raise WeightsError(
            "weights-folder",
            f"{folder} holds {some(names, 6) if names else 'no diffusion transformer'} "
            "where one DiT (or a high and a low expert) is expected.",
            "Give the path of the file itself.",
        )
    return networks[0], None


def _experts(
    found: Description, main: Path, second: Path | None, one: ModelCard
) -> dict[str, Path]:
    """Both experts of a two-network model from one of them and, if known, the other."""
    other = next(iter(_partners(main, found.expert)), None) if second is None else None
    if other:
        main, second = (other, main) if found.expert == "low" else (main, other)
    if second is None or not second.exists():
        raise WeightsError(
            "weights-expert-missing",
            f"{one.name} needs two experts, and beside {main} there is no second one"
            f"{f' ({second})' if second else ''}.",
            f"Give the low-noise file as well, or run `turbodiffusion download {one.name}`.",
        )
    other_found = describe(read_header(second))
    require_kind(other_found, "dit")
    require_config(other_found, one.dit, one.name)
    warn_if_swapped(main, second)
    return {"high": main, "low": second}


def _partners(path: Path, expert: str) -> Iterator[Path]:
    """Existing paths that differ from ``path`` in naming the other expert, file name first."""
    swap = {"high": "low", "low": "high"}
    if expert not in swap:
        return
    for write in (str, str.upper, str.capitalize):
        old, new = write(expert), write(swap[expert])
        parent = path.parent.with_name(path.parent.name.replace(old, new))
        for option in (path.with_name(path.name.replace(old, new)), parent / path.name):
            if option != path and option.exists():
                yield option


def _complete(
    one: ModelCard, dit: dict[str, Path], folders: list[Path], request: _Request
) -> Files:
    vae, text = (_companion(one, role, folders, request) for role in ("vae", "text_encoder"))
    # Wan repositories ship the tokenizer beside the text encoder, which may lie apart from the DiT.
    tokenizer = _companion(one, "tokenizer", [text.parent, *folders], request)
    return Files(one, dit, vae, text, tokenizer)


def _companion(one: ModelCard, role: str, folders: list[Path], request: _Request) -> Path:
    if given := request.given[role]:
        path = Path(given).expanduser()
        if path.exists() or not request.needs(role):
            return path
        raise WeightsError(
            "weights-missing",
            f"There is no {role.replace('_', ' ')} at {path}.",
            "Check the path.",
        )
    if found := places.companion(one, role, folders):
        return found
    wanted = places.companion_names(one, role)[0]
    if one.embedded:
        path = places.data_folder() / wanted
        if request.needs(role):
            raise _not_shipped(one, path)
        return path
    if not request.needs(role):
        return places.search_folders()[0] / wanted
    remote = BASE_FILES[role]
    if request.download:
        return fetching.fetch_file(remote.repository, remote.path)
    raise WeightsError(
        "weights-missing",
        f"The {role.replace('_', ' ')} {remote.path} of {one.name} is not in {_listed(folders)} "
        f"or the hub cache {hub.cache_folder()}.",
        f"Fetch it with `turbodiffusion download {one.name}`.",
    )


def _listed(folders: list[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)
