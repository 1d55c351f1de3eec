"""Forward-mode differentiation through the operators.

Kernels of Triton, and PyTorch's flash attention, know no tangents. Inside these contexts operators
take forms that do, and attention is either left to those or computed together with its tangent in
one stream (:mod:`turbodiffusion.ops.tangent`). The contexts hold for the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_active = False
_streams = False


def active() -> bool:
    """Whether operators must take forms that carry tangents."""
    return _active


def streams() -> bool:
    """Whether attention computes value and tangent of dual numbers itself."""
    return _streams


@contextmanager
def portable_forms() -> Iterator[None]:
    """Operators in plain PyTorch, for ``torch.func.jvp``."""
    with _set(streams=False):
        yield


@contextmanager
def streamed_attention() -> Iterator[None]:
    """The same, and attention that unpacks ``torch.autograd.forward_ad`` duals; for no-grad use."""
    with _set(streams=True):
        yield


@contextmanager
def _set(*, streams: bool) -> Iterator[None]:
    global _active, _streams
    before = _active, _streams
    _active, _streams = True, streams
    try:
        yield
    finally:
        _active, _streams = before
