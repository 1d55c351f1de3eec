"""Muon: momentum whose update is made orthogonal, for the matrices inside the blocks.

The momentum M of a weight matrix is replaced by the nearest semi-orthogonal matrix (U Vᵀ of its
singular value decomposition), so that every direction of the matrix moves at the same rate and rare
directions are not drowned by frequent ones. Five Newton–Schulz steps of the quintic
``X ← aX + (bA + cA²) X, A = X Xᵀ`` approximate it to singular values between about 0.7 and 1.2.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), for the
iteration and its coefficients; J. Liu et al., "Muon is scalable for LLM training" (2025), for the
factor 0.2·√max(rows, columns) that gives updates the size of AdamW's, and for the weight decay.

Matrices of one shape are stacked, so that a step costs a few dozen launches whatever the depth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
MATCH = 0.2  # root mean square of AdamW's update, in units of its learning rate


def orthogonalise(m_XRC: Tensor) -> Tensor:
    """About U Vᵀ of every matrix of a stack (X, R, C), in its dtype; a zero matrix stays zero."""
    a, b, c = COEFFICIENTS
    tall = m_XRC.shape[1] > m_XRC.shape[2]
    x = m_XRC.mT if tall else m_XRC
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Updates ``masters`` (float32 matrices) in place.

    Args:
        masters: the matrices; stacked by shape in the order given.
        momentum: decay of the running sum of gradients; the update looks one step ahead (Nesterov).
        weight_decay: times the learning rate, pulls a matrix towards zero before its update.
    """

    def __init__(
        self, masters: list[Tensor], momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        self.masters, self.momentum, self.weight_decay = masters, momentum, weight_decay
        self.buffers = [torch.zeros_like(m) for m in masters]
        shapes: dict[torch.Size, list[int]] = {}
        for index, master in enumerate(masters):
            shapes.setdefault(master.shape, []).append(index)
        self.groups = list(shapes.values())
        on_gpu = bool(masters) and masters[0].device.type == "cuda"
        self.dtype = torch.bfloat16 if on_gpu else torch.float32  # of the iteration

    @torch.no_grad()
    def step(self, grads: list[Tensor], lr: float, finite: Tensor) -> None:
        """One update. Where the 0-d bool ``finite`` is false, nothing changes (no host sync)."""
        for group in self.groups:
            grad = torch.stack([grads[i] for i in group])
            old = torch.stack([self.buffers[i] for i in group])
            new = torch.where(finite, old.lerp(grad, 1 - self.momentum), old)
            ahead = grad.lerp(new, self.momentum).to(self.dtype)
            size = MATCH * max(grad.shape[1:]) ** 0.5
            update = orthogonalise(ahead).float() * size
            master = torch.stack([self.masters[i] for i in group])
            moved = master * (1 - lr * self.weight_decay) - lr * update
            moved = torch.where(finite, moved, master)
            torch._foreach_copy_([self.buffers[i] for i in group], list(new.unbind()))
            torch._foreach_copy_([self.masters[i] for i in group], list(moved.unbind()))

    def state(self) -> list[Tensor]:
        """The momenta, in the order of the matrices."""
        return self.buffers

    @torch.no_grad()
    def load(self, buffers: list[Any]) -> None:
        """Take over saved momenta."""
        for own, saved in zip(self.buffers, buffers, strict=True):
            own.copy_(saved)
