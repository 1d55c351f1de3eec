"""``turbodiffusion monitor`` and ``generate --monitor``, with a made-up NVML."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from tests.memory.fake_nvml import FakeNvml
from tests.pipeline import tiny
from turbodiffusion.cli import monitor
from turbodiffusion.cli.main import main
from turbodiffusion.media.settings import read_settings
from turbodiffusion.memory import nvml


@pytest.fixture
def fake(monkeypatch):
    made = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(nvml.shutil, "which", lambda name: None)
    monkeypatch.setattr(nvml, "SMI_PLACES", ())


def test_table_and_summary(fake, capsys):
    fake.mask = 0x44
    assert main(["monitor", "--count", "3", "--interval", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "read through nvidia-ml-py; Ctrl-C ends"
    assert lines[1].split()[:3] == ["GPU", "name", "memory"] and len(lines) == 1 + 3 * 3 + 2
    assert "4.0 / 32.0   90 %   300 / 575   61" in lines[2]
    assert "power limit, hardware thermal limit" in lines[2]
    assert "n/a" in lines[3]
    assert lines[-2].startswith("NVIDIA GeForce RTX 5090: 4.0 GiB at most, 90 % busy, 300 W")
    assert "slowed by power limit" in lines[-2] and fake.open == 0


def test_forms_for_programs(fake, capsys):
    assert main(["monitor", "--count", "2", "--interval", "0.01", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and lines[0]["gpus"][0]["power"] == 300.0
    assert lines[0]["gpus"][1]["power"] is None
    assert main(["monitor", "--count", "1", "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert rows[0]["name"] == "NVIDIA GeForce RTX 5090"
    assert rows[0]["clock"] == "2000" and rows[1]["clock"] == ""


def test_ctrl_c_is_the_normal_end(fake, capsys, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(monitor.time, "sleep", interrupt)
    assert main(["monitor"]) == 0
    assert "300 W" in capsys.readouterr().out.splitlines()[-2] and fake.open == 0


def test_no_gpu_says_so(no_gpu, capsys):
    assert main(["monitor"]) == 3
    err = capsys.readouterr().err
    assert "monitor-no-nvml" in err and "pip install nvidia-ml-py" in err


def test_mistakes(fake, capsys):
    assert main(["monitor", "--interval", "0"]) == 2
    assert main(["monitor", "--count", "0"]) == 2


RUN = ["generate", "a red circle", "--model", tiny.T2V.name, "--output", "o.mp4", "--frames", "5"]


def test_the_report_of_a_run_is_stored_in_the_file(models, fake, capsys):
    assert main([*RUN, "--monitor", "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    stored = read_settings("o.mp4")["report"]
    assert stored["gpu"]["name"] == "NVIDIA GeForce RTX 5090" and stored["host_peak"] > 10**7
    assert set(stored["seconds"]) == {"text", "denoise", "identify"}
    assert set(result["report"]["seconds"]) == {*stored["seconds"], "decode"}
    assert result["report"]["gpu"]["seconds"] >= stored["gpu"]["seconds"]
    assert "NVIDIA GeForce RTX 5090: 4.0 GiB at most" in shown.err and fake.open == 0


def test_a_run_without_a_gpu_says_why_there_are_no_readings(models, no_gpu, capsys):
    assert main([*RUN, "--monitor"]) == 0
    assert "--monitor: There is neither the package nvidia-ml-py" in capsys.readouterr().err
    assert "nvidia-ml-py" in read_settings("o.mp4")["report"]["no_gpu"]


def test_without_the_flag_the_file_has_no_report(models, fake):
    assert main(RUN) == 0
    assert "report" not in read_settings("o.mp4") and fake.open == 0


def test_a_failed_run_lets_go_of_the_driver(models, fake, monkeypatch):
    from turbodiffusion.pipeline.stages import Stages

    monkeypatch.setattr(Stages, "denoise", lambda *_: 1 / 0)
    assert main([*RUN, "--monitor"]) == 1
    assert fake.open == 0
