"""The session on a lent GPU: its steps, their limits, and that no failure stops the next step."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


gpu_session = script("gpu_session")


def step(name: str, code: str, weight: float = 1.0, **more):
    return gpu_session.Step(name, weight, [sys.executable, "-c", code], **more)


def test_failures_and_long_steps_do_not_stop_the_session(tmp_path):
    planned = [
        step("breaks", "print('before'); raise SystemExit('no GPU')"),
        step("absent", "", obstacle="pytest is not installed"),
        step("hangs", "import time; print('started', flush=True); time.sleep(60)"),
        step("speaks", "import os; print(os.environ['WORD'])", 20.0, environment={"WORD": "yes"}),
    ]
    begin = time.monotonic()
    logs = tmp_path / "logs"
    logs.mkdir()
    outcomes = gpu_session.session(planned, 12.0, logs, tmp_path)
    assert time.monotonic() - begin < 20
    assert [o.verdict for o in outcomes][:2] == ["exit code 1", "skipped: pytest is not installed"]
    assert outcomes[2].verdict.startswith("stopped after ") and outcomes[3].verdict == "ok"
    assert outcomes[0].tail == ["before", "no GPU"]
    assert "started" in outcomes[2].tail
    assert (logs / "speaks.log").read_text().strip() == "yes"
    together = (tmp_path / "session.log").read_text()
    assert "==== breaks: exit code 1" in together and together.endswith("yes\n")
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert [o["name"] for o in stored] == ["breaks", "absent", "hangs", "speaks"]


def test_time_left_over_goes_to_later_steps(tmp_path, capsys):
    planned = [step("quick", ""), step("last", "")]
    gpu_session.session(planned, 100.0, tmp_path, tmp_path)
    said = capsys.readouterr().out
    assert "quick: at most 50 s" in said
    limit = int(said.split("last: at most ")[1].split(" s")[0])
    assert limit > 90


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_steps(device, tmp_path, monkeypatch):
    planned: list = []
    monkeypatch.setattr(gpu_session, "session", lambda steps, *_: planned.extend(steps) or [])
    assert gpu_session.main(["--device", device, "--out", str(tmp_path)]) == 0
    names = [s.name for s in planned]
    forms = ["portable", "triton", "naive"] if device == "cuda" else ["portable", "naive"]
    minis = [f"mini-{form}" for form in forms]
    assert names == ["check", "tests", "golden", *minis, "tune", "bench"]
    forced = {s.name for s in planned if s.environment.get("TURBODIFFUSION_BACKEND") == "triton"}
    assert forced == ({"check", "golden", "mini-triton"} if device == "cuda" else set())
    assert 0.9 < sum(s.weight for s in planned) < 1.1
    assert all(Path(s.command[0]) == Path(sys.executable) for s in planned)


def test_golden_vectors_are_replayed(tmp_path, capsys, monkeypatch):
    golden = script("golden_device")
    folder = ROOT.parent / "shared" / "golden"
    monkeypatch.setattr(sys, "argv", ["golden_device.py", "cpu", str(tmp_path)])
    assert golden.main() == 1 and "no golden vectors" in capsys.readouterr().out
    if not folder.is_dir():
        pytest.skip("no golden vectors here")
    monkeypatch.setattr(golden, "GRADIENT_BOUND", dict.fromkeys(golden.GRADIENT_BOUND, 0.0))
    findings = list(golden.operator(folder / "sla_elu.safetensors", "cpu"))
    assert len(findings) == 1 + 2 * 6
    wrong = [name for name, value, bound in findings if not value < bound]
    assert len(wrong) == 10 and all("gradient" in name for name in wrong)
