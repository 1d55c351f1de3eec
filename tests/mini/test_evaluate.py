"""The table: what is counted, how sure it is, how it reads, and which clips it is measured on."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from tests.mini.nano import NANO
from turbodiffusion.errors import UsageError
from turbodiffusion.mini import evaluate, world
from turbodiffusion.mini.metrics import interval
from turbodiffusion.mini.recipe import recipe
from turbodiffusion.mini.table import ATTRIBUTES, Row, record, table
from turbodiffusion.mini.vocabulary import build_tokenizer
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import TextEncoder, Tokenizer
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.pipeline.pipeline import Pipeline

MICRO = recipe("micro")
RIGHT = {"background": True, "colour": True, "shape": True, "motion": True, "joint": True}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    """A pipeline of the smallest networks, with random weights."""
    torch.manual_seed(4)
    vae, dit, text = WanVAE(NANO.vae), WanDiT(NANO.dit), TextEncoder(NANO.text)
    for module in (vae, dit, text):
        module.init_weights()
    torch.nn.init.normal_(dit.head.head.weight, std=0.1)  # zero at the start
    path = build_tokenizer(list(world.WORDS), tmp_path_factory.mktemp("words") / "t.json")
    tokenizer = Tokenizer.from_file(path, NANO.text.text_len)
    return Pipeline(NANO, {"": dit}, vae, text, tokenizer, device=torch.device("cpu"))


@pytest.fixture
def rendered():
    """As much of a pipeline as rendered clips of size ``micro`` need."""
    return SimpleNamespace(card=MICRO.card, device=torch.device("cpu"), reconstruct=None)


def test_a_row_counts_what_was_asked():
    row = Row("teacher", "seen", 1)
    row.add(RIGHT)
    row.add({**RIGHT, "shape": False, "joint": False})
    row.add({**RIGHT, "shape": None})
    row.seconds, row.calls = 6.0, 100
    values = row.as_json()
    assert values["videos"] == 3 and values["seconds_per_video"] == 2.0
    assert values["network_calls"] == 100
    assert values["colour"] == {
        "accuracy": 1.0, "interval95": [round(v, 4) for v in interval(3, 3)], "samples": 3,
    }  # fmt: skip
    assert values["shape"]["accuracy"] == 0.5 and values["shape"]["samples"] == 2
    assert values["joint"]["accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    assert "psnr_db" not in values
    assert json.loads(json.dumps(values)) == values


def test_an_empty_row_has_no_shares():
    values = Row("teacher", "seen", 1).as_json()
    assert values["videos"] == 0 and not set(RIGHT) & set(values)


def test_intervals():
    """Against values of the formula as Wilson's paper gives it, computed apart."""
    low, high = interval(461, 512)
    assert (low, high) == (pytest.approx(0.8714, abs=1e-4), pytest.approx(0.9234, abs=1e-4))
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(0, 10)[0] == 0.0 and interval(10, 10)[1] == pytest.approx(1.0)
    assert interval(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    assert interval(3, 10) == pytest.approx(tuple(1 - v for v in reversed(interval(7, 10))))
    with pytest.raises(ValueError):
        interval(4, 3)


def test_psnr_is_that_of_the_mean_error():
    row = Row("VAE reconstruction", "seen", 1)
    row.videos, row.square = 2, [1e-3, 3e-3]
    assert row.as_json()["psnr_db"] == round(-10 * math.log10(2e-3), 2)


def test_table_text():
    done = Row("VAE reconstruction", "held_out", 2)
    done.add({**RIGHT, "shape": False, "joint": False})
    done.square, done.seconds = [1e-3], 0.5
    other = Row("teacher", "seen", 1)
    other.add({**RIGHT, "shape": None})
    other.calls = 100
    lines = table([done.as_json(), other.as_json()]).splitlines()
    assert lines[0].split() == [
        "row", "combinations", "objects", "videos", *ATTRIBUTES, "PSNR", "dB", "calls",
        "s/video",
    ]  # fmt: skip
    assert lines[1].startswith("VAE reconstruction  held-out      2        1")
    assert "100.0 (21–100)" in lines[1] and "0.0 (0–79)" in lines[1]
    assert lines[1].split()[-3:] == ["30.0", "–", "0.50"]
    assert lines[2].split()[-3:] == ["–", "100", "–"]
    shape = lines[0].index("shape")
    assert lines[2][shape] == "–", "an attribute nobody asked for is a dash, in its column"


@pytest.mark.parametrize("objects", [1, 2])
def test_held_out_scenes_are_held_out(objects):
    """In training no object of a scene is; here every one is. Seen is the rest."""
    for split, wanted in (("held_out", True), ("seen", False)):
        scenes = evaluate.scenes_of(split, objects, 200)
        assert set(scenes.count.tolist()) == {objects}
        for i in range(200):
            for k in range(objects):
                triple = [int(v[i, k]) for v in (scenes.colour, scenes.shape, scenes.motion)]
                assert world.is_held_out(*triple) is wanted


def test_every_row_is_measured_on_the_same_named_scenes():
    texts = {}
    for split in evaluate.SPLITS:
        for objects in (1, 2):
            scenes = evaluate.scenes_of(split, objects, 40)
            texts[split, objects] = evaluate.prompts_of(scenes)
            assert texts[split, objects] == evaluate.prompts_of(
                evaluate.scenes_of(split, objects, 40)
            )
            for i, text in enumerate(texts[split, objects]):
                assert world.parse(text) == world.expected(scenes, i)
    assert len({tuple(v) for v in texts.values()}) == 4


def test_truth_is_read_as_truth(rendered):
    row = evaluate.measure(rendered, "truth", "held_out", 1, 8, 5)
    values = row.as_json()
    assert values["videos"] == 8 and values["joint"]["samples"] == 8
    assert values["joint"]["accuracy"] >= 0.9 and values["background"]["accuracy"] == 1.0


def test_reconstruction_row_measures_the_autoencoder(rendered):
    noise = torch.Generator().manual_seed(2)

    def noisy(video):
        return video + 0.02 * torch.randn(video.shape, generator=noise)

    rendered.reconstruct = noisy
    values = evaluate.measure(rendered, "vae", "seen", 1, 5, 4).as_json()
    # σ 0.02 in [−1, 1] is 0.01 in [0, 1]: 40 dB; clamping half of the black pixels raises it
    assert 39.9 < values["psnr_db"] < 43
    assert values["colour"]["accuracy"] == 1.0
    rendered.reconstruct = lambda video: torch.where(video < 0, -9.0, 9.0)
    harsh = evaluate.measure(rendered, "vae", "seen", 1, 5, 4).as_json()["psnr_db"]
    assert harsh > 0, "what lies outside of [−1, 1] is shown clamped, and measured so"
    rendered.reconstruct = lambda video: -torch.ones_like(video)
    values = evaluate.measure(rendered, "vae", "seen", 1, 5, 4).as_json()
    assert values["psnr_db"] < 20 and values["colour"]["accuracy"] == 0.0


def test_videos_do_not_depend_on_their_batch(pipe):
    prompts = evaluate.prompts_of(evaluate.scenes_of("seen", 1, 3))
    together, calls = evaluate.sample(pipe, prompts, 7, steps=1)
    assert together.shape == (3, 9, 32, 32, 3) and together.dtype == torch.uint8
    assert calls == 2, "both branches of guidance count"
    alone, calls = evaluate.sample(pipe, prompts[2:], 9, steps=1, guidance=1.0)
    assert calls == 1
    alone, _ = evaluate.sample(pipe, prompts[2:], 9, steps=1)
    assert (together[2:].int() - alone.int()).abs().max() <= 1
    other, _ = evaluate.sample(pipe, prompts[2:], 10, steps=1)
    assert (alone.int() - other.int()).abs().max() > 1


def test_an_unknown_row_is_refused(pipe):
    with pytest.raises(UsageError, match="truth, vae, teacher"):
        evaluate.measure(pipe, "student", "seen", 1, 1, 1)


def result(rows, weights="w1", machine="m1"):
    return {
        "model": "micro",
        "weights": {"vae": {"hash": weights}},
        "machine": machine,
        "rows": rows,
    }


def row(name, split="seen", accuracy=0.5):
    return {"row": name, "split": split, "objects": 1, "network_calls": 0, "colour": accuracy}


def test_recorded_rows_add_up_and_follow_their_weights(tmp_path):
    (tmp_path / "micro_report.json").write_text('{"vae": {"steps": 4}}')

    def store(*given, **kind):
        path = record(MICRO, tmp_path, result(list(given), **kind))
        return json.loads(path.read_text())

    first = store(row("truth"), row("teacher"))
    assert first["vae"] == {"steps": 4}
    assert first["quality"]["rows"] == [{**row(n), "machine": "m1"} for n in ("truth", "teacher")]
    second = store(row("teacher", accuracy=0.9), row("teacher", "held_out"), machine="m2")
    assert [(r["row"], r["split"], r["colour"]) for r in second["quality"]["rows"]] == [
        ("truth", "seen", 0.5), ("teacher", "seen", 0.9), ("teacher", "held_out", 0.5),
    ]  # fmt: skip
    assert [r["machine"] for r in second["quality"]["rows"]] == ["m1", "m2", "m2"]
    assert second["quality"]["weights"] == {"vae": {"hash": "w1"}}
    whole = {"vae": {"hash": "w1"}, "dit": {"hash": "d"}}
    path = record(MICRO, tmp_path, {**result([row("vae")]), "weights": whole})
    stored = json.loads(path.read_text())["quality"]
    assert len(stored["rows"]) == 4 and stored["weights"] == whole, "another part is no conflict"
    third = store(row("vae"), weights="w2")
    assert [r["row"] for r in third["quality"]["rows"]] == ["vae"], "old weights, old numbers"
