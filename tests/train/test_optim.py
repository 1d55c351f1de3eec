"""The learning rate: warm-up, and the fall at the end."""

from __future__ import annotations

import pytest
from torch import nn

from turbodiffusion.train.optim import Optimizer, OptimSettings


def rates(settings: OptimSettings, steps: int) -> list[float]:
    optimizer = Optimizer(nn.Linear(1, 1), settings)
    return [optimizer.lr(i, i / steps) / settings.lr for i in range(steps)]


def test_constant_after_the_warm_up():
    found = rates(OptimSettings(lr=2e-4, warmup=4), 10)
    assert found == pytest.approx([1e-6, 0.25, 0.5, 0.75, *[1] * 6], rel=1e-5)


def test_falls_to_zero_over_the_last_part():
    found = rates(OptimSettings(lr=2e-4, warmup=0, decay=0.4), 10)
    assert found == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])


def test_does_not_fall_unless_asked():
    optimizer = Optimizer(nn.Linear(1, 1), OptimSettings(lr=1e-5, warmup=0))
    assert optimizer.lr(10**9, 1.0) == 1e-5
