"""How near the latents of made clips are to those of rendered ones, as a distribution.

Caption accuracy hardly separates samplers; blur, over-saturation and lost detail show here. Each
clip is summed up by the mean and the standard deviation of every channel in every latent frame
(144 numbers for ``mini``), and two sets of clips are compared by the Fréchet distance of the normal
distributions that fit these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

FINE = 0.25
"""Cycles per latent cell from which a spatial frequency counts as high; 0.5 is the highest."""


def describe(latent_BCTHW: Tensor) -> Tensor:
    """(B, 2·C·T): mean and standard deviation over space of every channel and latent frame."""
    flat = latent_BCTHW.float().flatten(3)
    return torch.cat([flat.mean(-1).flatten(1), flat.std(-1).flatten(1)], dim=1)


def fine_energy(latent_BCTHW: Tensor) -> Tensor:
    """(B, 2): energy of the high spatial frequencies, and of all but the constant part."""
    spectrum = torch.fft.fft2(latent_BCTHW.float(), norm="ortho").abs().square().mean(dim=(1, 2))
    height, width = spectrum.shape[-2:]
    rows = torch.fft.fftfreq(height, device=spectrum.device)[:, None]
    columns = torch.fft.fftfreq(width, device=spectrum.device)
    frequency = torch.hypot(rows, columns)
    high = (spectrum * (frequency > FINE)).sum(dim=(1, 2))
    return torch.stack([high, (spectrum * (frequency > 0)).sum(dim=(1, 2))], dim=1)


def frechet(first_NK: Tensor, second_NK: Tensor) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of two sets of descriptions, in float64.

    The estimate is too large by an amount that falls with the number of clips; the distance of
    rendered clips to other rendered ones, in the same number, is the floor to compare with.
    """
    a, b = first_NK.double(), second_NK.double()
    cov_a, cov_b = (torch.cov(x.T, correction=1).reshape(x.shape[1], -1) for x in (a, b))
    # (Σ₁Σ₂)^½ has the eigenvalues of (Σ₁^½ Σ₂ Σ₁^½)^½, which is symmetric.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    middle = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(shift + cov_a.trace() + cov_b.trace() - 2 * middle))


@dataclass
class LatentSet:
    """Descriptions of a growing set of clips, kept on the CPU."""

    _descriptions: list[Tensor] = field(default_factory=list)
    _energies: list[Tensor] = field(default_factory=list)

    def add(self, latent_BCTHW: Tensor) -> None:
        """Describe a batch where it is; a few kilobytes of it are kept."""
        self._descriptions.append(describe(latent_BCTHW).cpu())
        self._energies.append(fine_energy(latent_BCTHW).cpu())

    def __len__(self) -> int:
        return sum(map(len, self._descriptions))

    def distance(self, other: LatentSet) -> float | None:
        """Fréchet distance; None where a set is too small for a covariance."""
        if min(len(self), len(other)) < 2:
            return None
        return frechet(torch.cat(self._descriptions), torch.cat(other._descriptions))

    def fine_share(self) -> float:
        """Share of the energy that lies in high spatial frequencies."""
        high, total = torch.cat(self._energies).double().sum(dim=0)
        return float(high / total)
