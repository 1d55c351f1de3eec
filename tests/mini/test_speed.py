"""Teacher and student in turns: what is timed, and how it is told."""

import json
import subprocess

import pytest

from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.mini import speed
from turbodiffusion.mini.recipe import recipe

MICRO = recipe("micro")


@pytest.fixture
def commands(monkeypatch):
    """Command lines instead of processes."""
    seen = []

    def run(words, **how):
        seen.append(words)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(speed.subprocess, "run", run)
    return seen


def measure(names, kinds, repeats=2):
    said = []
    return speed.measure_speed(MICRO, None, "cpu", names, repeats, kinds, said.append), said


def test_rows_take_turns(commands):
    result, said = measure(["teacher-4", "teacher-4-plain"], ["denoising", "command"])
    order = [line.split(",")[0].split(" ", 1)[1] for line in said if "denoising" in line]
    assert order == ["teacher-4", "teacher-4-plain", "teacher-4-plain", "teacher-4"]
    first, second = result["rows"]
    assert first["network_calls"] == 8 and second["network_calls"] == 4
    assert len(first["denoising"]["seconds"]) == 2 and "faster" not in first["denoising"]
    ratio = first["denoising"]["median"] / second["denoising"]["median"]
    assert second["denoising"]["faster"] == pytest.approx(ratio, rel=0.05)
    assert "to_file" not in first
    words = commands[0]
    assert words[2:4] == ["turbodiffusion", "generate"] and "--baseline" in words
    assert words[words.index("--steps") + 1] == "4"
    assert words[words.index("--model") + 1].endswith("micro_t2v_teacher.safetensors")


def test_a_file_is_written_with_the_model_loaded(commands):
    result, _ = measure(["teacher-4-plain"], ["to_file"], 1)
    assert result["rows"][0]["to_file"]["median"] > 0 and not commands


def test_a_command_that_fails_is_no_time(monkeypatch):
    failed = subprocess.CompletedProcess([], 4, "", "error [memory]: too small")
    monkeypatch.setattr(speed.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(SetupError, match="too small"):
        measure(["teacher-4-plain"], ["command"], 1)


def test_rows_without_a_sampler_are_refused():
    with pytest.raises(UsageError, match="truth"):
        measure(["truth"], ["denoising"])


def test_times_are_kept_for_each_machine(tmp_path):
    def stored(device, seconds):
        rows = [{"row": "teacher", "network_calls": 100, "denoising": {"median": seconds}}]
        machine = {"device": device, "threads": 2, "torch": "2.11"}
        result = {"rows": rows, "aim": 20.0, "machine": machine}
        return json.loads(speed.record(MICRO, tmp_path, result).read_text("utf-8"))["speed"]

    stored("CPU (x86_64)", 27.0)
    stored("a GPU", 0.5)
    kept = stored("CPU (x86_64)", 28.0)
    assert [r["rows"][0]["denoising"]["median"] for r in kept.values()] == [28.0, 0.5]
    text = speed.recorded_text(kept)
    assert text.splitlines()[0] == "CPU (x86_64), 2 thread(s), torch 2.11" and "0.500" in text


def test_text():
    rows = [
        {"row": "teacher", "network_calls": 100, "denoising": {"median": 27.0}},
        {"row": "int8-4", "network_calls": 4, "denoising": {"median": 0.9, "faster": 30.0}},
    ]
    lines = speed.text({"rows": rows, "aim": 20.0}).splitlines()
    assert lines[0].split() == ["row", "calls", "denoising", "s"]
    assert lines[2].split() == ["int8-4", "4", "0.900", "(30.0×)"]
    assert lines[3].endswith("(aim ≥ 20×: met).") and "30.0× as fast" in lines[3]
    rows[1]["denoising"]["faster"] = 13.0
    assert speed.text({"rows": rows, "aim": 20.0}).endswith("not met).")
