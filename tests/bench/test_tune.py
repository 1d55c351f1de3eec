"""Tuning: a candidate really stands in for the heuristic, wrong ones are out, time is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from turbodiffusion.bench import tune
from turbodiffusion.bench.cases import Case, Contest, compare
from turbodiffusion.bench.shapes import Geometry, shapes

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
BLOCKS = Geometry(0.1, 128, 64)
S = shapes()["1.3b-480p"].reduce((2, 4, 4), 2)


@dataclass(frozen=True)
class Config:
    """A launch config whose ``work`` is how much there is to do."""

    work: int = 40
    wrong: bool = False
    broken: bool = False

    @classmethod
    def pick(cls, width: int) -> Config:
        return cls()


def case(row, s, g):
    x = torch.randn(300, 300)

    def ours():
        c = Config.pick(width=1)
        if c.broken:
            raise RuntimeError("out of resources")
        for _ in range(c.work):
            x @ x
        return torch.tensor([1.0, 2.0 + c.wrong])

    return Case("op", "", s, "copy", 0, 1, lambda setting: Contest(
        ours, {}, lambda: compare(ours(), torch.tensor([1.0, 2.0]), "")
    ))  # fmt: skip


@pytest.fixture
def tunable(monkeypatch):
    monkeypatch.setattr(tune, "case", case)
    found = [Config(work=1), Config(wrong=True), Config(broken=True)]
    return tune.Tunable("op", Config, "pick", (("op", ""),), lambda c, s: found)


def test_candidates_are_checked_then_raced(tunable):
    (result,) = tune.tune(tunable, [S], [BLOCKS], CPU, seconds=1e-6, now=lambda: 0.0)
    assert (result.operator, result.row, result.geometry) == ("op", "op", "128×64")
    assert [t.config for t in result.tried] == [
        "work=1 wrong=False broken=False", tune.HEURISTIC, "work=40 wrong=True broken=False",
        "work=40 wrong=False broken=True",
    ]  # fmt: skip
    fast, base, wrong, broken = result.tried
    assert fast.milliseconds and base.milliseconds and fast.milliseconds < base.milliseconds
    assert result.gain == pytest.approx(base.milliseconds / fast.milliseconds)
    assert wrong.failure.startswith("error 4.5e-01, limit") and wrong.milliseconds is None
    assert broken.failure == "RuntimeError: out of resources"
    assert Config.pick(1) == Config(), "the heuristic is back"
    lines = result.lines()
    assert "best is" in lines[0] and lines[1].endswith("work=1 wrong=False broken=False")
    assert "out of resources" in lines[4]
    json.dumps(result.as_json())


def test_no_time_is_said(tunable):
    ticks = iter(float(i) for i in range(100))
    (result,) = tune.tune(tunable, [S], [BLOCKS], CPU, seconds=0.5, now=lambda: next(ticks))
    assert result.tried[0].config == tune.HEURISTIC and result.tried[0].milliseconds
    assert {t.failure for t in result.tried[1:]} == {"no time was left to try it"}


def test_the_heuristic_answers_the_candidate_and_comes_back_after_an_error(tunable):
    candidate = Config(work=3)
    with pytest.raises(ValueError), tune.chosen(tunable, candidate):
        assert Config.pick(5) is candidate and Config.pick(width=7) is candidate
        raise ValueError
    with tune.chosen(tunable, None):
        assert Config.pick(5) == Config()


def test_labels_name_what_differs():
    assert tune.labels([Config(1), Config(2)]) == ["work=1", "work=2"]
    assert tune.labels([Config()]) == ["work=40 wrong=False broken=False"]
    assert tune.labels([]) == []


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)], ids=str)
def test_every_operator_offers_candidates(capability):
    for tunable in tune.tunables():
        found = tunable.candidates(capability, shapes()["14b-720p"])
        assert all(isinstance(c, tunable.owner) for c in found) and len(found) == len(set(found))
        assert callable(getattr(tunable.owner, tunable.method))
        for row in tunable.rows:
            assert tune.case(row, S, BLOCKS).operator == row[0]
    rows = {t.name: [row for row, _ in t.rows] for t in tune.tunables()}
    assert rows.keys() >= {"sagesla", "sla", "int8", "norm"}
    assert rows["quantising norm"] == ["modulate_quantize"]


def test_the_script_runs(tmp_path):
    out = tmp_path / "new" / "tune.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/tune_ops.py", "--seconds", "0.1", "--only", "norm",
         "--shapes", "1.3b-480p", "--device", "cpu", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "norm: RowConfig.forward" in done.stdout and "portable form" in done.stdout
    read = json.loads(out.read_text("utf-8"))
    assert [r["row"] for r in read["results"]] == [
        "rms_norm", "layer_norm_modulate", "rms_norm_rope",
    ]  # fmt: skip
    assert "tune_ops.py" in read["machine"]["command"]
