"""Write ``docs/errors.md`` from the error catalogue: ``python docs/write_errors.py``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from turbodiffusion.doctor.explain_page import page

    PAGE.write_text(page(), encoding="utf-8", newline="\n")
