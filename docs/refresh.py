"""Run the commands shown in the documentation and put their real output in.

A block is marked by a comment, and everything inside its fence is replaced:

    <!-- run: turbodiffusion mini world -->
    ```console
    …
    ```

``turbodiffusion`` and ``python`` stand for this interpreter's, ``REPO`` for the checkout. Commands
of one page run in one temporary folder, in order, so that a later one can use what an earlier one
wrote. A command that fails is shown with its exit code, which pages about errors want.
A block marked ``quality: micro`` gets the
tables that ``turbodiffusion mini judge --record`` stored, those marked ``i2v_quality: mini`` and
``speed: mini`` what ``mini judge-i2v --record`` and ``mini speed --record`` did.
``python docs/refresh.py [PAGE …]``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(<!-- run: (?P<command>[^\n]+?) -->\n```console\n).*?(^```$)", re.DOTALL | re.MULTILINE
)
RECORD = re.compile(
    r"(<!-- (?P<part>quality|i2v_quality|speed): (?P<size>\w+) -->\n```\n).*?(^```$)",
    re.DOTALL | re.MULTILINE,
)
BAR = re.compile(r"[^\n]*\r")


def output_of(command: str, folder: Path) -> str:
    """What a person sees: the command line, then stdout and stderr as they come."""
    words = shlex.split(command.replace("REPO", ROOT.as_posix()))
    own = {"turbodiffusion": [sys.executable, "-m", "turbodiffusion"], "python": [sys.executable]}
    real = [*own.get(words[0], words[:1]), *words[1:]]
    done = subprocess.run(
        real,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
    )
    text = BAR.sub("", done.stdout).replace(str(folder) + os.sep, "").replace(str(ROOT), ".")
    code = f"\n(exit code {done.returncode})" if done.returncode else ""
    command = command.replace("REPO/", "")
    return f"$ {command}\n{text.strip()}{code}"


def record_of(part: str, size: str) -> str | None:
    """The tables that were recorded beside the weights of ``size``; None where there are none."""
    sys.path.insert(0, str(ROOT))
    from turbodiffusion.mini import i2v_judge, speed, table

    path = ROOT / "turbodiffusion" / "mini" / "weights" / f"{size}_report.json"
    show = {
        "quality": table.tables,
        "i2v_quality": lambda found: i2v_judge.table(
            [i2v_judge.ImageRow(**row) for row in found["rows"]]
        ),
        "speed": speed.recorded_text,
    }
    recorded = json.loads(path.read_text("utf-8")).get(part)
    return show[part](recorded) if recorded else None


def refresh(page: Path) -> int:
    """Replace the outputs of one page; returns how many blocks it has."""
    count = 0
    with tempfile.TemporaryDirectory() as folder:

        def replace(match: re.Match[str]) -> str:
            nonlocal count
            count += 1
            return match[1] + output_of(match["command"], Path(folder).resolve()) + "\n" + match[3]

        def restore(match: re.Match[str]) -> str:
            shown = record_of(match["part"], match["size"])
            return match[0] if shown is None else f"{match[1]}{shown}\n{match[4]}"

        text = BLOCK.sub(replace, page.read_text("utf-8"))
        text = RECORD.sub(restore, text)
    page.write_text(text, "utf-8")
    return count


if __name__ == "__main__":
    pages = [Path(p) for p in sys.argv[1:]] or [*sorted(Path(__file__).parent.glob("*.md"))]
    for page in pages:
        print(f"{page.name}: {refresh(page)} outputs")
