"""SLA on a CPU, slice by slice, so that what lies between input and output stays in the cache.

A slice is some query blocks of one head. The key and value blocks that each of them keeps are
copied side by side, two batched products with a softmax between attend to them, and the linear
branch of the same queries is added before anything is written. Threads take slices in turn. The
gradient computes copies, scores and probabilities again, head by head.

Letters: H the B·N heads, R query blocks of a slice, X queries of a block, J its kept key blocks and
S their keys, K key blocks, F elements of a key block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from turbodiffusion.ops import cpu
from turbodiffusion.ops.sla.cut import Cut
from turbodiffusion.ops.sla.linear import linear_branch, query_side, state

T = TypeVar("T")
Part = Literal["keys", "state"]
PARTS: tuple[Part, ...] = ("keys", "state")
"""Of a head, what all of its slices need. One head alone gives two threads something to do."""

COPIED_ELEMENTS = 1 << 19
"""Of keys, and as many of values, that a thread holds at a time: copies and scores stay cached."""


def runs(x: Tensor) -> bool:
    """Whether operators on ``x`` take this way; the compiler cannot trace it."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def settle(future: Future[T], function: Callable[[int], T], head: int) -> None:
    """Give a future ``function(head)``, or its failure, which is raised as well."""
    try:
        future.set_result(function(head))
    except BaseException as failure:
        future.set_exception(failure)
        raise


