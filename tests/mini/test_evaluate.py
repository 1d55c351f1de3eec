"""What rows are made of: the same prompts and noise everywhere, stand-ins and references."""

import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.mini.nano import NANO, nano
from turbodiffusion.errors import UsageError, WeightsError
from turbodiffusion.mini import evaluate, export, prompts, quality, rows, world
from turbodiffusion.mini.networks import Networks, requests_of, sample_latents, student_card
from turbodiffusion.mini.observe import Judges
from turbodiffusion.mini.quality import Options, measure_quality
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import TextEncoder
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.weights.merge import Merged
from turbodiffusion.weights.quantize import Quantized
from turbodiffusion.weights.stream import open_network, save

SIZE = nano()
SLA = replace(NANO.attention, kind="sla", topk=0.5)


def write_dit(folder, part, attention, seed):
    generator = torch.Generator().manual_seed(seed)
    dit = WanDiT(NANO.dit, attention)
    dit.init_weights(generator)
    with torch.no_grad():
        dit.head.head.weight.normal_(std=0.1, generator=generator)  # zero at the start
    metadata = {"card": SIZE.card_name, "role": "dit"}
    export._write(dit, export.file(SIZE, folder, part), metadata)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every file of the smallest model, students included, of random weights."""
    place = tmp_path_factory.mktemp("nano")
    vae, text = WanVAE(NANO.vae), TextEncoder(NANO.text)
    for module in (vae, text):
        module.init_weights(torch.Generator().manual_seed(3))
    report = {"latent_mean": [0.0] * 8, "latent_std": [1.0] * 8}
    export.save_vae(SIZE, vae, report, place)
    export.write_tokenizer(SIZE, place)
    metadata = {"card": SIZE.card_name, "role": "text_encoder"}
    export._write(text, export.file(SIZE, place, "text"), metadata)
    write_dit(place, "t2v_teacher", NANO.attention, 1)
    write_dit(place, "t2v_rcm", NANO.attention, 2)
    write_dit(place, "t2v_sla", SLA, 3)
    at = {name: export.file(SIZE, place, f"t2v_{name}") for name in
          ("teacher", "rcm", "sla", "turbo", "turbo_int8")}  # fmt: skip
    one = {name: open_network(at[name]) for name in ("rcm", "sla", "teacher")}
    save(Merged(one["rcm"], one["sla"], one["teacher"]), at["turbo"])
    for part in ("merged", "followed"):
        shutil.copy(at["turbo"], export.file(SIZE, place, f"t2v_{part}"))
    save(Quantized(open_network(at["turbo"])), at["turbo_int8"])
    student = export.file(SIZE, place, "t2v_student_int8")
    save(Quantized(open_network(at["rcm"])), student, {"card": "nano"})
    return place


@pytest.fixture(scope="module")
def networks(folder):
    return Networks(SIZE, folder, "cpu", topk=0.5)


@pytest.fixture(scope="module")
def result(folder):
    """Every row on one prompt of each kind, and one prompt from several noises."""
    options = Options(
        folder=folder, device="cpu", rows=["all"], samples=2, objects=(1, 2), batch=2, real=8,
        repeated=1, workers=1, topk=0.5, steps=2,
    )  # fmt: skip
    return measure_quality(SIZE, options, lambda text: None)


@pytest.mark.parametrize("objects", [1, 2])
def test_held_out_scenes_are_held_out(objects):
    """In training no object of a scene is; here every one is. Seen is the rest."""
    for split, wanted in (("held_out", True), ("seen", False)):
        scenes = prompts.scenes_of(split, objects, 200)
        assert set(scenes.count.tolist()) == {objects}
        for i in range(200):
            for k in range(objects):
                triple = [int(v[i, k]) for v in (scenes.colour, scenes.shape, scenes.motion)]
                assert world.is_held_out(*triple) is wanted


def test_prompts_name_every_attribute_and_differ_by_kind():
    batches = prompts.world_batches([1, 2], 40, 16)
    assert [(b.split, b.objects, len(b)) for b in batches[:5]] == [
        ("seen", 1, 16), ("held_out", 1, 16), ("seen", 2, 16), ("held_out", 2, 16), ("seen", 1, 16),
    ]  # fmt: skip
    assert [len(b) for b in batches[-4:]] == [8] * 4
    for batch in batches:
        assert [world.parse(text) for text in batch.prompts] == batch.expected
    assert len({text for b in batches for text in b.prompts}) > 150
    assert [seed for b in batches if b.split == "seen" and b.objects == 1 for seed in b.seeds] == [
        prompts.SEED + i for i in range(40)
    ]


def test_repeated_prompts_differ_in_noise_only():
    one, two = prompts.repeated_batches(3, 16)
    assert len(one) == 16 and len(two) == 8 and one.repeats
    assert len(set(one.prompts)) == 2 and one.prompts[:8] == [one.prompts[0]] * 8
    assert len({*one.seeds, *two.seeds}) == 24


def test_prompts_of_a_file():
    texts = [
        "A RED circle, moved right", "a dog on black", "yellow star", "on black",
        "a red ring, a blue cross moving up and a green star",
    ]  # fmt: skip
    batches, left = prompts.given_batches(texts, 8)
    assert [(b.split, b.objects) for b in batches] == [("seen", 1)]
    assert batches[0].prompts == ["a red circle moving right", "a yellow star"]
    assert batches[0].seeds == [prompts.SEED, prompts.SEED + 2], "by place in the file"
    assert [text for text, _ in left] == [texts[1], texts[3], texts[4]]
    assert "dog" in left[0][1] and "black" in left[1][1] and "3 objects" in left[2][1]
    held_out = prompts.prompts_of(prompts.scenes_of("held_out", 1, 1))[0]
    assert prompts.given_batches([held_out], 8)[0][0].split == "held_out"
    with pytest.raises(UsageError, match="None of the 1"):
        prompts.given_batches(["a dog"], 8)


def test_rows_come_after_their_reference():
    names = [row.name for row in rows.ROWS]
    for place, row in enumerate(rows.ROWS):
        assert row.reference in ("", *names[:place])
        assert not row.part or row.part in export.STAGES
        assert row.few_step is (row.part not in ("", "t2v_teacher", "t2v_sla"))
    for pair in rows.PAIRS:
        assert {pair.later, pair.earlier} <= set(names)


def test_rows_are_chosen_by_name_and_by_file(folder, tmp_path):
    chosen = rows.choose(["rcm-4", "truth"], SIZE, folder)
    assert [row.name for row in chosen] == ["truth", "rcm-4"], "the table's order"
    assert rows.choose(["all"], SIZE, folder) == list(rows.ROWS)
    assert [row.name for row in rows.choose(["available"], SIZE, tmp_path)] == ["truth", "vae"]
    with pytest.raises(WeightsError) as missing:
        rows.choose(["int8-4"], SIZE, tmp_path)
    assert "mini train turbo --size nano" in str(missing.value)
    assert "nano_t2v_turbo_int8.safetensors" in str(missing.value)
    with pytest.raises(UsageError, match="'students'"):
        rows.choose(["students"], SIZE, folder)


def test_each_network_is_loaded_once(networks):
    one = networks.pipeline(rows.BY_NAME["teacher"])
    assert networks.pipeline(rows.BY_NAME["teacher-4-plain"]) is one
    sparse = networks.pipeline(rows.BY_NAME["sla-untuned"])
    assert sparse is not one and sparse.vae is one.vae
    assert sparse.any_expert.attention.kind == "sla"
    int8 = networks.pipeline(rows.BY_NAME["int8-4"])
    assert int8.any_expert.quantized and int8.card.few_step
    assert networks.pipeline(rows.BY_NAME["sagesla-4"]).any_expert.attention.kind == "sagesla"


def test_untuned_rows_have_the_teachers_weights_and_no_linear_branch(networks):
    teacher = networks.pipeline(rows.BY_NAME["teacher"]).any_expert.state_dict()
    sparse = networks.pipeline(rows.BY_NAME["sla-untuned"]).any_expert.state_dict()
    added = {name for name in sparse if name not in teacher}
    assert added and all("proj_l" in name and not sparse[name].any() for name in added)
    assert all(torch.equal(sparse[name], teacher[name]) for name in teacher)


def test_students_videos_are_those_of_the_pipeline(networks):
    """Sampled together here, one by one in ``generate``; the same noise, fresh noise included."""
    row = rows.BY_NAME["rcm-4"]
    pipe = networks.pipeline(row)
    batch = prompts.world_batches([1], 3, 3)[0]
    requests = requests_of(pipe, row, batch.prompts, batch.seeds)
    assert [r.steps for r in requests] == [4] * 3 and not requests[0].baseline
    context = pipe.encode_prompts(batch.prompts)
    together = sample_latents(pipe, requests, context, None)
    apart = pipe.denoise(requests, context)
    assert torch.allclose(together, apart, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1
    assert student_card(SIZE).few_step


def test_samplers_of_the_rows(networks):
    calls = {}
    for name in ("teacher", "teacher-8", "teacher-4-plain", "sla-teacher", "rcm-2", "sagesla-4"):
        row = rows.BY_NAME[name]
        request = requests_of(networks.pipeline(row), row, ["a red ring"], [1])[0]
        calls[name] = evaluate.network_calls(request)
    assert calls == {
        "teacher": 100, "teacher-8": 16, "teacher-4-plain": 4, "sla-teacher": 100, "rcm-2": 2,
        "sagesla-4": 4,
    }  # fmt: skip


def test_every_row_is_measured_on_the_same_videos(result):
    values, evaluation = result
    assert [row["row"] for row in values["whole"]] == [row.shown for row in rows.ROWS]
    kinds = {(r["split"], r["objects"]) for r in values["rows"]}
    assert kinds == {(s, n) for s in ("seen", "held_out") for n in (1, 2)}
    assert len(values["rows"]) == 4 * len(rows.ROWS)
    assert {row["videos"] for row in values["rows"]} == {2}
    truth = next(row for row in values["whole"] if row["row"] == "rendered truth")
    assert truth["sharpness"] == pytest.approx(1, abs=0.1) and truth["overlap"] > 0.9
    assert truth["flicker"] == pytest.approx(0, abs=0.01)
    assert all("frechet" in row for row in values["whole"] if row["row"] != "VAE reconstruction")
    assert values["settings"]["real_clips"] == 8 and values["settings"]["complete"]
    assert set(values["outcomes"]["teacher"]) == {"seen-1", "seen-2", "held_out-1", "held_out-2"}
    assert len(values["outcomes"]["teacher"]["seen-1"]) == 2
    networks = {row.part for row in rows.ROWS if row.part} - {"t2v_teacher"}
    assert set(values["weights"]) == {"dit", "vae", "tokenizer", "text_encoder", *networks}
    assert len(evaluation.examples) == 2
    assert all(set(clips) == set(rows.BY_NAME) for clips in evaluation.examples.values())


def test_rows_stand_beside_their_reference(result):
    whole = {row["row"]: row for row in result[0]["whole"]}
    # As many steps as the teacher here, the same noise: only the attention differs.
    assert whole["sla-untuned"]["reference"] == "teacher"
    assert 0.9 < whole["int8-4"]["reference_cosine"] <= 1
    assert whole["int8-4"]["reference_psnr_db"] > 25
    assert len(whole["turbo-4"]["step_cosine"]) == 4 and len(whole["turbo-1"]["step_cosine"]) == 1
    assert min(whole["int8-4"]["step_cosine"]) > 0.99
    assert whole["turbo-4"]["step_cosine"][0] < whole["int8-4"]["step_cosine"][0]
    assert "reference" not in whole["teacher"]


def test_a_run_that_is_cut_short_keeps_rows_equal(networks):
    chosen = rows.choose(["truth", "rcm-1"], SIZE, networks.folder)
    evaluation = evaluate.Evaluation(networks, chosen, Judges(1))
    assert evaluation.run(prompts.world_batches([1], 4, 2), deadline=0.0) == 1
    assert {t.group("seen", 1).videos for t in evaluation.tallies.values()} == {2}


def test_repeated_prompts_stand_among_the_others():
    """A run that is cut short has some of both; the first batch is one of the table's own."""
    own, extra = prompts.world_batches([1], 8, 2), prompts.repeated_batches(3, 8)
    order = quality._shuffle_in(own, extra)
    assert len(order) == 11 and [b for b in order if not b.repeats] == own
    places = [i for i, b in enumerate(order) if b.repeats]
    assert places[0] > 0 and min(b - a for a, b in pairwise(places)) > 1


