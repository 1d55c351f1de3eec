"""What portable forms share on a CPU: what it multiplies fast, and work handed out to threads."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


@functools.cache
def has_bf16() -> bool:
    """Whether it multiplies bf16 matrices with instructions of its own (AVX-512 BF16, AMX).

    Others widen bf16 or loop over it, which is slower than float32.
    """
    test = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return test is not None and test() and torch.backends.mkldnn.is_available()


def collect(function: Callable[[T], torch.Tensor], items: Sequence[T]) -> list[torch.Tensor]:
    """``function`` of each item, in their order, worked out as by :func:`share`."""
    results: list[torch.Tensor | None] = [None] * len(items)

    def run(places: Iterator[int]) -> None:
        for place in places:
            results[place] = function(items[place])

    share(run, range(len(items)))
    return [result for result in results if result is not None]


def share(run: Callable[[Iterator[T]], None], items: Iterable[T]) -> None:
    """Hand ``items`` out to as many threads as PyTorch computes with, each computing alone.

    ``run`` is called once in each thread with an iterator over the items that thread gets; it may
    keep buffers from one to the next. PyTorch itself splits every operation, and after each all
    threads wait for the slowest: on two busy cores that took 2.6 s for what takes 0.3 s this way.

    Gradients are off in ``run``, as in the ``forward`` of an autograd function.
    """
    waiting = deque(items)
    before = torch.get_num_threads()
    threads = min(before, len(waiting))
    failures: list[BaseException] = []
    inference = torch.is_inference_mode_enabled()

    def own() -> Iterator[T]:
        while waiting and not failures:
            try:
                yield waiting.popleft()
            except IndexError:  # another thread took the last one
                return

    def work() -> None:
        try:
            with torch.inference_mode(inference), torch.no_grad():
                run(own())
        except BaseException as failure:
            failures.append(failure)

    torch.set_num_threads(1)  # of this thread, and what new ones begin with
    try:
        helpers = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()
    finally:
        torch.set_num_threads(before)
    if failures:
        raise failures[0]
