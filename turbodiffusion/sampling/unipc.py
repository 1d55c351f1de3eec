"""UniPC, the multistep solver of the unaccelerated baseline (order 2, "bh2", x0 prediction).

In λ = ln((1−σ)/σ) a diffusion step is an integral of the clean estimate m against an exponential;
a predictor extrapolates m from the last two estimates, and a corrector redoes the previous step
once the estimate at its end is known. No further network calls are needed for the correction.

Formulas: Zhao et al., "UniPC: A Unified Predictor-Corrector Framework", with the choices of the
released Wan sampler: first step of order 1, last step onto the estimate itself, corrector always
on.
"""

from __future__ import annotations

import math

from torch import Tensor


class UniPC:
    """One run along ``sigmas``; call :meth:`step` for i = 0, 1, … in order.

    Args:
        sigmas: fp32 (N + 1,) on the CPU, falling, the last one 0.
    """

    def __init__(self, sigmas: Tensor) -> None:
        self._sigma = sigmas.double().tolist()
        # λ is rounded to fp32 as in the released sampler; −ln 0 = ∞ at the end is meant.
        self._lam = ((1 - sigmas).log() - sigmas.log()).double().tolist()
        self._estimates: list[Tensor] = []  # the last two clean estimates, newest last
        self._sample: Tensor | None = None  # where the last predictor step began
        self._order = 1  # of that step

    def step(self, i: int, x: Tensor, clean: Tensor) -> Tensor:
        """The sample at σ[i+1].

        Args:
            x: what the previous call returned, or the start noise.
            clean: the network's estimate x − σ[i]·v at that sample.
        """
        if i > 0:
            x = self._correct(i, clean)
        self._estimates = [*self._estimates[-1:], clean]
        self._sample = x
        self._order = min(2, i + 1)
        return self._predict(i, x)

    def _predict(self, i: int, x: Tensor) -> Tensor:
        sigma, lam, newest = self._sigma, self._lam, self._estimates[-1]
        if sigma[i + 1] == 0:
            return newest
        h = lam[i + 1] - lam[i]
        weight = -(1 - sigma[i + 1]) * math.expm1(-h)
        ahead = sigma[i + 1] / sigma[i] * x + weight * newest
        if self._order == 2:
            r = (lam[i - 1] - lam[i]) / h
            ahead = ahead + weight * 0.5 / r * (self._estimates[-2] - newest)
        return ahead

    def _correct(self, i: int, clean: Tensor) -> Tensor:
        """The sample at σ[i] once more, now that the estimate there is known."""
        assert self._sample is not None
        sigma, lam, newest = self._sigma, self._lam, self._estimates[-1]
        h = lam[i] - lam[i - 1]
        phi = math.expm1(-h)
        weight = -(1 - sigma[i]) * phi
        x = sigma[i] / sigma[i - 1] * self._sample + weight * newest
        if self._order == 1:
            return x + weight * 0.5 * (clean - newest)
        r = (lam[i - 2] - lam[i - 1]) / h
        k1 = phi / -h - 1
        k2 = k1 / -h - 0.5
        # ρ solves ρ₁ + ρ₂ = k1/φ and r·ρ₁ + ρ₂ = 2·k2/φ.
        rho1 = (k1 / phi - 2 * k2 / phi) / (1 - r)
        rho2 = k1 / phi - rho1
        older = self._estimates[-2]
        return x + weight * (rho1 / r * (older - newest) + rho2 * (clean - newest))
