"""Derivatives along a direction (JVP) through a network, without a graph.

==========  ===============================================  ======================================
way         how                                              for
==========  ===============================================  ======================================
``"whole"`` ``torch.func.jvp`` with attention as plain        small networks, comparisons: every
            products                                          score matrix is held in memory
``"dual"``  dual numbers run through the modules; attention   any size, with shards and sequence
            streams value and tangent together, see           parallelism: hooks of modules and the
            :mod:`turbodiffusion.ops.tangent`                 exchanges of heads work as ever
==========  ===============================================  ======================================

Only what depends on x and t carries a tangent: text, rotary tables and image conditions do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from turbodiffusion.errors import UsageError
from turbodiffusion.ops import dual

Way = Literal["whole", "dual"]
Function = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]


@torch.no_grad()
def jvp(function: Function, at: Pair, along: Pair, way: Way = "dual") -> Pair:
    """``function(x, t)`` at ``at``, and its derivative along ``along``; no graph.

    Raises:
        UsageError: an unknown way; a network with sparse attention, which has no tangent.
    """
    if way == "whole":
        with dual.portable_forms(), sdpa_kernel(SDPBackend.MATH):
            value, tangent = cast(Pair, torch.func.jvp(function, at, along))
        return value.detach(), tangent.detach()
    if way == "dual":
        with dual.streamed_attention(), forward_ad.dual_level():
            x, t = (forward_ad.make_dual(p, d.to(p)) for p, d in zip(at, along, strict=True))
            value, moved = forward_ad.unpack_dual(function(x, t))
        # A function that ignores both has no tangent, which is not the same as a wrong one.
        return value, torch.zeros_like(value) if moved is None else moved
    raise UsageError(
        "train-jvp", f"There is no way {way!r} to derive.", f"Use {' or '.join(get_args(Way))}."
    )
