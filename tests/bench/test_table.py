"""The table and the JSON: every fact is in them, in the shape that docs/bench.md describes."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch

from turbodiffusion.bench import machine, table
from turbodiffusion.bench.cases import Error, Row
from turbodiffusion.bench.ceilings import Ceiling, Ceilings
from turbodiffusion.bench.run import Report

MACHINE = machine.Machine(
    device="NVIDIA X1", capability="9.0", memory_gb=80.0, driver="580.65.06", cuda="13.0",
    processor="Some CPU", threads=16, system="Linux-6", python="3.12.3", torch="2.11.0",
    triton="3.6.0", commit="abc123", date="2026-01-02 03:04 UTC",
    command="turbodiffusion bench ops",
)  # fmt: skip
CEILINGS = Ceilings((Ceiling("copy", 4e12, "how"), Ceiling("fp8", None, "RuntimeError: none")))
ERROR = Error(0.0123, 0.01, 0.9999, "over 3 rows")
ROWS = (
    Row("sagesla", "", "1.3b-480p", "", "triton", 1.234, 0.012, 9, 534.5, 300.0, "8-bit", 0.34,
        ERROR, {"SDPA flash": 20.0, "SDPA cuDNN": 12.34}, {}, {"SDPA efficient": "why|not"}),
    Row("int8", "ffn1", "1.3b-480p", "", "triton", 0.7, 0.0, 3, 1000.0, 10.0, "8-bit", 0.6, ERROR,
        {"bf16": 1.4}, {"_int_mm": 0.5}),
    Row("rms_norm", "", "1.3b-480p", "8 tokens", "portable", 123.4, 0.5, 3, None, 99.0, "copy", 0.1,
        ERROR, {"F.rms_norm": 100.0}),
    Row("forward", "", "14b-720p", "", failure="OutOfMemoryError: CUDA out of memory"),
)  # fmt: skip


def test_markdown():
    text = table.markdown(MACHINE, CEILINGS, ROWS)
    for fact in ("NVIDIA X1, capability 9.0, 80 GB, driver 580.65.06", "torch 2.11.0, CUDA 13.0",
                 "Triton 3.6.0", "abc123", "2026-01-02 03:04 UTC", "turbodiffusion bench ops",
                 "copy: 4000 GB/s (how)", "fp8: none (RuntimeError: none)"):  # fmt: skip
        assert fact in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(ROWS)
    assert {line.count("|") for line in lines} == {len(table.COLUMNS) + 1}
    assert lines[2] == (
        "| sagesla | 1.3b-480p | 1.23 | 1.2 % | 534 TOP/s | 34 % 8-bit | 1.2e-02 | SDPA cuDNN | "
        "12.3 | 10.00 |  |"
    )
    assert "| int8 ffn1 |" in lines[3] and lines[3].endswith(
        "| bf16 | 1.40 | 2.00 | _int_mm 0.500 ms |"
    )
    assert "| 123 | 50.0 % | 99.0 GB/s | 10 % copy |" in lines[4]
    assert "| forward | 14b-720p | – |  | OutOfMemoryError: CUDA out of memory |" in lines[5]
    assert "- Error of sagesla: relative L2, over 3 rows." in text
    assert "- 1.3b-480p is reduced here to 8 tokens." in text
    assert "SDPA efficient did not run for sagesla: why|not" in text


def test_lines_while_measuring_stay_in_their_columns():
    live = table.Live()
    header, line = live.header(), live.line(ROWS[0])
    assert header.index("best rival") == line.index("SDPA cuDNN")
    assert line.split()[:2] == ["sagesla", "1.3b-480p"]


def test_json(tmp_path):
    report = Report(MACHINE, CEILINGS, ROWS)
    report.write(tmp_path / "new" / "a.json", tmp_path / "new" / "a.md")
    read = json.loads((tmp_path / "new" / "a.json").read_text("utf-8"))
    assert set(read) == {"schema", "machine", "ceilings", "rows"} and read["schema"] == 1
    assert set(read["machine"]) == {f.name for f in fields(machine.Machine)}
    assert read["ceilings"][0] == {"name": "copy", "value": 4e12, "how": "how"}
    assert set(read["rows"][0]) == {f.name for f in fields(Row)}
    assert read["rows"][0]["error"] == {
        "l2": 0.0123, "l1": 0.01, "cosine": 0.9999, "how": "over 3 rows",
    }  # fmt: skip
    assert read["rows"][0]["rivals"] == {"SDPA flash": 20.0, "SDPA cuDNN": 12.34}
    assert (tmp_path / "new" / "a.md").read_text("utf-8") == table.markdown(
        MACHINE, CEILINGS, ROWS
    )  # fmt: skip
    assert report.failed == [ROWS[3]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123")],
)
def test_three_digits(value, text):
    assert table._three(value) == text


def test_the_machine_is_read(monkeypatch):
    found = machine.read(torch.device("cpu"), "turbodiffusion bench ops", commit="given")
    assert found.torch == torch.__version__ and found.commit == "given" and not found.capability
    assert found.memory_gb > 0.1 and found.date.endswith("UTC") and found.device
    monkeypatch.setenv(machine.COMMIT, "from-outside")
    assert machine.read(torch.device("cpu"), "").commit == "from-outside"


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.delenv(machine.COMMIT, raising=False)
    monkeypatch.setenv("PATH", "")
    assert machine.read(torch.device("cpu"), "").commit == "unknown"
