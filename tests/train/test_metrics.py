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


def test_tensorboard_reads_its_event_files(tmp_path):
    """With the package itself, where it is installed: a continued run shows every step once."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3):
        first.write(step, {"loss": 1.0 / step, "time/data": 0.5})
    first.close()
    again = TensorBoard(tmp_path, 2)  # step 3 is made again
    again.write(3, {"loss": 7.0, "time/data": 0.25})
    again.close()
    read = events.EventAccumulator(str(tmp_path)).Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "time/data"}
    shown = {event.step: event.value for event in read.Scalars("loss")}
    assert shown == {1: 1.0, 2: 0.5, 3: 7.0}


def test_weights_and_biases_continue_the_same_run(tmp_path, monkeypatch):
    said = []

    class Run:
        def log(self, values, step) -> None:
            said.append((values, step))

        def finish(self) -> None:
            said.append("finished")

    def init(**kwargs):
        said.append(kwargs)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", type("Module", (), {"init": staticmethod(init)}))
    writer = WeightsAndBiases("project", tmp_path / "my-run", {"steps": 3})
    writer.write(5, {"loss": 2.0})
    writer.close()
    assert said[0]["project"] == "project" and said[0]["config"] == {"steps": 3}
    assert said[0]["id"] == "my-run" and said[0]["resume"] == "allow"
    assert said[1:] == [({"loss": 2.0}, 5), "finished"]
