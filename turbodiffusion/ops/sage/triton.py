"""8-bit attention by Triton kernels: two passes over the inputs, the block map, one kernel.

Kernels take blocks that are powers of two, at least 16 (32 for e4m3 values, whose matrix
instruction sums 32 keys), and head widths that are too. For other geometries, which no released
model uses, the host functions here run the portable form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.ops.gpu import (
    capability,
    interpreted,
    multiprocessors,
    obstacle,  # noqa: F401 - the resolver asks for it
)
from turbodiffusion.ops.sage import portable
from turbodiffusion.ops.sage.config import CoreConfig, PrepareConfig, integer_dtype
from turbodiffusion.ops.sage.core import core_kernel
from turbodiffusion.ops.sage.naive import BLOCK_K, BLOCK_Q, V_RANGE
from turbodiffusion.ops.sage.prepare import quantise_kernel, query_kernel
from turbodiffusion.ops.sla.triton import pool, pooled, token_product, top_blocks

POOL_BLOCK = 128
"""Values of which a program finds the largest."""

STATE_BLOCK = 64
"""Largest key block that fits in registers beside the linear state; larger ones read k, v again."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Keys:
    """Keys and values as the kernels read them, in blocks of ``block`` tokens.

    ``integers`` (B, N, blocks·block, D) have a ``scale`` (B, N, blocks), after ``shift`` (B, N, D)
    was taken off. ``values`` are (B, S, N, D) of any strides, or for e4m3 (B, N, blocks, D, block)
    with ``value_scale`` (B, N, D), the integers then in the order of :func:`.prepare.place`. Inside
    SLA also: ``mean`` (B, N, blocks, D) for the block map, ``state`` (B, N, D, D), the linear state
    times the projection, and ``weight`` (B, N, D), Σ φ(k).
    """

    length: int
    block: int
    integers: Tensor
    scale: Tensor
    shift: Tensor
    pv: str
    values: Tensor
    value_scale: Tensor | None
    feature_map: str = "none"
    mean: Tensor | None = None
    state: Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class Queries:
    """Queries as integers (B, N, blocks·block, D) with a ``scale`` (B, N, blocks).

    ``mean`` (B, N, blocks, D) is for the block map; ``shift`` (B, N, blocks·block) is what
    smoothing took off a row's scores. ``linear``: the output holds the linear branch already.
    """

    block: int
    integers: Tensor
    scale: Tensor
    mean: Tensor | None
    shift: Tensor | None
    linear: bool


def sage_attention(
    q_BLND: Tensor, k_BSND: Tensor, v_BSND: Tensor, smooth_k: bool, pv: str
) -> tuple[Tensor, Tensor]:
    if not _possible(q_BLND, BLOCK_Q, BLOCK_K, pv):
        return portable.sage_attention(q_BLND, k_BSND, v_BSND, smooth_k, pv)
    q, k, v = map(_rows, (q_BLND, k_BSND, v_BSND))
    b, length, n, _ = q.shape
    keys = prepare_keys(k, v, BLOCK_K, pv, smooth=smooth_k)
    queries = prepare_queries(q, BLOCK_Q, keys)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(b, n, length, dtype=torch.float32, device=q.device)
    return attend(queries, keys, out, lse=lse), lse


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
    if not _possible(q_BLND, block_q, block_k, pv):
        return portable.sage_sparse_linear_attention(
            q_BLND, k_BLND, v_BLND, proj_weight, proj_bias, blocks, topk, block_q, block_k,
            feature_map, pv,
        )  # fmt: skip
    q, k, v = map(_rows, (q_BLND, k_BLND, v_BLND))
    keys = prepare_keys(k, v, block_k, pv, feature_map=feature_map, proj_weight=proj_weight)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    queries = prepare_queries(q, block_q, keys, proj_bias, out)
    if blocks is None:
        assert queries.mean is not None and keys.mean is not None
        score_BNQK = queries.mean.float() @ keys.mean.float().mT
        kept = min(score_BNQK.shape[-1], max(1, int(topk * score_BNQK.shape[-1])))
        blocks = top_blocks(score_BNQK, kept)
    return attend(queries, keys, out, blocks=blocks)


