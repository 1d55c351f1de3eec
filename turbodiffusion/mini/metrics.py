"""How sure a measured share is.

Every accuracy that is printed comes with its number of samples and this interval, because ± at
512 samples and 90 % is still 2.6 points.
"""

from __future__ import annotations

import math

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
