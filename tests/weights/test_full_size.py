"""The 1.3B card's real shapes: written, inspected, converted both ways, mapped and run on the CPU.

Each step is a child process whose peak resident size is measured. The default run keeps the real
widths with 2 of the 30 blocks; the marker ``slow`` has all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.weights.full_size import NAME, the_card
from turbodiffusion.weights.detect import describe
from turbodiffusion.weights.header import read_header
from turbodiffusion.weights.spec import dit_spec, spec_bytes

pytest.importorskip("resource", reason="peak memory is read with the POSIX module resource")
ROOT = Path(__file__).parents[2]


def step(task: str, folder: Path, layout: str, blocks: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.weights.full_size", task, folder, layout, blocks]
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    print(task, layout, blocks, result)
    return result


@pytest.mark.parametrize("layout", ["bf16", "int8"])
@pytest.mark.parametrize("blocks", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_real_shapes(tmp_path: Path, layout: str, blocks: int) -> None:
    card, quantized = the_card(blocks), layout == "int8"
    spec = dit_spec(card.dit, quantized)
    path = tmp_path / f"{NAME}.pth"
    try:
        written = step("write", tmp_path, layout, blocks)
        assert spec_bytes(spec) < written["bytes"] < spec_bytes(spec) * 1.01
        found = describe(read_header(path))
        assert found.complete and found.tensors == len(spec) and found.layout == layout
        assert found.cards == ((NAME,) if blocks == 30 else ())

        converted = step("convert", tmp_path, layout, blocks)
        # Constant memory: an interpreter and a few buffers, whatever the size of the file.
        assert converted["peak"] < 150 and not converted["torch"]
        assert path.stat().st_size == (tmp_path / "back.pth").stat().st_size

        assert step("compare", tmp_path, layout, blocks)["equal"]

        loaded = step("load", tmp_path, layout, blocks)
        assert loaded["tensors"] == len(spec) and loaded["quantized"] == quantized
        assert loaded["finite"]
        # Three networks were mapped and not one was read.
        assert loaded["loaded"] - loaded["before"] < 300
        assert max(s["peak"] for s in (written, converted, loaded)) < 8000
    finally:
        for file in tmp_path.iterdir():  # gigabytes; pytest would keep them for three runs
            file.unlink()
