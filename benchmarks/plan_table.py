"""Print what the planner chooses for common amounts of GPU memory, for the documentation."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from turbodiffusion.memory.plan import Plan
from turbodiffusion.models.cards import CARDS
from turbodiffusion.pipeline.planning import described_machine, plan_card
from turbodiffusion.pipeline.request import Request, resolve

MEMORY = (8, 12, 16, 24, 32, 48, 80)
CASES = (
    ("1.3B 480p", "TurboWan2.1-T2V-1.3B-480P", 832, 480),
    ("1.3B 720p", "TurboWan2.1-T2V-1.3B-480P", 1280, 720),
    ("14B 480p", "TurboWan2.1-T2V-14B-480P", 832, 480),
    ("14B 720p", "TurboWan2.1-T2V-14B-720P", 1280, 720),
    ("A14B 720p", "TurboWan2.2-I2V-A14B-720P", 1280, 720),
)


def cell(made: Plan) -> str:
    """``8-bit swap tile stream-30 19.8``: what was chosen and the peak in GiB."""
    if not made.fits:
        return "-"
    words = ["8-bit" if made.settings.quantised else "bf16"]
    words += ["swap"] if made.settings.swap else []
    words += ["tile"] if made.settings.tile else []
    for phase, stay in made.settings.streamed.items():
        words.append(f"{'text' if phase == 'text' else 'net'}:{stay}")
    return f"{' '.join(words)} {made.gpu_peak / 2**30:.1f}"


def main() -> None:
    """One row for each amount of memory, one column for each model and size; 81 frames."""
    print(f"{'GPU':<8}" + "".join(f"{name:<32}" for name, *_ in CASES).rstrip())
    for memory in MEMORY:
        row = []
        for _, model, width, height in CASES:
            card = CARDS[model]
            request = resolve(Request("-", width=width, height=height), card)
            row.append(cell(plan_card(card, request, described_machine("GPU", memory, 64)).plan))
        print(f"{memory:>3} GiB " + "".join(f"{text:<32}" for text in row).rstrip())


if __name__ == "__main__":
    main()
