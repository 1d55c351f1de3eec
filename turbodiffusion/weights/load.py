"""Build a network and give it the tensors of a file.

The module is made on the meta device, every name and shape is compared with the file's header, and
only then are the memory-mapped tensors assigned: nothing is initialised, copied or cast on the way,
and a file that does not suit is refused before one tensor is read. Quantisation and the presence
of the SLA projection are taken from the file.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import Attention, ModelCard, TextEncoderConfig, VAEConfig
from turbodiffusion.weights.check import require_complete, require_config, require_kind, some
from turbodiffusion.weights.detect import Description, describe
from turbodiffusion.weights.infer import Config
from turbodiffusion.weights.layouts import resolve
from turbodiffusion.weights.read import Checkpoint, open_checkpoint
from turbodiffusion.weights.spec import PROJ_L

if TYPE_CHECKING:
    from turbodiffusion.models.dit import WanDiT
    from turbodiffusion.models.text_encoder import TextEncoder
    from turbodiffusion.models.vae import WanVAE

Network = TypeVar("Network", bound=nn.Module)
Device = str | torch.device


def load_dit(
    path: str | Path,
    card: ModelCard,
    attention: Attention | None = None,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    quant_linear: bool | None = None,
) -> WanDiT:
    """Load a diffusion transformer, in evaluation mode and without gradients.

    Args:
        path: file or folder of one network, in any dialect of :mod:`.layouts`.
        card: the model whose sizes the file must have.
        attention: None takes the card's settings where the file has the SLA projection, dense
            attention where it has none. Dense attention ignores a projection in the file.
        device: where the tensors go; on the CPU they stay memory-mapped.
        dtype: None keeps the file's types. Otherwise floating tensors are converted, but for
            int8 scales, and for norms where ``dtype`` is the narrower type (they are fp32 in
            released files).
        quant_linear: what the caller believes; a contradiction with the file is a warning.

    Raises:
        WeightsError: another kind of file, other sizes, missing or surplus tensors, SLA asked of
            a file without its projection, or anything :func:`.read.open_checkpoint` refuses.
    """
    from turbodiffusion.models.dit import WanDiT

    checkpoint, found = _open(path, "dit", card.dit, card.name)
    if quant_linear is not None and quant_linear != found.quantized:
        holds = "int8" if found.quantized else "unquantised"
        warnings.warn(
            f"quant_linear={quant_linear} was asked for, but {path} holds {holds} linears; "
            "the file decides.",
            stacklevel=2,
        )
    chosen = _attention(found, card, attention)

    def convert(name: str, tensor: torch.Tensor) -> torch.Tensor:
        narrower = dtype is not None and dtype.itemsize < tensor.dtype.itemsize
        keep = name.endswith(".scale") or (narrower and "norm" in name)
        return tensor if keep or dtype is None else _cast(tensor, dtype)

    ignore = PROJ_L if chosen.kind == "dense" else ""
    return _fill(
        lambda: WanDiT(card.dit, chosen, found.quantized), checkpoint, device, convert, ignore
    )


def load_vae(
    path: str | Path,
    config: VAEConfig,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
) -> WanVAE:
    """Load a VAE. Latent statistics in the file's metadata (``latent_mean``, ``latent_std``, JSON
    lists of ``z_dim`` numbers) replace those of ``config``; ``dtype`` None keeps the file's type.

    Raises:
        WeightsError: as :func:`load_dit`; also latent statistics that cannot be used.
    """
    from turbodiffusion.models.vae import WanVAE

    checkpoint, _ = _open(path, "vae", config)
    stats = latent_stats(checkpoint, config)
    vae = _fill(lambda: WanVAE(config), checkpoint, device, lambda _, t: _cast(t, dtype))
    vae.set_latent_stats(*stats)
    return vae


def load_text_encoder(
    path: str | Path,
    config: TextEncoderConfig,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
) -> TextEncoder:
    """Load a umT5 encoder; ``dtype`` None keeps the file's type.

    Raises:
        WeightsError: as :func:`load_dit`; ``weights-text-width`` for an encoder of other sizes.
    """
    from turbodiffusion.models.text_encoder import TextEncoder

    checkpoint, _ = _open(path, "text_encoder", config)
    return _fill(lambda: TextEncoder(config), checkpoint, device, lambda _, t: _cast(t, dtype))


def latent_stats(
    checkpoint: Checkpoint, config: VAEConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per latent channel, from the metadata or else the config."""
    result = []
    for name in ("latent_mean", "latent_std"):
        text = checkpoint.metadata.get(name)
        if text is None:
            result.append(getattr(config, name))
            continue
        try:
            values = tuple(float(v) for v in json.loads(text))
        except (TypeError, ValueError):
            values = ()
        usable = len(values) == config.z_dim and all(math.isfinite(v) for v in values)
        if not usable or (name == "latent_std" and min(values) <= 0):
            raise WeightsError(
                "weights-latent-stats",
                f"{checkpoint.header.path} stores {name}={text[:60]!r}, "
                f"which is no list of {config.z_dim} usable numbers.",
                "Fetch the VAE again, or train it again.",
            )
        result.append(values)
    return result[0], result[1]


