"""Print the probes in their order, for the page about doctor."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from turbodiffusion.doctor.probes import PROBES

if __name__ == "__main__":
    for number, probe in PROBES.items():
        words = (probe.judge.__doc__ or "").partition(": ")[2].partition("\n")[0].rstrip(".")
        stage = "second" if probe.needs else "first"
        print(f"{number}  {probe.title:<17} {stage:<7} {words}")
