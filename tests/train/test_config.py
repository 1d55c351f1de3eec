"""Settings: preset, file, single values, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from turbodiffusion.cli import train as cli
from turbodiffusion.cli.main import build_parser, main
from turbodiffusion.cli.train import settings
from turbodiffusion.errors import UsageError
from turbodiffusion.train.config import assignments, change, read_file
from turbodiffusion.train.consistency import Discrete
from turbodiffusion.train.stages import (
    STAGES,
    derived,
    require_starts,
    roles,
    settings_of,
    start_of,
)
from turbodiffusion.train.times import UniformShift


def given(*words: str):
    return settings(build_parser("train").parse_args(["train", *words]))


def test_later_words_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"steps": 7, "optim": {"lr": 1e-3, "clip": 2}, "loss": {"topk": 1}}))
    config = given("sla", "--config", str(path), "--set", "optim.lr=1e-4", "--set", "seed=5")
    assert (config.steps, config.seed, config.optim.lr, config.optim.clip) == (7, 5, 1e-4, 2.0)
    assert config.loss.topk == 1.0 and isinstance(config.loss.topk, float)
    assert config.optim.warmup == settings_of("sla", "mini").optim.warmup


def test_the_command_knows_every_stage(capsys):
    assert list(STAGES) == list(cli.STAGES)
    assert main(["train", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(STAGES)


@pytest.mark.parametrize("size", ["mini", "1.3B", "14B"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_preset_is_a_valid_run(stage: str, size: str):
    config = settings_of(stage, size)
    assert config.as_json()["loss"] and config.passes(1) >= 1
    assert change(config, config.as_json()) == config  # what is stored can be given back


@pytest.mark.parametrize(
    ("word", "code", "words"),
    [
        ("optim.rl=1", "train-setting-unknown", "optim.rl"),
        ("steps=0", "train-setting", "at least 1, not 0"),
        ("steps=ten", "train-setting", "type int, not 'ten'"),
        ("dtype=int8", "train-setting", "auto, float32, bfloat16"),
        ("batch=33", "train-setting", "multiple of micro_batch 32"),
        ("ema=0.5", "train-setting", "from 0 to 0.28"),
        ("card=huge", "card-unknown", "huge"),
        ("steps", "train-set", "no key=value"),
    ],
)
def test_a_wrong_setting_is_named(word: str, code: str, words: str):
    with pytest.raises(UsageError) as error:
        given("sla", "--set", word)
    assert error.value.code == code and words in error.value.message


def test_an_unknown_stage_or_preset_lists_the_known():
    with pytest.raises(UsageError, match="flow"):
        settings_of("flaw", "mini")
    with pytest.raises(UsageError, match="14B"):
        settings_of("flow", "2B")


@pytest.mark.parametrize(("name", "text"), [("a.json", "[1]"), ("a.json", "{"), ("a.yaml", "{}")])
def test_a_file_that_is_no_object_is_refused(tmp_path, name: str, text: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"a\."):
        read_file(tmp_path / name)
    with pytest.raises(UsageError, match="missing"):
        read_file(tmp_path / "missing.json")


def test_values_are_json_where_they_can_be():
    words = ["a.b=1e-3", "a.c=true", "d=runs/x", "e=[1, 2]", "f=a=b"]
    assert assignments(words) == {
        "a": {"b": 1e-3, "c": True}, "d": "runs/x", "e": [1, 2], "f": "a=b",
    }  # fmt: skip


def test_a_batch_that_the_processes_cannot_share_names_one_that_they_can():
    config = change(settings_of("sla", "mini"), {"batch": 6, "micro_batch": 2})
    assert config.passes(3) == 1 and config.passes(1) == 3
    with pytest.raises(UsageError, match="--set batch=8"):
        config.passes(2)


def test_samples_are_drawn_as_often_as_the_preset_says():
    assert given("rcm", "--preset", "14B").sample_every == 250
    assert given("rcm", "--preset", "14B", "--set", "sample_every=0").sample_every == 0


def test_a_setting_of_several_kinds_is_chosen_by_name():
    config = given("rcm", "--set", "loss.consistency=Discrete", "--set", "loss.every=3")
    assert config.loss.consistency == Discrete() and config.loss.every == 3
    config = given("rcm", "--set", 'loss.consistency={"kind": "Discrete", "skip": 2}')
    assert config.loss.consistency == Discrete(skip=2)
    stored = config.as_json()
    assert stored["loss"]["consistency"]["kind"] == "Discrete"
    assert change(settings_of("rcm", "mini"), stored) == config
    back = change(config, settings_of("rcm", "mini").as_json())
    assert back == settings_of("rcm", "mini")
    times = given("sla", "--set", 'loss.times={"kind": "UniformShift", "shift": 3}').loss.times
    assert times == UniformShift(3.0)
    assert given("rcm", "--set", "loss.matching=null").loss.matching is None


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("loss.consistency=Discreet", "must be of type"),
        ('loss.consistency={"kind": "Discreet"}', "one of Continuous, Discrete"),
        ('loss.times={"kind": "LogNormal"}', "LogNormal as loss.times needs a value for mean"),
        ('loss.times={"kind": "UniformShift", "shift": "x"}', "loss.times.shift must be of type"),
        ('loss.times={"kind": "UniformShift", "shaft": 1}', "no setting loss.times.shaft"),
    ],
)
def test_a_kind_that_does_not_fit_is_named(word: str, words: str):
    stage = "rcm" if "consistency" in word else "flow"
    with pytest.raises(UsageError) as error:
        given(stage, "--set", word)
    assert words in error.value.message


def test_each_network_starts_where_it_should():
    """A fake score starts as the teacher, whatever the student is; what is not given is init."""
    config = replace(settings_of("match", "mini"), init="a", teacher="b", leader="c")
    starts = {role: start_of(config, role) for role in roles(config)}
    assert starts == {"student": "a", "teacher": "b", "fake_score": "b", "leader": "c"}
    require_starts(config)
    for missing in ("teacher", "leader"):
        with pytest.raises(UsageError, match=f"no {missing} is given"):
            require_starts(replace(config, **{missing: ""}))
    fresh = replace(config, init="", teacher="", leader="")
    require_starts(fresh)
    assert {start_of(fresh, role) for role in roles(fresh)} == {""}
    rcm = replace(settings_of("rcm", "mini"), init="a")
    require_starts(rcm)
    assert {start_of(rcm, role) for role in roles(rcm)} == {"a"}
    assert not derived(config) and derived(settings_of("rcm", "mini"))
