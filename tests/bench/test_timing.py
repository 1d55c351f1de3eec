"""The race: who runs when, who is left out, and when it ends. No clock is read here."""

from __future__ import annotations

import pytest
import torch

from turbodiffusion.bench.ceilings import Ceiling, Ceilings, measure
from turbodiffusion.bench.timing import CpuClock, Times, clock, race, reason


class Diary:
    """A clock that writes down what it is asked and says a given time."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.prepared: list[str] = []
        self.measured: list[str] = []

    def prepare(self, name, call):
        call()
        self.prepared.append(name)

    def measure(self, name, call):
        self.measured.append(name)
        return self.seconds[name] * (1 + len(self.measured) / 100)


def broken():
    raise RuntimeError("No kernel for this shape.\nmore")


def test_contestants_alternate_and_every_second_round_runs_backwards():
    diary = Diary({"a": 1.0, "b": 2.0, "c": 3.0})
    calls = {name: (lambda: None) for name in "abc"}
    times, failures = race(calls, diary, seconds=0.0, least=3, now=lambda: 0.0)
    assert diary.prepared == ["a", "b", "c"] and not failures
    assert "".join(diary.measured) == "abccbaabc"
    assert [len(times[name].seconds) for name in "abc"] == [3, 3, 3]


def test_a_contestant_that_cannot_run_leaves_the_others_their_race():
    diary = Diary({"a": 1.0, "c": 1.0})
    times, failures = race(
        {"a": lambda: None, "b": broken, "c": lambda: None}, diary, seconds=0.0, now=lambda: 0.0
    )
    assert failures == {"b": "RuntimeError: No kernel for this shape."}
    assert list(times) == ["a", "c"] and "b" not in diary.measured


def test_nobody_can_run():
    assert race({"a": broken}, Diary({}), seconds=1.0)[0] == {}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (4.5, 7), (1000.0, 50)])
def test_rounds_fill_the_time_between_bounds(seconds, rounds):
    ticks = iter(range(1000))
    times, _ = race(
        {"a": lambda: None}, Diary({"a": 1.0}), seconds=seconds, now=lambda: float(next(ticks))
    )
    # The time is read once at the start and once a round from the fourth on.
    assert len(times["a"].seconds) == rounds


def test_median_and_spread():
    assert Times((5.0, 1.0, 2.0, 3.0, 100.0)).median == 3.0
    assert Times((2.0, 2.0, 2.0)).spread == 0.0
    assert Times((1.0, 2.0, 3.0)).spread == 0.5
    assert Times(tuple(map(float, range(1, 8)))).spread == pytest.approx(0.5)  # quartiles 2 and 6


def test_reason_is_one_line():
    assert reason(ValueError("a\nb")) == "ValueError: a" and reason(KeyError()) == "KeyError"


def test_the_cpu_clock_sees_work():
    ticking = clock(torch.device("cpu"))
    assert isinstance(ticking, CpuClock)
    a = torch.randn(600, 600)
    times, _ = race(
        {"small": lambda: a.add_(0), "large": lambda: [a @ a for _ in range(20)]},
        ticking, seconds=0.0,
    )  # fmt: skip
    assert 0 < times["small"].median < times["large"].median


def test_ceilings_of_the_cpu():
    found = measure(torch.device("cpu"), CpuClock(), seconds=0.01)
    names = [c.name for c in found.each]
    assert names == ["copy", "bf16", "int8", "fp8"]
    rates = found.rates()
    assert rates["copy"] > 1e8 and rates["bf16"] > 1e8 and rates["8-bit"] > 1e8
    assert all(c.text.startswith(f"{c.name}: ") for c in found.each)


def test_rates_take_the_faster_8_bit_product_and_fall_back_to_bf16():
    copy, bf16 = Ceiling("copy", 1e12, ""), Ceiling("bf16", 5e14, "")
    int8, fp8 = Ceiling("int8", 9e14, ""), Ceiling("fp8", 11e14, "")
    none = Ceiling("fp8", None, "RuntimeError: no fp8")
    assert Ceilings((copy, bf16, int8, fp8)).rates()["8-bit"] == 11e14
    assert Ceilings((copy, bf16, int8, none)).rates()["8-bit"] == 9e14
    assert Ceilings((copy, bf16, none)).rates()["8-bit"] == 5e14
    assert none.text == "fp8: none (RuntimeError: no fp8)"
    assert int8.text == "int8: 900 TOP/s ()" and copy.text == "copy: 1000 GB/s ()"
