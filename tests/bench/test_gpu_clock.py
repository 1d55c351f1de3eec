"""The GPU clock without a GPU: what it queues, in which order, and how long the head start is."""

from __future__ import annotations

import pytest
import torch

from turbodiffusion.bench import timing


class Stream:
    """Stands in for torch.cuda: a list of what was queued, with a duration in milliseconds each."""

    def __init__(self) -> None:
        self.queue: list[tuple[str, float]] = []

    def sleep(self, cycles: int) -> None:
        self.queue.append(("sleep", cycles / 1e6))  # a counter of 1 GHz

    def synchronize(self, device: object = None) -> None:
        self.queue.append(("synchronize", 0.0))

    def event(self, enable_timing: bool):
        stream = self

        class Event:
            def record(self):
                self.at = sum(ms for _, ms in stream.queue)
                stream.queue.append(("event", 0.0))

            def elapsed_time(self, other):
                return other.at - self.at

        return Event()


@pytest.fixture
def stream(monkeypatch):
    fake = Stream()
    monkeypatch.setattr(torch.cuda, "_sleep", fake.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    return fake


def test_the_call_alone_is_timed_after_a_head_start(stream, monkeypatch):
    clock = timing.GpuClock(torch.device("cpu"))
    assert clock.cycles == pytest.approx(1e9)
    host = iter([10.0, 10.002])  # queueing the call took 2 ms
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(host))
    clock.prepare("op", lambda: stream.queue.append(("op", 3.0)))
    assert clock.leads["op"] == pytest.approx(4_000_000)
    stream.queue.clear()
    seconds = clock.measure("op", lambda: stream.queue.append(("op", 3.0)))
    assert seconds == pytest.approx(3e-3)
    names = [name for name, _ in stream.queue]
    assert names == ["sleep", "event", "op", "event", "synchronize"]


@pytest.mark.parametrize(("lead", "queued", "cycles"), [(False, 1.0, 0), (True, 1.0, 20_000_000)])
def test_the_head_start_is_bounded_and_can_be_left_out(stream, monkeypatch, lead, queued, cycles):
    clock = timing.GpuClock(torch.device("cpu"), lead)
    host = iter([0.0, queued])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(host))
    clock.prepare("op", lambda: None)
    assert clock.leads["op"] == pytest.approx(cycles)
