"""Work handed out to threads that compute alone."""

from __future__ import annotations

import threading

import pytest
import torch

from turbodiffusion.ops import cpu


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_every_item_is_done_once_by_threads_that_compute_alone(threads):
    meeting = threading.Barrier(threads, timeout=30)  # breaks unless as many run at once
    done: list[int] = []
    seen: list[tuple[int, int, bool]] = []

    def run(items):
        meeting.wait()
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        done.extend(items)

    cpu.share(run, range(20))
    assert sorted(done) == list(range(20))
    assert len({ident for ident, _, _ in seen}) == threads
    assert all(alone == 1 and not tracked for _, alone, tracked in seen)


def test_results_keep_their_order(threads):
    assert torch.equal(
        torch.stack(cpu.collect(lambda i: torch.tensor(i * i), range(50))), torch.arange(50) ** 2
    )


def test_a_failure_reaches_the_caller(threads):
    def fail(item: int) -> torch.Tensor:
        if item == 7:
            raise ValueError("seven")
        return torch.tensor(item)

    with pytest.raises(ValueError, match="seven"):
        cpu.collect(fail, range(20))


def test_inference_mode_goes_along(threads):
    with torch.inference_mode():
        parts = cpu.collect(lambda i: torch.ones(2), range(4))
        assert all(part.is_inference() for part in parts)
        target = torch.zeros(4)

        def run(items):
            for item in items:
                target[item] = item  # an error where threads leave the mode

        cpu.share(run, range(4))
    assert target.tolist() == [0, 1, 2, 3]