class Copies:
    """Copies of rows in a buffer, valid until the next: new memory would cost page faults."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None

    def __call__(self, x_KF: Tensor, index: Tensor) -> Tensor:
        if self.buffer is None or len(self.buffer) < len(index):
            self.buffer = x_KF.new_empty(len(index), x_KF.shape[1])
        return torch.index_select(x_KF, 0, index, out=self.buffer[: len(index)])


def sparse_linear_attention(
    q_BLND: Tensor,
    k_BLND: Tensor,
    v_BLND: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    cut: Cut,
    feature_map: str,
) -> Tensor:
    """The operator, (B, L, N, D); differentiable once."""
    return _Function.apply(q_BLND, k_BLND, v_BLND, proj_weight, proj_bias, cut, feature_map)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BLND: Tensor,
        k_BLND: Tensor,
        v_BLND: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        cut: Cut,
        feature_map: str,
    ) -> Tensor:
        ctx.save_for_backward(q_BLND, k_BLND, v_BLND, proj_weight, proj_bias)
        ctx.cut, ctx.feature_map = cut, feature_map
        narrow = q_BLND.dtype is torch.bfloat16 and cpu.has_bf16()
        dtype = torch.bfloat16 if narrow else torch.float32
        n, d = q_BLND.shape[2:]
        heads = range(q_BLND.shape[0] * n)
        keys: list[Future[tuple[Tensor, Tensor]]] = [Future() for _ in heads]
        states: list[Future[Tensor]] = [Future() for _ in heads]
        out_BLND = torch.empty_like(q_BLND, memory_format=torch.contiguous_format)

        def read_keys(h: int) -> tuple[Tensor, Tensor]:
            k_LD, v_LD = k_BLND[h // n, :, h % n], v_BLND[h // n, :, h % n]
            return cut.keys(k_LD), cut.keys(v_LD, dtype)

        def read_state(h: int) -> Tensor:
            k_LD, v_LD = k_BLND[h // n, :, h % n], v_BLND[h // n, :, h % n]
            return state(k_LD, v_LD, proj_weight, feature_map)

        def work(todo: Iterator[tuple[int, slice | Part]]) -> None:
            copied_k, copied_v = Copies(), Copies()
            for h, part in todo:
                if part == "keys":
                    settle(keys[h], read_keys, h)
                elif part == "state":
                    settle(states[h], read_state, h)
                if isinstance(part, str):
                    continue
                k_KF, v_KF = keys[h].result()
                tokens = cut.tokens(part)
                q_LD = q_BLND[h // n, tokens, h % n]
                index = cut.blocks_HRJ[h, part].flatten()
                q_RXD = cut.queries(q_LD) * d**-0.5
                k_RSD = copied_k(k_KF, index).view(len(q_RXD), -1, d)
                v_RSD = copied_v(v_KF, index).view(len(q_RXD), -1, d)
                p_RXS = _probabilities(q_RXD, k_RSD, cut, h, part).to(dtype)
                sparse_LD = (p_RXS @ v_RSD).flatten(0, 1)[: len(q_LD)]
                linear_LD = query_side(q_LD, states[h].result(), proj_bias, feature_map)
                out_BLND[h // n, tokens, h % n] = linear_LD.add_(sparse_LD)

        # What slices wait for comes first, so that whoever waits does so for a running thread.
        items: list[tuple[int, slice | Part]] = [(h, part) for part in PARTS for h in heads]
        step = cut.step(d, COPIED_ELEMENTS, torch.get_num_threads())
        cpu.share(work, items + [(h, part) for h in heads for part in cut.slices(step)])
        return out_BLND

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_BLND: Tensor) -> tuple[Tensor | None, ...]:
        q_BLND, k_BLND, v_BLND, proj_weight, proj_bias = ctx.saved_tensors
        cut: Cut = ctx.cut
        n, d = q_BLND.shape[2:]
        heads = q_BLND.shape[0] * n
        grads = [torch.empty_like(x) for x in (q_BLND, k_BLND, v_BLND)]
        dweight_HDD = torch.empty(heads, d, d)
        dbias_HD = torch.empty(heads, d)

        def work(todo: Iterator[int]) -> None:
            copied_k, copied_v = Copies(), Copies()
            for h in todo:
                views = [x[h // n, :, h % n] for x in (q_BLND, k_BLND, v_BLND)]
                g_LD = g_BLND[h // n, :, h % n].float()
                linear = _linear_gradients([*views, proj_weight, proj_bias], g_LD, ctx.feature_map)
                sparse = _sparse_gradients(views, g_LD, cut, h, copied_k, copied_v)
                for x_BLND, a_LD, b_LD in zip(grads, linear[:3], sparse, strict=True):
                    x_BLND[h // n, :, h % n] = b_LD.add_(a_LD)
                dweight_HDD[h], dbias_HD[h] = linear[3:]

        cpu.share(work, range(heads))
        dweight, dbias = dweight_HDD.sum(0), dbias_HD.sum(0)
        return *grads, dweight.to(proj_weight.dtype), dbias.to(proj_bias.dtype), None, None


def _probabilities(q_RXD: Tensor, k_RSD: Tensor, cut: Cut, head: int, part: slice) -> Tensor:
    """Softmax over the kept keys, float32 (R, X, S); queries are scaled already."""
    scores_RXS = q_RXD @ k_RSD.mT
    if cut.hidden_HRS is not None:
        scores_RXS.masked_fill_(cut.hidden_HRS[head, part, None], float("-inf"))
    return scores_RXS.softmax(-1)


def _sparse_gradients(
    views: list[Tensor], g_LD: Tensor, cut: Cut, head: int, copied_k: Copies, copied_v: Copies
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one head's queries, keys and values through the sparse branch, float32."""
    length, d = g_LD.shape
    k_KF, v_KF = cut.keys(views[1]), cut.keys(views[2])
    dq_LD, dk_KF, dv_KF = torch.empty_like(g_LD), torch.zeros_like(k_KF), torch.zeros_like(v_KF)
    for part in cut.slices(cut.step(d, COPIED_ELEMENTS, 1)):
        tokens = cut.tokens(part)
        index = cut.blocks_HRJ[head, part].flatten()
        q_RXD, g_RXD = cut.queries(views[0][tokens]) * d**-0.5, cut.queries(g_LD[tokens])
        k_RSD = copied_k(k_KF, index).view(len(q_RXD), -1, d)
        v_RSD = copied_v(v_KF, index).view(len(q_RXD), -1, d)
        p_RXS = _probabilities(q_RXD, k_RSD, cut, head, part)
        ds_RXS = g_RXD @ v_RSD.mT
        ds_RXS.sub_((ds_RXS * p_RXS).sum(-1, keepdim=True)).mul_(p_RXS)
        dq_RXD = (ds_RXS @ k_RSD).mul_(d**-0.5)
        dq_LD[tokens] = dq_RXD.flatten(0, 1)[: tokens.stop - tokens.start]
        dk_KF.index_add_(0, index, (ds_RXS.mT @ q_RXD).view(len(index), -1))
        dv_KF.index_add_(0, index, (p_RXS.mT @ g_RXD).view(len(index), -1))
    return dq_LD, dk_KF.view(-1, d)[:length], dv_KF.view(-1, d)[:length]


def _linear_gradients(inputs: list[Tensor], g_LD: Tensor, feature_map: str) -> tuple[Tensor, ...]:
    """Gradients of one head's inputs, and of the projection, through the linear branch."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        q, k, v, weight, bias = leaves
        out_LD = linear_branch(q, k, v, weight, bias, feature_map)
    return torch.autograd.grad(out_LD, leaves, g_LD)
