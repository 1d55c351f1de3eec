"""How sure a measured share is, and a difference of two shares of the same videos.

Every accuracy that is printed comes with its number of samples and an interval, because ± at 512
samples and 90 % is still 2.6 points. Two rows are made from the same prompts and the same noise, so
their difference is known better than either of them: most videos are right in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z95 = 1.959964


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) without samples.

    It stays within [0, 1] and is sensible at 0 and 100 %, where the normal approximation is not.
    """
    if not 0 <= right <= total:
        raise ValueError(f"{right} of {total} is not a share")
    if total == 0:
        return 0.0, 1.0
    share, z2 = right / total, Z95**2 / total
    middle = (share + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * math.sqrt(share * (1 - share) / total + z2 / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Paired:
    """Two rows on the same videos: counts of right in both, in one only, in neither."""

    both: int
    only_later: int
    only_earlier: int
    neither: int

    @classmethod
    def of(cls, outcomes: Iterable[tuple[bool, bool]]) -> Paired:
        """Count (later right, earlier right) of every video."""
        counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
        for later, earlier in outcomes:
            counts[bool(later), bool(earlier)] += 1
        return cls(*counts.values())

    @property
    def total(self) -> int:
        return self.both + self.only_later + self.only_earlier + self.neither

    @property
    def difference(self) -> float:
        """Share right in the later row minus that in the earlier one."""
        return (self.only_later - self.only_earlier) / self.total if self.total else 0.0

    def interval(self) -> tuple[float, float]:
        """95 % interval of :attr:`difference`; (−1, 1) without samples.

        Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 17, 1998,
        pages 2635–2650, method 10): the distances of both Wilson limits from their shares, joined
        through the correlation φ of the outcomes, with a continuity correction of φ.
        """
        n = self.total
        if not n:
            return -1.0, 1.0
        first, second = self.both + self.only_later, self.both + self.only_earlier
        low_1, high_1 = (abs(first / n - limit) for limit in interval(first, n))
        low_2, high_2 = (abs(second / n - limit) for limit in interval(second, n))
        phi = self._correlation()
        below = low_1**2 - 2 * phi * low_1 * high_2 + high_2**2
        above = high_1**2 - 2 * phi * high_1 * low_2 + low_2**2
        return self.difference - math.sqrt(below), self.difference + math.sqrt(above)

    def _correlation(self) -> float:
        a, b, c, d = self.both, self.only_later, self.only_earlier, self.neither
        margins = (a + b) * (c + d) * (a + c) * (b + d)
        if not margins:
            return 0.0
        excess = float(a * d - b * c)
        if excess > 0:
            excess = max(0.0, excess - self.total / 2)
        return excess / math.sqrt(margins)
