"""What is measured between two reports."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train.runs import settings
from turbodiffusion.train.meter import Meter
from turbodiffusion.train.run import open_trainer


def test_means_leave_out_what_is_not_finite_and_count_it(alone):
    meter = Meter(alone)
    for value in (1.0, math.nan, 2.0, math.inf):
        meter.add("loss", torch.tensor(value))
        meter.add("scm_broken", torch.tensor(2))
    meter.add("never", torch.tensor(math.nan))
    found = meter.report()
    assert (found["loss"], found["unstable"], found["scm_broken"]) == (1.5, 2, 8)
    assert math.isnan(found["never"])
    assert meter.report().keys() == {"unstable", "memory_gib", "memory_gib_max"}  # starts anew


def test_processes_are_joined(alone, monkeypatch):
    """A second process saw one loss more, and waited longer for its data."""
    other = {"loss": [8.0], "time/data": [3.0], "unstable_broken": [0.0]}
    pair = replace(alone, world=2, context=1)
    meter = Meter(pair)
    monkeypatch.setattr(type(pair), "largest", lambda self, value: value.clamp_min(3.0))

    def mean(self, value):
        names = sorted(["loss", "memory_gib", "time/data", "unstable_broken"])
        sums = [sum(other.get(name, [])) for name in names]
        counts = [float(len(other.get(name, []))) for name in names]
        return (value + torch.tensor([*sums, *counts], dtype=torch.float64)) / 2

    monkeypatch.setattr(type(pair), "mean", mean)
    for value in (1.0, 3.0):
        meter.add("loss", torch.tensor(value))
    meter.stop("data", meter.start(host=True))
    found = meter.report()
    assert found["loss"] == pytest.approx(4.0)  # of 1, 3 and 8
    assert found["time/data"] == pytest.approx(1.5, abs=0.01) and found["time/data_max"] == 3.0


def test_a_part_takes_as_long_as_it_takes(alone):
    meter = Meter(alone)
    for _ in range(2):
        start = meter.start()
        time.sleep(0.02)
        meter.stop("sleep", start)
    assert 0.02 <= meter.report()["time/sleep"] < 0.2


def test_a_run_reports_the_time_of_every_part(alone, tmp_path: Path):
    config = settings("rcm", tmp_path, steps=3, log_every=3, save_every=0)
    open_trainer(config, alone, quiet=True).run()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    losses = {f"time/{way}:{loss}" for way in ("forward", "backward")
              for loss in ("scm", "dmd", "critic")}  # fmt: skip
    timed = {name for name in line if name.startswith("time/")}
    assert timed == losses | {"time/data", "time/data_max", "time/optimizer"}
    # Two passes a step: three steps of the student's or critic's first loss, one of the second.
    once = ("forward:scm", "backward:scm", "forward:dmd", "backward:dmd")
    parts = sum(line[f"time/{name}"] * 2 for name in once) + 3 * line["time/optimizer"]
    assert 0 < parts < line["seconds"]
    assert 0 < line["memory_gib"] == line["memory_gib_max"]
    assert line["unstable"] == line["scm_broken"] == 0