def _open(
    path: str | Path, kind: str, config: Config, name: str = ""
) -> tuple[Checkpoint, Description]:
    """Open a file after every check that its header allows."""
    checkpoint = open_checkpoint(path)
    found = describe(checkpoint.header)
    require_kind(found, kind)
    require_config(found, config, name)
    require_complete(found)
    return checkpoint, found


def _attention(found: Description, card: ModelCard, wanted: Attention | None) -> Attention:
    if wanted is None:
        if found.attention == "dense":
            return replace(card.attention, kind="dense")
        sparse = card.attention.kind != "dense"
        return card.attention if sparse else replace(card.attention, kind="sla")
    if wanted.kind != "dense" and found.attention == "dense":
        raise WeightsError(
            "weights-no-sla",
            f"{found.path} is a plain Wan network without the SLA projection (proj_l), "
            f"so it cannot run with {wanted.kind!r} attention.",
            "Use dense attention ('original') with it, or a TurboWan checkpoint.",
        )
    return wanted


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _fill(
    build: Callable[[], Network],
    checkpoint: Checkpoint,
    device: Device,
    convert: Callable[[str, torch.Tensor], torch.Tensor],
    ignore: str = "",
) -> Network:
    """Make the module on the meta device and assign the file's tensors to it."""
    with torch.device("meta"):
        network = build()
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    header = checkpoint.header
    names = resolve(header.shapes, header.wrapper).names
    names = {name: key for name, key in names.items() if not (ignore and ignore in name)}
    _require_same_names(header.path, names, wanted)
    state = {}
    for name, shape in wanted.items():
        tensor = checkpoint.tensor(names[name]).reshape(shape)
        state[name] = convert(name, tensor).to(device)
    network.load_state_dict(state, strict=True, assign=True)
    checkpoint.close()
    left = [n for n, t in (*network.named_parameters(), *network.named_buffers()) if t.is_meta]
    if left:
        raise RuntimeError(f"{type(network).__name__} keeps unloaded tensors: {left[:3]}")
    return network.eval().requires_grad_(False)


def _require_same_names(path: Path, names: dict[str, str], wanted: Iterable[str]) -> None:
    known = set(wanted)
    missing = tuple(sorted(known - names.keys()))
    unexpected = tuple(sorted(names.keys() - known))
    if missing or unexpected:
        raise WeightsError(
            "weights-keys",
            f"{path} does not fit the network: {len(missing)} tensors missing ({some(missing)}), "
            f"{len(unexpected)} unexpected ({some(unexpected)}).",
            "See what the file holds with `turbodiffusion inspect FILE`.",
        )
