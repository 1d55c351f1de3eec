"""The files of an embedded model, and how a stage writes and finds them.

Weights are safetensors in bf16 under the released key names, with the card and the stage's report
in the metadata; ``<size>_report.json`` beside them gathers recipe, seed, cost and quality.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbodiffusion.errors import WeightsError
from turbodiffusion.mini import world
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.mini.runtime import Worker
from turbodiffusion.mini.vocabulary import build_tokenizer
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import TextEncoder
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.weights.header import read_header
from turbodiffusion.weights.stream import Tensors, save

PACKAGED = Path(__file__).parent / "weights"
STAGES = {
    "vae": "vae", "text": "teacher", "tokenizer": "teacher", "t2v_teacher": "teacher",
    "t2v_sla": "sla", "t2v_rcm": "rcm", "t2v_turbo": "turbo",
    "t2v_turbo_int8": "turbo", "t2v_merged": "merge", "t2v_followed": "follow",
    "t2v_student": "student", "t2v_student_int8": "student",
    **{f"i2v_{e}{form}": "i2v-student" for e in ("high", "low") for form in ("", "_int8")},
    **{f"i2v_turbo_{e}": "i2v-turbo" for e in ("high", "low")},
    **{f"i2v_{kind}_{e}": "i2v-merge" for kind in ("dense", "merged") for e in ("high", "low")},
}  # fmt: skip
"""Part → the stage of ``mini train`` that writes it, where that is not ``i2v``."""


def size_name(size: SizeRecipe) -> str:
    """``micro`` or ``mini``: the first part of every file name."""
    return size.card_name.split("-")[0]


def file(size: SizeRecipe, folder: Path, part: str) -> Path:
    """Path of ``vae``, ``text``, ``t2v_teacher`` (safetensors) or ``tokenizer``, ``report``."""
    extension = "json" if part in ("tokenizer", "report") else "safetensors"
    return folder / f"{size_name(size)}_{part}.{extension}"


def _write(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in module.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # Not save_file: that makes files which only their owner can read.
    partial.write_bytes(save(tensors, metadata={"format": "pt", **metadata}))
    os.replace(partial, path)


def update_report(size: SizeRecipe, folder: Path, **parts: Any) -> Path:
    """Merge ``parts`` into the report file of ``size`` in ``folder``; a part of None is removed."""
    path = file(size, folder, "report")
    merged = {**read_report(size, folder), **parts}
    text = json.dumps({k: v for k, v in merged.items() if v is not None}, indent=1)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text + "\n", "utf-8")
    os.replace(partial, path)
    return path


def read_report(size: SizeRecipe, folder: Path) -> dict[str, Any]:
    """What is recorded of ``size`` in ``folder``; empty where there is no report yet."""
    path = file(size, folder, "report")
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            "mini-report-damaged",
            f"The report {path} is not JSON of the expected form ({error}).",
            "Restore it, or delete it: training and `mini judge --record` write it again.",
        ) from error


def finished(size: SizeRecipe, folder: Path, stage: str) -> dict[str, Any] | None:
    """The report of a stage whose weights in ``folder`` are complete, else None.

    A stage that is asked for again keeps them: the report says which machine did the work, and the
    stage ``vae`` must not undo the later ``decoder``.
    """
    key, part = ("teacher", "t2v_teacher") if stage == "teacher" else ("vae", "vae")
    report: dict[str, Any] = read_report(size, folder).get(key, {})
    if not report.get("complete") or not file(size, folder, part).exists():
        return None
    return None if stage == "decoder" and "after" not in report else report


def latents_id(vae: WanVAE) -> str:
    """Short hash of all that decides what latents mean: the encoder and its scaling.

    Stages that depend on latents store it, so that they are not continued on other ones.
    """
    digest = hashlib.sha256(repr((vae.config.latent_mean, vae.config.latent_std)).encode())
    for name, value in (*vae.encoder.state_dict().items(), *vae.conv1.state_dict().items()):
        rounded = value.detach().to("cpu", torch.bfloat16).flatten().contiguous()
        digest.update(name.encode() + rounded.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_network(
    size: SizeRecipe, folder: Path, part: str, network: Tensors, card: str,
    report: dict[str, Any], expert: str = "",
) -> None:  # fmt: skip
    """Write a DiT that comes as a stream, with its card and report in the metadata."""
    metadata = {"card": card, "role": "dit", "training": json.dumps(report)}
    if expert:
        metadata["expert"] = expert
    folder.mkdir(parents=True, exist_ok=True)
    save(network, file(size, folder, part), metadata, force=True)


def save_vae(size: SizeRecipe, vae: WanVAE, report: dict[str, Any], folder: Path) -> None:
    """Write the autoencoder; its latent statistics travel in the metadata."""
    metadata = {
        "card": size.card_name,
        "role": "vae",
        "latent_mean": json.dumps(report["latent_mean"]),
        "latent_std": json.dumps(report["latent_std"]),
        "training": json.dumps(report),
    }
    _write(vae, file(size, folder, "vae"), metadata)
    update_report(size, folder, vae=report, quality=None)  # measured with other weights


def save_teacher(
    size: SizeRecipe, dit: WanDiT, text: TextEncoder, report: dict[str, Any], folder: Path
) -> None:
    """Write the teacher and the text encoder that was trained with it."""
    metadata = {"card": size.card_name, "training": json.dumps(report)}
    _write(dit, file(size, folder, "t2v_teacher"), {**metadata, "role": "dit"})
    _write(text, file(size, folder, "text"), {**metadata, "role": "text_encoder"})
    update_report(size, folder, teacher=report, quality=None)


def write_tokenizer(size: SizeRecipe, folder: Path) -> Path:
    """The tokenizer file of the closed vocabulary, written once into ``folder``."""
    path = file(size, folder, "tokenizer")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Processes that start together all write it, the same bytes, and none may read half of it.
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        os.replace(build_tokenizer(list(world.WORDS), partial), path)
    return path


def find_part(size: SizeRecipe, folder: Path | None, part: str) -> Path:
    """The file in ``folder``, else the packaged one.

    Raises:
        WeightsError: it is in neither; names the command that makes it.
    """
    for place in (folder or PACKAGED, PACKAGED):
        if file(size, place, part).exists():
            return file(size, place, part)
    name = size_name(size)
    raise WeightsError(
        "mini-stage-missing",
        f"{file(size, PACKAGED, part).name} is neither in {folder or PACKAGED} nor in the package.",
        f"Train that stage first: turbodiffusion mini train {STAGES.get(part, 'i2v')} --size "
        f"{name}. It writes to runs/{name} or --out; `mini judge` takes that folder as --weights.",
    )


def training_of(path: Path) -> dict[str, Any]:
    """The training report inside a file that a stage wrote."""
    return dict(json.loads(read_header(path).metadata.get("training", "{}")))


def load_embedded_vae(size: SizeRecipe, folder: Path, worker: Worker) -> WanVAE:
    """The trained autoencoder, frozen, in the worker's precision."""
    from turbodiffusion.weights.load import load_vae

    path = find_part(size, folder, "vae")
    vae = load_vae(path, size.card.vae, device=worker.device, dtype=worker.dtype)
    return vae.requires_grad_(False).eval()
