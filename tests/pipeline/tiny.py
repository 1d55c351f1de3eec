"""Miniature cards of the released layouts, with random weights, so that whole runs are tests.

They are registered beside the real cards, and their files are written with the released names into
one folder that ``TURBODIFFUSION_MODELS`` names. Run as a module it is the ``turbodiffusion``
command with these cards: ``python -m tests.pipeline.tiny generate …``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from turbodiffusion.mini.captions import WORDS
from turbodiffusion.mini.vocabulary import build_tokenizer
from turbodiffusion.models.cards import (
    CARDS,
    Attention,
    Baseline,
    DiTConfig,
    ModelCard,
    TextEncoderConfig,
    VAEConfig,
)
from turbodiffusion.weights.synthetic import write_synthetic

T2V = ModelCard(
    name="Tiny2.1-T2V-1.3B-480P",
    task="t2v",
    dit=DiTConfig(
        dim=128, ffn_dim=256, num_heads=2, num_layers=2, in_dim=8, out_dim=8, text_dim=64,
        text_len=24, freq_dim=128,
    ),
    vae=VAEConfig(
        dim=8, z_dim=8, dim_mult=(1, 2, 4), num_res_blocks=1, temporal_downsample=(True, True)
    ),
    text=TextEncoderConfig(
        vocab_size=384, dim=64, num_heads=2, head_dim=32, ffn_dim=128, num_layers=1, text_len=24
    ),
    width=48,
    height=32,
    frames=9,
    attention=Attention("sagesla", topk=0.25, block_q=16, block_k=16),
    baseline=Baseline(steps=3, shift=5.0, guidance=5.0),
)  # fmt: skip
I2V = replace(
    T2V,
    name="Tiny2.2-I2V-A14B-720P",
    task="i2v",
    dit=replace(T2V.dit, in_dim=20),
    experts=("high", "low"),
    sigma_max=200.0,
)
FILES = {
    "bf16": "Tiny2.1-T2V-1.3B-480P.pth",
    "int8": "Tiny2.1-T2V-1.3B-480P-quant.pth",
    "high": "Tiny2.2-I2V-A14B-high-720P.pth",
    "low": "Tiny2.2-I2V-A14B-low-720P.pth",
    "plain": "plain/original-wan.pth",
    "safetensors": "other/Tiny2.1-T2V-1.3B-480P.safetensors",
    "vae": "Wan2.1_VAE.pth",
    "text": "models_t5_umt5-xxl-enc-bf16.pth",
    "tokenizer": "google/umt5-xxl/tokenizer.json",
}


def register() -> None:
    """Make the cards known to this process."""
    for one in (T2V, I2V):
        CARDS[one.name] = one


def write_models(folder: Path) -> dict[str, Path]:
    """All files of both cards by the short names of ``FILES``."""
    paths = {name: folder / file for name, file in FILES.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    write_synthetic(T2V, paths["bf16"])
    write_synthetic(T2V, paths["safetensors"])
    write_synthetic(T2V, paths["int8"], quantized=True)
    write_synthetic(T2V, paths["plain"], sla=False)
    write_synthetic(I2V, paths["high"], seed=1)
    write_synthetic(I2V, paths["low"], seed=2)
    write_synthetic(T2V, paths["vae"], role="vae")
    write_synthetic(T2V, paths["text"], role="text_encoder")
    build_tokenizer(list(WORDS), paths["tokenizer"])
    return paths


if __name__ == "__main__":
    from turbodiffusion.cli.main import main

    register()
    sys.exit(main())