def test_prompts_of_a_file_leave_rendered_rows_out(folder):
    options = Options(
        folder=folder, device="cpu", prompts=["a red ring", "two dogs"], workers=1, steps=1,
        topk=0.5,
    )  # fmt: skip
    result, _ = measure_quality(SIZE, options, lambda text: None)
    assert [row["row"] for row in result["whole"]] == [r.shown for r in rows.ROWS if r.part]
    assert [one["prompt"] for one in result["not_judged"]] == ["two dogs"]
    assert "frechet" not in result["whole"][0], "the world's clips show other prompts"


def test_rendered_rows_need_the_worlds_prompts(folder):
    options = Options(folder=folder, device="cpu", rows=["truth"], prompts=["a red ring"])
    with pytest.raises(UsageError, match="truth"):
        measure_quality(SIZE, options, lambda text: None)


def test_workers_judge_what_one_process_does(folder):
    """Observations of separate processes come back in the order of the prompts."""
    found = []
    for workers in (1, 2):
        options = Options(folder=folder, device="cpu", rows=["truth", "vae"], samples=9,
                          real=0, workers=workers)  # fmt: skip
        found.append(measure_quality(SIZE, options, lambda text: None)[0])
    assert found[0]["rows"][0]["joint"] == found[1]["rows"][0]["joint"]
    assert found[0]["outcomes"] == found[1]["outcomes"]
    assert found[0]["whole"][0] == found[1]["whole"][0]