def prepare_keys(
    k_BSND: Tensor,
    v_BSND: Tensor,
    block: int,
    pv: str,
    *,
    smooth: bool = True,
    feature_map: str = "none",
    proj_weight: Tensor | None = None,
) -> Keys:
    """Quantise keys and values; with a feature map also the state of the linear branch."""
    b, length, n, d = k_BSND.shape
    device, dtype = k_BSND.device, k_BSND.dtype
    linear = feature_map != "none"
    count = -(-length // block)
    shift = torch.zeros(b, n, d, dtype=dtype, device=device)
    mean = state = weight = None
    if smooth:
        mean, mean_BN1D = pooled(k_BSND, block)
        mean, shift = (mean - mean_BN1D).to(dtype), mean_BN1D.squeeze(2).to(dtype)
    value_scale, values, work = None, v_BSND, "keep"
    if pv == "fp8":
        largest = pool(v_BSND, POOL_BLOCK, "amax").amax(2)
        value_scale, work = (largest / V_RANGE).clamp_min(1e-12), "fp8"
        values = torch.empty(b, n, count, d, block, dtype=DTYPES[pv], device=device)
    elif v_BSND.dtype != DTYPES[pv]:
        work = "half"
        values = torch.empty(b, n, count * block, d, dtype=DTYPES[pv], device=device)
    together = linear and block <= STATE_BLOCK
    config = PrepareConfig.keys(capability(device), block, together)
    per, parts = _share(count, b * n, config.programs, device)
    integers = torch.empty(
        b, n, count * block, d, dtype=integer_dtype(capability(device)), device=device
    )
    scale = torch.empty(b, n, count, dtype=torch.float32, device=device)
    if together:
        state = torch.empty(b, n, parts, d, d, dtype=torch.float32, device=device)
        weight = torch.empty(b, n, parts, d, dtype=torch.float32, device=device)
    quantise_kernel[b * n, parts](
        k_BSND, v_BSND, shift, value_scale, integers, scale, values, state, weight,
        *k_BSND.stride()[:3], *v_BSND.stride()[:3], length, n, count, per,
        D=d, BK=block, PV=work, FEATURE=feature_map if together else "none",
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if state is not None and weight is not None:
        state, weight = state.sum(2), weight.sum(2)
    elif linear:
        state, weight = token_product(k_BSND, v_BSND, feature_map)
        state, weight = state.view(b, n, d, d), weight.view(b, n, d)
    if state is not None and proj_weight is not None:
        # (φ(q) S / z) Wᵀ = φ(q) (S Wᵀ) / z: the projection is applied once a head, not a token.
        product = torch.bfloat16 if dtype is torch.bfloat16 else torch.float32
        state = (state @ proj_weight.float().mT).to(product)
    if work == "half":
        values = values.transpose(1, 2)
    return Keys(
        length, block, integers, scale, shift, pv, values, value_scale, feature_map, mean, state,
        weight,
    )  # fmt: skip


def prepare_queries(
    q_BLND: Tensor,
    block: int,
    keys: Keys,
    proj_bias: Tensor | None = None,
    out_BLND: Tensor | None = None,
) -> Queries:
    """Quantise queries; where keys carry a linear state, leave that branch in ``out_BLND``."""
    b, length, n, d = q_BLND.shape
    device, linear = q_BLND.device, keys.state is not None
    count = -(-length // block)
    integers = torch.empty(b, n, count * block, d, dtype=keys.integers.dtype, device=device)
    scale = torch.empty(b, n, count, dtype=torch.float32, device=device)
    mean = shift = bias = None
    if linear:
        mean = torch.empty(b, n, count, d, dtype=q_BLND.dtype, device=device)
        assert proj_bias is not None
        bias = proj_bias.float()
    else:
        shift = torch.empty(b, n, count * block, dtype=torch.float32, device=device)
    out_strides = (0, 0, 0) if out_BLND is None else out_BLND.stride()[:3]
    config = PrepareConfig.queries(capability(device), block, linear)
    per, parts = _share(count, b * n, config.programs, device)
    query_kernel[b * n, parts](
        q_BLND, keys.shift, keys.state, keys.weight, bias, integers, scale, mean, shift, out_BLND,
        *q_BLND.stride()[:3], *out_strides, length, n, count, per,
        d**-0.5 * math.log2(math.e),
        D=d, BQ=block, ROWS=min(config.rows, block), FEATURE=keys.feature_map,
        POOL=linear, SHIFT=not linear,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return Queries(block, integers, scale, mean, shift, linear)


def attend(
    queries: Queries,
    keys: Keys,
    out_BLND: Tensor,
    *,
    blocks: Tensor | None = None,
    counts: Tensor | None = None,
    lse: Tensor | None = None,
    config: CoreConfig | None = None,
) -> Tensor:
    """Launch the attention kernel; writes ``out_BLND``, or adds to the linear branch there.

    Args:
        blocks: ascending key blocks (B, N, query blocks, kept) of each query block; all if None.
        counts: how many of them count, int32 (B, N, query blocks); 0 gives the row zero.
        lse: where to write the base-2 LSE (B, N, L).
        config: launch numbers to try instead of the chosen ones.
    """
    b, length, n, d = out_BLND.shape
    config = config or CoreConfig.pick(
        capability(out_BLND.device), queries.block, keys.block, d, keys.pv
    )
    strides = keys.values.stride()[:3]
    if keys.pv == "fp8":
        strides = strides[0], 0, strides[1]
    if blocks is not None:
        blocks = blocks.contiguous()
    core_kernel[queries.scale.shape[2], b * n](
        queries.integers, keys.integers, keys.values, queries.scale, keys.scale, keys.value_scale,
        blocks, counts, queries.shift, out_BLND, lse, *strides, *out_BLND.stride()[:3],
        length, keys.length, n, keys.scale.shape[2], 0 if blocks is None else blocks.shape[3],
        d**-0.5 * math.log2(math.e),
        D=d, BQ=queries.block, BK=keys.block, PV=keys.pv, PARTS=config.parts,
        TWO_LEVEL=config.two_level,
        LISTED=blocks is not None, COUNTED=counts is not None, LSE=lse is not None,
        ADD=queries.linear, num_warps=config.num_warps, num_stages=config.num_stages,
        **config.options(),
    )  # fmt: skip
    return out_BLND


def _rows(x_BLND: Tensor) -> Tensor:
    """As is if the head width is contiguous and loads are aligned to 16 bytes, else a copy."""
    unit = 16 // x_BLND.element_size()
    regular = x_BLND.stride(3) == 1 and all(s % unit == 0 for s in x_BLND.stride()[:3])
    return x_BLND if regular and x_BLND.data_ptr() % 16 == 0 else x_BLND.contiguous()


def _possible(q_BLND: Tensor, block_q: int, block_k: int, pv: str) -> bool:
    """Whether the kernels have this geometry.

    Raises:
        UsageError: e4m3 was asked of a GPU without it.
    """
    found = capability(q_BLND.device)
    if pv == "fp8" and found < (8, 9) and not interpreted():
        raise UsageError(
            "ops-sage-fp8",
            f"pv 'fp8' needs a GPU of capability 8.9 or newer, this one has {found[0]}.{found[1]}.",
            "Use pv 'fp16', or leave it at 'auto'.",
        )
    d = q_BLND.shape[3]
    powers = all(x & (x - 1) == 0 for x in (block_q, block_k, d))
    low = 32 if pv == "fp8" else 16
    return powers and 16 <= block_q <= 128 and low <= block_k <= 128 and 16 <= d <= 128 and (
        d >= 32 or interpreted()
    )  # fmt: skip


def _share(count: int, heads: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Of ``count`` blocks of each head how many a program takes, and how many programs do so.

    About ``programs`` run on a multiprocessor one after the other or at once. Rounded down: a few
    more would wait for all others.
    """
    parts = min(count, max(1, _processors(device) * programs // heads))
    per = -(-count // parts)
    return per, -(-count // per)


def _processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; for the interpreter few, so that tests do not wait."""
    if device.type != "cuda":
        return 1
    return multiprocessors(torch.cuda.current_device() if device.index is None else device.index)
