"""From a model's name to a pipeline that is ready to run."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.models.cards import Attention
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import Tokenizer
from turbodiffusion.ops import backend
from turbodiffusion.pipeline.identity import WeightIdentity
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.weights.find import Files, find
from turbodiffusion.weights.header import read_header
from turbodiffusion.weights.load import load_dit, load_text_encoder, load_vae


def pick_device(name: str | torch.device | None) -> torch.device:
    """The device called ``name``; without a name the first GPU, else the CPU."""
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError("device-unknown", f"There is no device {name!r}.",
                         "Use cpu, cuda or cuda:1.") from error  # fmt: skip
    if device.type not in ("cpu", "cuda"):
        raise UsageError("device-unsupported", f"The networks do not run on {device.type}.",
                         "Use cpu, cuda or cuda:1.")  # fmt: skip
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SetupError("device-no-cuda", f"{name} was asked for, but torch sees no CUDA device.",
                         "Leave --device out to run on the CPU, or check the driver.")  # fmt: skip
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError("device-unknown",
                         f"There is no {name}: torch sees {torch.cuda.device_count()} GPUs.",
                         "Use a smaller number.")  # fmt: skip
    return device


def load(
    name_or_path: str | Path | Files | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    attention: Attention | str | None = None,
    topk: float | None = None,
    low: str | Path | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    swap: bool | None = None,
) -> Pipeline:
    """Load a model.

    Args:
        name_or_path: a name that ``turbodiffusion models`` lists, a checkpoint file, a folder or a
            hub id, or what :func:`~turbodiffusion.weights.find.find` gave. Default: the best
            embedded model.
        device: default the first CUDA device, else the CPU.
        dtype: precision of the networks. Default as in the file; on a CPU the embedded models run
            in float32, which is faster there at their size.
        attention: an :class:`Attention`, or ``dense``, ``sla``, ``sagesla``; default what the
            file was trained for. topk: share of key blocks that SLA keeps.
        low: file of the low-noise expert, when ``name_or_path`` is that of the high-noise one.
        vae, text_encoder, tokenizer: files, when they do not lie beside the network's.
        swap: keep only the module in use on the GPU; default: when they do not all fit.

    Raises:
        WeightsError: a file is missing, damaged or of another model; nothing stays loaded.
        UsageError, SetupError: the device or attention cannot be used.
    """
    target = pick_device(device)
    if isinstance(name_or_path, Files):
        files = name_or_path
    else:
        files = find(name_or_path, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, low=low)
    card = files.card
    if topk is not None and not 0 < topk <= 1:
        raise UsageError("attention-topk", f"topk {topk} is not a share between 0 and 1.",
                         "0.1 keeps a tenth of the key blocks.")  # fmt: skip
    if dtype is None and card.embedded and target.type == "cpu":
        dtype = torch.float32
    chosen = _attention(card.attention, attention, topk)
    settings = card.attention.with_topk(topk)
    # Released networks go to the device when their turn comes, so that host memory mapping stays.
    home = target if card.embedded else torch.device("cpu")
    experts: dict[str, WanDiT] = {
        expert: load_dit(
            path, replace(card, attention=settings), attention=chosen, device=home, dtype=dtype
        )
        for expert, path in files.dit.items()
    }
    networks = (
        load_vae(files.vae, card.vae, device=home, dtype=dtype or torch.bfloat16),
        load_text_encoder(files.text_encoder, card.text, device=home, dtype=dtype),
    )
    reader = Tokenizer.from_file(files.tokenizer, card.text.text_len)
    pipe = Pipeline(
        card, experts, *networks, reader, device=target, identity=WeightIdentity.of(files),
        swap=swap,
    )  # fmt: skip
    for note in _notes(pipe, chosen, topk, distilled=_distilled(files)):
        warnings.warn(note, stacklevel=2)
    return pipe


def _attention(
    default: Attention, asked: Attention | str | None, topk: float | None
) -> Attention | None:
    """None leaves the choice to the file."""
    if asked is None or isinstance(asked, Attention):
        return asked
    kind: Any = "dense" if asked == "original" else asked  # the released scripts' word
    if kind not in ("dense", "sla", "sagesla"):
        raise UsageError("attention-unknown", f"There is no attention {asked!r}.",
                         "Use dense, sla or sagesla.")  # fmt: skip
    return replace(default.with_topk(topk), kind=kind)


def _distilled(files: Files) -> bool:
    """Whether the files of an embedded model say themselves that they are its few-step student.

    In other files our metadata names the card that the shapes fit, which proves nothing.
    """
    said = (read_header(path).metadata.get("card") for path in files.dit.values())
    return files.card.embedded and all(name == files.card.name for name in said)


def _notes(
    pipe: Pipeline, asked: Attention | None, topk: float | None, distilled: bool
) -> list[str]:
    """What the user of this model should know, one sentence each."""
    used, notes = pipe.any_expert.attention, []
    if (
        used.kind == "sagesla"
        and (form := backend.resolve("sage", pipe.device)).backend != "triton"
    ):
        notes.append(
            f"{form.reason} It has the accuracy of 8-bit attention but not its speed: attention "
            "sla is faster here."
        )
    if used.kind == "dense" and topk is not None:
        notes.append(f"topk {topk} is without effect: this network runs dense attention.")
    meant_sparse = pipe.card.few_step and pipe.card.attention.kind != "dense"
    if meant_sparse and used.kind == "dense" and asked is None and not distilled:
        notes.append(
            "The file has no projection for sparse attention, as an original Wan network: it runs "
            "dense, and unless it was distilled few steps give noise. --baseline (baseline=True) "
            "is its own sampler."
        )
    return notes
