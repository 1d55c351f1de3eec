"""The attention tangent by one Triton kernel. Tensors are read in place, with any strides.

Float32 products are exact to 1e-6, or TF32 where PyTorch's own are: after
``torch.set_float32_matmul_precision("high")``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbodiffusion.ops import gpu
from turbodiffusion.ops.attention.triton import check, inner_contiguous, on, precision, score_scale
from turbodiffusion.ops.attention.triton import strides as of_strides
from turbodiffusion.ops.gpu import obstacle  # noqa: F401
from turbodiffusion.ops.tangent.config import TangentConfig
from turbodiffusion.ops.tangent.kernel import tangent_kernel


@torch.no_grad()
def attention_tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor,
    tk: Tensor | None,
    tv: Tensor | None,
    config: TangentConfig | None = None,
) -> tuple[Tensor, Tensor]:
    check(q)
    (b, length, n, d), s = q.shape, k.shape[1]
    moves = tk is not None
    given = (q, k, v, tq, k if tk is None else tk, v if tv is None else tv)
    inputs = [inner_contiguous(x.to(q.dtype)) for x in given]
    single = q.dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"
    if config is None:
        config = TangentConfig.choose(gpu.capability(q.device), d, q.element_size(), single)
    value, tangent = (q.new_empty(b, length, n, d) for _ in range(2))
    with on(q.device):
        tangent_kernel[-(-length // config.tile_q), b * n](
            *inputs, value, tangent, score_scale(d), d**-0.5, length, s, n,
            *(number for x in (*inputs, value) for number in of_strides(x)),
            D=d, TILE_Q=config.tile_q, TILE_K=config.tile_k, KEYS_MOVE=moves,
            PRECISION="tf32" if single else precision(q.dtype),
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return value, tangent
