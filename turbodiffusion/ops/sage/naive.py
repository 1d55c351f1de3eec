"""Definition of 8-bit attention: every rounding of the kernels, in float32 PyTorch.

Queries and smoothed keys become int8 with one scale per block, probabilities and values become
16-bit or e4m3. Products of those are exact in float32, sums differ from a kernel's in order only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from turbodiffusion.ops.sla import select_blocks
from turbodiffusion.ops.sla.naive import EPS, feature

BLOCK_Q, BLOCK_K = 128, 64
"""Blocks of the dense form, which has no map to take them from."""

V_RANGE = 2.25
"""A value channel is scaled to ±2.25: 448 · 2.25 · 64 keys stays finite in a float16 sum."""

E4M3_OFFSET = 8.807
"""Added to the exponent of P: 2^8.807 is 448, the largest e4m3 number. It cancels in O / l."""


def sage_attention(
    q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor, smooth_k: bool, pv: str
) -> tuple[Tensor, Tensor]:
    """Output (B, L, N, D) and base-2 LSE (B, N, L) of the unsmoothed scores."""
    b, length, n, d = q_BLND.shape
    key_blocks = -(-k_BSND.shape[1] // BLOCK_K)
    kept_BNQK = torch.ones(
        b, n, -(-length // BLOCK_Q), key_blocks, dtype=torch.bool, device=q_BLND.device
    )
    mean_B1ND = column_mean(k_BSND) if smooth_k else torch.zeros_like(k_BSND[:, :1])
    out_BNLD, lse_BNL = _core(
        q_BLND, smoothed(k_BSND, mean_B1ND), v_BSND, kept_BNQK, BLOCK_Q, BLOCK_K, pv
    )
    shift_BLN = (q_BLND.float() * mean_B1ND.float()).sum(-1) * (d**-0.5 * math.log2(math.e))
    return out_BNLD.transpose(1, 2).to(q_BLND.dtype), lse_BNL + shift_BLN.transpose(1, 2)


def sage_sparse_linear_attention(
    q_BLND: Tensor,
    k_BLND: Tensor,
    v_BLND: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    blocks: Tensor | None,
    topk: float,
    block_q: int,
    block_k: int,
    feature_map: str,
    pv: str,
) -> Tensor:
    if blocks is None:
        blocks = select_blocks(q_BLND, k_BLND, topk=topk, block_q=block_q, block_k=block_k)
    shape = *blocks.shape[:-1], -(-k_BLND.shape[1] // block_k)
    kept_BNQK = torch.zeros(shape, dtype=torch.bool, device=blocks.device).scatter(-1, blocks, True)
    k_smooth = smoothed(k_BLND, column_mean(k_BLND))
    sparse_BNLD, _ = _core(q_BLND, k_smooth, v_BLND, kept_BNQK, block_q, block_k, pv)

    phi_q = feature(q_BLND, feature_map).transpose(1, 2).float()
    phi_k = feature(k_BLND, feature_map).transpose(1, 2).float()
    state_BNDD = phi_k.mT @ v_BLND.transpose(1, 2).float()
    linear_BNLD = (phi_q @ state_BNDD) / (EPS + phi_q @ phi_k.sum(2).unsqueeze(-1))
    out_BNLD = sparse_BNLD + F.linear(linear_BNLD, proj_weight.float(), proj_bias.float())
    return out_BNLD.transpose(1, 2).to(q_BLND.dtype)


def _core(
    q_BLND: Tensor,
    k_BSND: Tensor,
    v_BSND: Tensor,
    kept_BNQK: Tensor,
    block_q: int,
    block_k: int,
    pv: str,
) -> tuple[Tensor, Tensor]:
    """Softmax over the kept blocks: (B, N, L, D), base-2 LSE, float32.

    The last kept block comes first, then the others in ascending order: what e4m3 makes of a
    probability depends on the largest score so far.
    """
    length, d = q_BLND.shape[1], q_BLND.shape[3]
    q8, scale_q = quantise(q_BLND, block_q)
    k8, scale_k = quantise(k_BSND, block_k)
    v, scale_v = quantise_values(v_BSND, pv)
    row_scale = scale_q.repeat_interleave(block_q, 2)[:, :, :length, None]
    last_BNQK = kept_BNQK & (kept_BNQK.flip(-1).cumsum(-1).flip(-1) == 1)
    first_BNLK, others_BNLK = (
        mask.repeat_interleave(block_q, 2)[:, :, :length]
        for mask in (last_BNQK, kept_BNQK & ~last_BNQK)
    )
    offset = E4M3_OFFSET if pv == "fp8" else 0.0

    # Minus infinity where the released kernels write -5e6, which a true score can fall below.
    m = q8.new_full((*q8.shape[:3], 1), float("-inf"))
    total, out = torch.zeros_like(m), torch.zeros_like(q8)
    order = ((j, mask) for mask in (first_BNLK, others_BNLK) for j in range(mask.shape[-1]))
    for j, visited_BNLK in order:
        keys = slice(j * block_k, (j + 1) * block_k)
        scale = row_scale * scale_k[:, :, j, None, None] * (d**-0.5 * math.log2(math.e))
        t = (q8 @ k8[:, :, keys].mT) * scale
        t = t.masked_fill(~visited_BNLK[..., j, None], float("-inf"))
        top = torch.maximum(m, t.amax(-1, keepdim=True))
        base = top.nan_to_num(neginf=0.0)  # no block kept so far
        shrink = torch.exp2(m - base)
        p = torch.exp2(t - base + offset)
        rounded = narrow(p, pv)
        total = total * shrink + (p if pv == "fp8" else rounded).sum(-1, keepdim=True)
        out = out * shrink + rounded @ v[:, :, keys]
        m = top
    lse_BNL = (m + total.log2() - offset).squeeze(-1)
    return out / total * scale_v, lse_BNL


def column_mean(k_BSND: Tensor) -> Tensor:
    """Mean over the tokens, (B, 1, N, D): summed in float32, kept in the dtype of the keys."""
    return k_BSND.float().mean(1, keepdim=True).to(k_BSND.dtype)


def smoothed(k_BSND: Tensor, mean_B1ND: Tensor) -> Tensor:
    """Keys without their mean, which moves every score of a row alike: softmax does not see it."""
    return (k_BSND.float() - mean_B1ND.float()).to(k_BSND.dtype)


def quantise(x_BLND: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Integers in float32 (B, N, L, D) and scales (B, N, blocks) of blocks of tokens.

    Half steps round away from zero; the scale's 1e-7 keeps |x8| ≤ 127 and a zero block finite.
    """
    x = x_BLND.transpose(1, 2).float()
    parts = x.split(block, 2)
    scale = torch.stack([part.abs().amax((2, 3)) for part in parts], -1) / 127 + 1e-7
    steps = x / scale.repeat_interleave(block, 2)[:, :, : x.shape[2], None]
    return (steps + 0.5 * steps.sign()).trunc(), scale


def quantise_values(v_BSND: Tensor, pv: str) -> tuple[Tensor, Tensor]:
    """Values as the second product sees them, in float32 (B, N, S, D), and what undoes it.

    The floor under a channel's scale keeps a channel of zeros zero instead of 0/0.
    """
    v = v_BSND.transpose(1, 2).float()
    if pv != "fp8":
        return narrow(v, pv), torch.ones((), device=v.device)
    scale = (v.abs().amax(2, keepdim=True) / V_RANGE).clamp_min(1e-12)
    return narrow(v / scale, pv), scale


FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


def narrow(x: Tensor, pv: str) -> Tensor:
    """``x`` rounded to a format of the second product and back; too large a number saturates."""
    limit = torch.finfo(FORMATS[pv]).max
    return x.clamp(-limit, limit).to(FORMATS[pv]).float()
