"""Print what doctor says about a machine of the test table: ``python docs/simulated.py NAME``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.doctor.test_machines import MACHINES
from turbodiffusion.doctor import show
from turbodiffusion.doctor.verdict import judge

if __name__ == "__main__":
    facts = next(row[1] for row in MACHINES if row[0] == sys.argv[1])
    verdict = judge(facts)
    print(show.report(facts, verdict))
    sys.exit(verdict.exit_code)
