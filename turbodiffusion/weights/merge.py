"""Delta merge: what one training changed, added to the result of another.

``merged = base + w·(plus − minus)`` in float32, rounded to the type of ``base``. With the few-step
student as base, the sparse-attention network as plus and their common teacher as minus, the result
has both; with another member of the family as base, the training is transferred to it. A tensor
whose shape differs, or that one side lacks, stays as in the base; what only ``plus`` has (the
projection of the linear branch) is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from turbodiffusion.errors import WeightsError
from turbodiffusion.weights.check import some
from turbodiffusion.weights.spec import Spec
from turbodiffusion.weights.stream import Tensors


@dataclass
class MergeReport:
    """Names by what happens to them; ``kept`` and ``skipped`` with the reason."""

    merged: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people: counts, and the names where they are few."""
        rows = [f"merged   {len(self.merged)} tensors"]
        for title, names in (("kept", self.kept), ("skipped", self.skipped)):
            reasons: dict[str, list[str]] = {}
            for name, reason in names.items():
                reasons.setdefault(reason, []).append(name)
            rows += [f"{title:<9}{len(n)} ({why}): {some(tuple(n))}" for why, n in reasons.items()]
        if self.added:
            rows.append(f"added    {len(self.added)}: {some(tuple(self.added))}")
        return rows


class Merged:
    """``base + weight·(plus − minus)`` as a stream.

    Raises:
        WeightsError: a side is quantised, or no tensor fits.
    """

    def __init__(self, base: Tensors, plus: Tensors, minus: Tensors, weight: float = 1.0) -> None:
        for role, one in (("base", base), ("plus", plus), ("minus", minus)):
            if any(name.endswith(".int8_weight") for name in one.spec):
                raise WeightsError(
                    "merge-quantized",
                    f"The {role} checkpoint has int8 linears, whose sum would not be exact.",
                    "Merge the unquantised files, then run `turbodiffusion quantize`.",
                )
        self.base, self.plus, self.minus, self.weight = base, plus, minus, weight
        self.metadata = base.metadata
        self.report = _compare(base.spec, plus.spec, minus.spec)
        if not self.report.merged:
            raise WeightsError(
                "merge-nothing",
                "No tensor of the base has the shape it has in the two others.",
                "Give members of one family: the same width and number of blocks.",
            )
        self._merged, self._added = set(self.report.merged), set(self.report.added)
        self.spec: Spec = _ordered(base.spec, plus.spec, self.report.added)

    def elements(self, name: str, start: int, stop: int) -> Tensor:
        if name in self._added:
            return self.plus.elements(name, start, stop)
        values = self.base.elements(name, start, stop)
        if name not in self._merged:
            return values
        plus, minus = (one.elements(name, start, stop).float() for one in (self.plus, self.minus))
        return (values.float() + self.weight * (plus - minus)).to(values.dtype)


def _compare(base: Spec, plus: Spec, minus: Spec) -> MergeReport:
    report = MergeReport()
    for name, one in base.items():
        lacking = [role for role, spec in (("plus", plus), ("minus", minus)) if name not in spec]
        if lacking:
            report.kept[name] = f"not in {' nor '.join(lacking)}"
        elif not one.shape == plus[name].shape == minus[name].shape:
            report.kept[name] = "another shape"
        elif not getattr(torch, one.dtype).is_floating_point:
            report.kept[name] = "no floating numbers"
        else:
            report.merged.append(name)
    for name in plus:
        if name in base:
            continue
        if name in minus:
            report.skipped[name] = "the base lacks it"
        else:
            report.added.append(name)
    return report


def _ordered(base: Spec, plus: Spec, added: list[str]) -> Spec:
    """Added tensors stand where they stand in ``plus``: behind the same neighbour."""
    behind: dict[str, list[str]] = {}
    last, new = "", set(added)
    for name in plus:
        if name in new:
            behind.setdefault(last, []).append(name)
        elif name in base:
            last = name
    spec = {name: plus[name] for name in behind.get("", [])}
    for name, one in base.items():
        spec[name] = one
        spec |= {follower: plus[follower] for follower in behind.get(name, [])}
    return spec
