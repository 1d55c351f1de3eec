"""Children: whatever they do, there is an answer in time. Wrong kernels are seen."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from turbodiffusion.doctor.child import LATE, Child, run, run_all
from turbodiffusion.doctor.children import kernels
from turbodiffusion.doctor.measure import Measured

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(tmp_path):
    def write(text: str, limit: float = 10.0) -> Child:
        path = tmp_path / f"child{len(list(tmp_path.iterdir()))}.py"
        path.write_text(text)
        return Child(path, limit=limit)

    return write


def test_an_answer_comes_back_whatever_is_said_before(program):
    child = program("print('loading'); import json; print(json.dumps({'a': 1}))")
    assert run(sys.executable, child) == {"a": 1}


def test_a_hang_ends_with_everything_it_started(program, tmp_path):
    mark = tmp_path / "alive"
    inner = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    child = program(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}])", limit=1.0
    )
    start = time.perf_counter()
    assert run(sys.executable, child) == {"error": LATE, "late": True}
    assert time.perf_counter() - start < 3
    if os.name != "nt":
        time.sleep(3.5)
        assert not mark.exists()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_crash_is_named(program):
    assert run(sys.executable, program("import os; os.abort()")) == {
        "error": "It crashed (SIGABRT)."
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("raise OSError('[WinError 126] c10.dll')", "OSError: [WinError 126] c10.dll"),
        ("print('no json')", "It ended with status 0 and said nothing."),
        ("print([1])", "It ended with status 0 and said nothing."),
        ("import sys; sys.exit(7)", "It ended with status 7 and said nothing."),
    ],
)
def test_no_answer_is_a_sentence(program, text, error):
    assert run(sys.executable, program(text)) == {"error": error}


def test_a_python_that_is_gone(program):
    answer = run("/nowhere/python", program("print({})"))
    assert "cannot be started" in answer["error"]


def test_children_run_side_by_side(program):
    text = "import time; time.sleep(1); print('{\"a\": 1}')"
    start = time.perf_counter()
    answers = run_all(sys.executable, {str(i): program(text) for i in range(4)})
    assert time.perf_counter() - start < 3.5
    assert answers == {str(i): {"a": 1} for i in range(4)}


@pytest.fixture
def backend_variable(monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_BACKEND", "")


@pytest.mark.usefixtures("backend_variable")
class TestKernels:
    def test_every_operator_agrees_on_the_cpu(self):
        answer = kernels.main(str(ROOT))
        assert {row["operator"] for row in answer["rows"]} >= {
            "int8 by tile",
            "int8 by group",
            "sla",
        }
        assert [row for row in answer["rows"] if row["error"]] == []
        assert not Measured("kernels", answer).failed

    @pytest.mark.parametrize("spoil", ["scaled", "nan", "raise"])
    def test_a_wrong_result_is_seen(self, spoil):
        """The exact function is right; the one under test is spoiled."""

        def wrong(x):
            if spoil == "raise":
                raise RuntimeError("no kernel image is available\nmore")
            return x * float("nan") if spoil == "nan" else x * 1.01

        case = kernels.Case("norm", "spoiled", wrong, (torch.ones(4, 4),), lambda x: x)
        rows = kernels.compare(torch, torch.device("cpu"), case)
        assert rows and all(row["error"] for row in rows)
        answer = {"title": "", "rows": rows, "lines": [kernels.line(row) for row in rows]}
        assert Measured("kernels", answer).failed
        assert "WRONG" in Measured("kernels", answer).text()

    def test_a_reference_that_fails_is_a_row(self):
        def fail(x):
            raise NotImplementedError("x")

        case = kernels.Case("norm", "broken", fail, (torch.ones(2, 2),))
        (row,) = kernels.compare(torch, torch.device("cpu"), case)
        assert row["error"] == "NotImplementedError: x" and row["form"] == "naive"


def test_no_result_is_a_failure():
    assert Measured("kernels", {"error": LATE}).failed
    assert Measured("kernels", {"error": LATE}).text() == f"kernels: no result. {LATE}"
