"""The report: complete, one block, and nothing private in it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.doctor.machines import windows
from turbodiffusion.doctor import bugreport, readings
from turbodiffusion.doctor.bugreport import compose
from turbodiffusion.doctor.redact import Redactor
from turbodiffusion.doctor.verdict import judge
from turbodiffusion.errors import UsageError

OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    "capacity of 23.99 GiB of which 1.20 GiB is free."
)
LOG = "\n".join([f"line {n}" for n in range(200)] + [OOM])
HIDE = Redactor("C:\\Users\\Maria", "Maria", "HUBER-PC", {"HF_TOKEN": "planted-value"})


@pytest.fixture
def facts():
    one = windows("RTX 5090", variables={"HF_HOME": "C:\\Users\\Maria\\hf", "CC": "x"})
    return replace(one, root="C:\\Users\\Maria\\turbo")


def whole(facts, log: str = "run.log", text: str = LOG) -> str:
    installed = {"torch": "2.13.0+cu132", "numpy": "2.4.6"}
    return compose(facts, judge(facts), installed, "commit abc", log, text)


def test_it_has_what_a_maintainer_needs(facts):
    report = whole(facts)
    for needed in ("RTX 5090", "driver 591.74", "torch==2.13.0+cu132", "commit abc", "CC=x"):
        assert needed in report
    assert "line 199" in report and "\nline 100\n" not in report  # the end of the log
    assert "[CUDA-OOM]" in report
    start = report.index('{"schema":')
    table = json.JSONDecoder().raw_decode(report[start:])[0]
    assert table["verdict"] == "ready" and table["gpus"] == ["NVIDIA GeForce RTX 5090"]


def test_sections_close_even_around_fences(facts):
    report = whole(facts, text="```\ncode\n```\nValueError: x")
    assert report.count("<details>") == report.count("</details>")
    assert "````text\n```\ncode\n```" in report


def test_nothing_private_is_left(facts):
    text = "C:\\Users\\Maria\\x HUBER-PC planted-value hf_0123456789abcdef"
    report = HIDE(whole(facts, text=text))
    for secret in ("Maria", "HUBER", "planted-value", "hf_0123456789abcdef"):
        assert secret not in report
    assert "HF_HOME=~\\hf" in report


def test_a_real_report(monkeypatch, tmp_path):
    """Of this machine, without the second stage: the log's secrets are gone."""
    monkeypatch.setenv("WANDB_API_KEY", "planted-value-1")
    first = readings.read
    monkeypatch.setattr(readings, "read", lambda: first(()))
    log = tmp_path / "run.log"
    log.write_text("planted-value-1 ghp_0123456789abcdefABCD\nModuleNotFoundError: No module")
    report = bugreport.build(str(log))
    assert report.startswith("### turbodiffusion bug report")
    assert "planted-value-1" not in report and "ghp_" not in report
    assert "ModuleNotFoundError" in report


def test_a_log_that_is_not_there():
    with pytest.raises(UsageError) as caught:
        bugreport.build("/nowhere/run.log")
    assert caught.value.code == "bugreport-log-unreadable"
