"""The power schedule of the moving average."""

from __future__ import annotations

import pytest
import torch

from turbodiffusion.errors import UsageError
from turbodiffusion.train import ema

TABLE = {
    0.05: (16.972, 0.1803, 0.8362, 0.9822, 0.9982),
    0.10: (6.937, 0.4693, 0.9241, 0.9921, 0.9992),
    0.20: (1.826, 0.7639, 0.9723, 0.9972, 0.9997),
}


@pytest.mark.parametrize("s", TABLE)
def test_table(s):
    gamma, *betas = TABLE[s]
    assert ema.exponent(s) == pytest.approx(gamma, abs=5e-4)
    found = [ema.decay(e, s) for e in (10, 100, 1000, 10000)]
    assert found == pytest.approx(betas, abs=5.1e-5)


@pytest.mark.parametrize("s", [0.01, 0.05, 0.1, 0.25])
def test_width_of_the_profile_is_s(s):
    """Of the weights that β(1) … β(n) give to each update, s is deviation over n."""
    n = 20000
    weights, rest = torch.zeros(n, dtype=torch.float64), 1.0
    for e in range(n, 0, -1):
        beta = ema.decay(e, s)
        weights[e - 1], rest = rest * (1 - beta), rest * beta
    place = torch.arange(1, n + 1, dtype=torch.float64) / n
    mean = (weights * place).sum()
    deviation = (weights * (place - mean) ** 2).sum().sqrt()
    assert deviation.item() == pytest.approx(s, rel=5e-3)


def test_the_start_is_forgotten():
    assert ema.decay(0, 0.1) == ema.decay(-1, 0.1) == 0.0
    assert ema.exponent(ema.LARGEST) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("s", [0.0, -1.0, 0.3])
def test_widths_that_do_not_exist(s):
    with pytest.raises(UsageError, match="width"):
        ema.decay(5, s)
