"""Where numbers go, and the line on the terminal."""

from __future__ import annotations

import json
import math
import sys

import pytest

from turbodiffusion.errors import SetupError
from turbodiffusion.train import progress
from turbodiffusion.train.metrics import JsonLines, TensorBoard, WeightsAndBiases


def test_lines_after_the_checkpoint_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.5 if step < 3 else math.nan})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # a kill in the middle of a line
    JsonLines(path, 2).write(3, {"loss": 7.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.5}, {"step": 3, "loss": 7.0},
    ]  # fmt: skip


def test_json_has_no_nan(tmp_path):
    JsonLines(tmp_path / "m.jsonl", 0).write(1, {"loss": math.inf})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "loss": None}


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SetupError, match="pip install tensorboard"):
        TensorBoard(tmp_path, 0)
    with pytest.raises(SetupError, match="pip install wandb"):
        WeightsAndBiases("project", tmp_path, {})


def test_values_reach_the_other_writers(tmp_path, monkeypatch):
    written = []

    class Fake:
        def __init__(self, *args, **kwargs) -> None:
            written.append(kwargs)

        def add_scalar(self, name, value, step) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("closed")

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", type("Module", (), {"SummaryWriter": Fake})
    )
    board = TensorBoard(tmp_path, 4)
    board.write(5, {"loss": 2.0, "lr": 0.1})
    board.close()
    assert written == [{"purge_step": 5}, ("loss", 2.0, 5), ("lr", 0.1, 5), "closed"]


def test_speed_and_time_left(monkeypatch, capsys):
    clock = iter(float(n) for n in range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: 2 * next(clock))
    shown = progress.Progress(100, 8, 50.0, 100.0, quiet=False)
    for _ in range(10):
        shown.tick()
    assert shown.speed() == {"samples_per_second": 4.0, "seconds_per_step": 2.0, "mfu": 0.25}
    shown.show(40, 0.5, final=True)
    line = capsys.readouterr().err
    assert "step 40/100" in line and "4 samples/s" in line and "25% of" in line
    assert "2 min 0 s left" in line


@pytest.mark.parametrize(
    ("seconds", "words"), [(8, "8 s"), (67, "1 min 7 s"), (7500, "2 h 5 min"), (97200, "1 d 3 h")]
)
def test_durations(seconds: float, words: str):
    assert progress.duration(seconds) == words
