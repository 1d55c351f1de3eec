"""The text encoder replays the golden umT5 vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden.vectors import golden_files, golden_id, load_golden, relative_l2
from turbodiffusion.models.cards import TextEncoderConfig
from turbodiffusion.models.text_encoder import TextEncoder


@pytest.mark.parametrize("path", golden_files("umt5*"), ids=golden_id)
def test_context_and_hidden_states(path: Path) -> None:
    golden = load_golden(path)
    size = {name: int(value) for name, value in golden.metadata.items()}
    config = TextEncoderConfig(
        vocab_size=size["vocab_size"],
        dim=size["dim"],
        num_heads=size["num_heads"],
        head_dim=size["dim_attn"] // size["num_heads"],
        ffn_dim=size["dim_ffn"],
        num_layers=size["num_layers"],
        num_buckets=size["num_buckets"],
        text_len=golden["in.ids"].shape[1],
    )
    with torch.device("meta"):
        encoder = TextEncoder(config)
    encoder.load_state_dict(golden.group("sd"), assign=True)
    encoder.float()

    ids, mask = golden["in.ids"], golden["in.mask"]
    with torch.no_grad():
        context = encoder.encode(ids, mask)
        hidden = encoder(ids, mask)
    assert relative_l2(context, golden["context"]) < 1e-4
    assert relative_l2(hidden, golden["hidden"]) < 1e-4
    assert context[mask == 0].count_nonzero() == 0
