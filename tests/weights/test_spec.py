"""The computed tensor lists equal the published counts, the golden files and our own modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.golden.vectors import golden_files, golden_id, load_golden
from turbodiffusion.models.cards import (
    CARDS,
    DIT_1_3B,
    DIT_14B,
    DIT_A14B,
    UMT5_XXL,
    WAN_VAE,
    Attention,
    DiTConfig,
    TextEncoderConfig,
)
from turbodiffusion.weights.spec import Spec, dit_spec, spec_bytes, text_spec, vae_spec


@pytest.mark.parametrize(
    ("config", "keys", "quant_keys", "nbytes", "quant_bytes", "parameters"),
    [
        (DIT_1_3B, 885, 1185, 2_839_537_280, 1_447_892_480, 1_418_996_800),
        (DIT_14B, 1175, 1575, 28_580_761_728, 14_533_273_728, 14_288_491_584),
        (DIT_A14B, 1175, 1575, 28_581_580_928, 14_534_092_928, 14_288_901_184),
    ],
    ids=["1.3B", "14B", "A14B"],
)
def test_dit_counts(
    config: DiTConfig, keys: int, quant_keys: int, nbytes: int, quant_bytes: int, parameters: int
) -> None:
    plain, quant = dit_spec(config), dit_spec(config, quantized=True)
    assert (len(plain), len(quant)) == (keys, quant_keys)
    assert (spec_bytes(plain), spec_bytes(quant)) == (nbytes, quant_bytes)
    assert sum(t.elements for t in dit_spec(config, sla=False).values()) == parameters


def test_vae_and_text_counts() -> None:
    vae, text = vae_spec(WAN_VAE), text_spec(UMT5_XXL)
    assert len(vae) == 194 and sum(t.elements for t in vae.values()) == 126_892_531
    assert len(text) == 242 and spec_bytes(text) == 11_361_820_672


def test_int8_scale_shapes() -> None:
    spec = dit_spec(DIT_1_3B, quantized=True)
    assert spec["blocks.29.ffn.0.scale"].shape == (70, 12)
    assert spec["blocks.29.ffn.2.scale"].shape == (12, 70)
    assert spec["blocks.0.self_attn.q.int8_weight"].dtype == "int8"


VECTORS = [p for pattern in ("dit_*", "vae*", "umt5*") for p in golden_files(pattern)]


@pytest.mark.parametrize("path", VECTORS, ids=golden_id)
def test_golden_state_dicts(path: Path) -> None:
    golden = load_golden(path)
    found = {name: tuple(t.shape) for name, t in golden.group("sd").items()}
    assert found == {k: t.shape for k, t in _golden_spec(path.stem, golden.metadata).items()}


def _golden_spec(stem: str, meta: dict[str, str]) -> Spec:
    if stem.startswith("vae"):
        z = int(meta["z_dim"])
        return vae_spec(
            replace(WAN_VAE, dim=int(meta["dim"]), z_dim=z, latent_mean=(), latent_std=())
        )
    if stem.startswith("umt5"):
        heads = int(meta["num_heads"])
        config = TextEncoderConfig(
            int(meta["vocab_size"]), int(meta["dim"]), heads, int(meta["dim_attn"]) // heads,
            int(meta["dim_ffn"]), int(meta["num_layers"]), int(meta["num_buckets"]),
        )  # fmt: skip
        return text_spec(config)
    names = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim")
    dit = DiTConfig(**{k: int(meta[k]) for k in (*names, "text_len", "freq_dim")})
    return dit_spec(dit, sla=meta["attention"] != "original")


@pytest.mark.parametrize("quantized", [False, True], ids=["bf16", "int8"])
@pytest.mark.parametrize("name", CARDS)
def test_modules_have_these_tensors(name: str, quantized: bool) -> None:
    from turbodiffusion.models.dit import WanDiT

    card = CARDS[name]
    with torch.device("meta"):
        dit = WanDiT(card.dit, Attention("sla"), quantized)
    found = {k: tuple(t.shape) for k, t in dit.state_dict().items()}
    assert found == {k: t.shape for k, t in dit_spec(card.dit, quantized).items()}


@pytest.mark.parametrize("name", ["TurboWan2.1-T2V-1.3B-480P", "micro-teacher"])
def test_companion_modules_have_these_tensors(name: str) -> None:
    from turbodiffusion.models.text_encoder import TextEncoder
    from turbodiffusion.models.vae import WanVAE

    card = CARDS[name]
    with torch.device("meta"):
        vae, text = WanVAE(card.vae), TextEncoder(card.text)
    found = {k: tuple(t.shape) for k, t in vae.state_dict().items()}
    assert found == {k: t.shape for k, t in vae_spec(card.vae).items()}
    found = {k: tuple(t.shape) for k, t in text.state_dict().items()}
    assert found == {k: t.shape for k, t in text_spec(card.text).items()}
