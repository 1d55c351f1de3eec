"""From a model's name to a pipeline that is ready to run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.models.cards import Attention
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import Tokenizer
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.weights.find import Files, find
from turbodiffusion.weights.identity import quick_hash
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
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SetupError("device-no-cuda", f"{name} was asked for, but torch sees no CUDA device.",
                         "Leave --device out to run on the CPU, or check the driver.")  # fmt: skip
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError("device-unknown",
                         f"There is no {name}: torch sees {torch.cuda.device_count()} GPUs.",
                         "Use a smaller number.")  # fmt: skip
    return device


def load(
    name_or_path: str | Path | None = None,
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
            hub id. Default: the best embedded model.
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
    files = find(name_or_path, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, low=low)
    card = files.card
    if dtype is None and card.embedded and target.type == "cpu":
        dtype = torch.float32
    chosen = _attention(card.attention, attention, topk)
    # Released networks go to the device when their turn comes, so that host memory mapping stays.
    home = target if card.embedded else torch.device("cpu")
    experts: dict[str, WanDiT] = {
        expert: load_dit(path, card, attention=chosen, device=home, dtype=dtype)
        for expert, path in files.dit.items()
    }
    return Pipeline(
        card,
        experts,
        load_vae(files.vae, card.vae, device=home, dtype=dtype or torch.bfloat16),
        load_text_encoder(files.text_encoder, card.text, device=home, dtype=dtype),
        Tokenizer.from_file(files.tokenizer, card.text.text_len),
        device=target,
        identity=_identity(files),
        swap=swap,
    )


def _attention(
    default: Attention, asked: Attention | str | None, topk: float | None
) -> Attention | None:
    """None leaves the choice to the file."""
    if isinstance(asked, Attention):
        return asked
    if asked is None and topk is None:
        return None
    kind: Any = asked or default.kind
    if kind == "original":  # the released scripts' word
        kind = "dense"
    if kind not in ("dense", "sla", "sagesla"):
        raise UsageError("attention-unknown", f"There is no attention {kind!r}.",
                         "Use dense, sla or sagesla.")  # fmt: skip
    if topk is not None and not 0 < topk <= 1:
        raise UsageError("attention-topk", f"topk {topk} is not a share between 0 and 1.",
                         "0.1 keeps a tenth of the key blocks.")  # fmt: skip
    return replace(default, kind=kind, topk=default.topk if topk is None else topk)


def _identity(files: Files) -> dict[str, Any]:
    """Names and header hashes of the weight files, cheap enough for every run."""
    parts = {**{f"dit{f'_{k}' if k else ''}": p for k, p in files.dit.items()}, "vae": files.vae,
             "text_encoder": files.text_encoder}  # fmt: skip
    return {name: {"file": path.name, "hash": quick_hash(path)} for name, path in parts.items()}