def test_a_worker_that_dies_loses_nothing():
    """Its clips and those behind them are judged here, in order."""
    scenes = prompts.scenes_of("seen", 1, 24)
    expected = [world.expected(scenes, i) for i in range(24)]
    clips = (world.render(scenes, 9, 32) * 255).round().to(torch.uint8)
    seen, alone = [], []
    with pytest.warns(UserWarning, match="died"), Judges(2) as judges:
        judges.submit(clips, expected, seen.append)
        for process in judges._pool._processes.values():
            process.kill()
        judges.submit(clips, expected, seen.append)
        judges.finish()
    Judges(1).submit(clips, expected, alone.append)
    assert seen == alone + alone


def test_a_pipeline_alone(networks):
    pipe = networks.pipeline(rows.BY_NAME["teacher"])
    tally = evaluate.measure(pipe, "seen", 1, 3, 2, steps=1)
    assert tally.videos == 3 and tally.calls == 2
    together, _ = evaluate.sample(pipe, ["a red ring"] * 3, 7, steps=1)
    assert together.shape == (3, 9, 32, 32, 3) and together.dtype == torch.uint8
    alone, _ = evaluate.sample(pipe, ["a red ring"], 9, steps=1)
    assert (together[2:].int() - alone.int()).abs().max() <= 1
