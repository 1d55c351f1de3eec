"""Write a small LoRA for ``micro``, for the page about merging: ``example_lora.py FILE``."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file

WIDTH, RANK = 128, 4

if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for block in range(4):
        for name in "qkvo":
            key = f"diffusion_model.blocks.{block}.self_attn.{name}"
            tensors[f"{key}.lora_up.weight"] = torch.randn(WIDTH, RANK, generator=generator) / 100
            tensors[f"{key}.lora_down.weight"] = torch.randn(RANK, WIDTH, generator=generator) / 100
            tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
    tensors["lora_te_layers_0.lora_up.weight"] = torch.zeros(WIDTH, RANK)  # of a text encoder
    save_file(tensors, sys.argv[1])
    print(f"{sys.argv[1]}: {len(tensors)} tensors, rank {RANK}")
