"""From a teacher to the shipped student: every stage, continued, merged and quantised."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file

from tests.mini import nano
from tests.mini.conftest import TEACHER_REPORT, VAE_REPORT
from turbodiffusion.errors import WeightsError
from turbodiffusion.mini import export, source, students
from turbodiffusion.mini.recipe import SizeRecipe
from turbodiffusion.models.cards import CARDS
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import TextEncoder
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.pipeline.load import load
from turbodiffusion.train import stages as of_train
from turbodiffusion.weights.header import read_header

# int8 linears need a width of 128.
TEACHER = replace(
    nano.NANO, dit=replace(nano.NANO.dit, dim=128, ffn_dim=128, num_heads=2, num_layers=1)
)
STUDENT = replace(
    TEACHER, name="nano", few_step=True, attention=replace(TEACHER.attention, kind="sla")
)
SHORT = {"steps": 2, "batch": 2, "micro_batch": 2, "log_every": 1}
SPARSE = {**SHORT, "loss": {"topk": 0.34}}  # one of the three key blocks


@dataclass(frozen=True)
class WideNano(SizeRecipe):
    @property
    def card(self):
        return TEACHER


def size(student="rcm"):
    made = nano.nano(teacher=nano.teacher_recipe(pool=8, first_pool=6))
    return WideNano(made.card_name, made.vae, made.decoder, made.teacher, student)


@pytest.fixture(scope="module", autouse=True)
def known():
    with pytest.MonkeyPatch.context() as patch:
        for one in (TEACHER, STUDENT):
            patch.setitem(CARDS, one.name, one)
        # The presets of micro, under the name of this size.
        patch.setattr(
            students, "settings_of", lambda stage, name: of_train.settings_of(stage, "micro")
        )
        yield


def write_teacher(folder):
    generator = torch.Generator().manual_seed(9)
    vae, text, dit = WanVAE(TEACHER.vae), TextEncoder(TEACHER.text), WanDiT(TEACHER.dit)
    for module in (vae, text, dit):
        module.init_weights(generator)
    with torch.no_grad():
        dit.head.head.weight.normal_(std=0.1, generator=generator)
    export.save_vae(size(), vae, VAE_REPORT, folder)
    export.write_tokenizer(size(), folder)
    export.save_teacher(size(), dit, text, TEACHER_REPORT, folder)


def run(folder, stage, changes, **more):
    changes = {"latent_frames": 3, "height": 32, "width": 32, **changes}
    return students.train_student(
        size(), folder, nano.CPU, stage, None, changes, quiet=True, **more
    )


@pytest.fixture(scope="module")
def trained(known, tmp_path_factory):
    """(folder, reports by stage) after all stages."""
    folder = tmp_path_factory.mktemp("students")
    write_teacher(folder)
    reports = {
        "sla": run(folder, "sla", SPARSE),
        "rcm": run(
            folder, "rcm",
            {**SHORT, "steps": 3, "loss": {"every": 2, "consistency": {"warmup": 0}}},
        ),
        "merge": students.make_merged(size(), folder),
        "follow": run(folder, "follow", SPARSE),
        "turbo": run(
            folder, "turbo",
            {**SHORT, "steps": 3, "loss": {"topk": 0.34, "every": 2}, "optim": {"warmup": 1}},
        ),
        "student": students.make_student(size(), folder),
    }  # fmt: skip
    return folder, reports


def tensors(folder, part):
    return {k: v.float() for k, v in load_file(export.file(size(), folder, part)).items()}


def test_every_stage_says_what_it_did(trained):
    folder, reports = trained
    stored = export.read_report(size(), folder)
    for stage in ("sla", "rcm", "follow", "turbo"):
        assert reports[stage]["complete"] and reports[stage]["device"]
        assert reports[stage]["recipe"]["seed"] == students.SEEDS[stage]
        assert stored[stage] == json.loads(json.dumps(reports[stage]))
    assert stored["student"]["network"] == "rcm" and stored["student"]["steps"] == 3


def test_files_say_what_they_are(trained):
    folder = trained[0]
    cards = {"sla": "nano-teacher", "rcm": "nano", "merged": "nano", "student_int8": "nano"}
    for part, name in cards.items():
        metadata = read_header(export.file(size(), folder, f"t2v_{part}")).metadata
        assert metadata["card"] == name and metadata["role"] == "dit"


def test_the_merge_is_the_sum_of_what_both_learnt(trained):
    folder = trained[0]
    teacher, sla, rcm, merged = (
        tensors(folder, f"t2v_{part}") for part in ("teacher", "sla", "rcm", "merged")
    )
    for name in ("blocks.0.ffn.0.weight", "blocks.0.cross_attn.q.weight"):
        expected = (rcm[name] + (sla[name] - teacher[name])).bfloat16().float()
        torch.testing.assert_close(merged[name], expected, rtol=0, atol=0)
        assert not torch.equal(rcm[name], teacher[name])
    name = "blocks.0.self_attn.attn_op.local_attn.proj_l.weight"
    assert name not in rcm
    torch.testing.assert_close(merged[name], sla[name])


@pytest.mark.parametrize(("before", "after"), [("merged", "followed"), ("followed", "turbo")])
def test_the_sparse_student_goes_on_from_the_stage_before(trained, before, after):
    old, new = tensors(trained[0], f"t2v_{before}"), tensors(trained[0], f"t2v_{after}")
    moved = [
        float((new[n] - old[n]).norm() / old[n].norm()) for n in old if n.endswith("ffn.0.weight")
    ]
    assert 0 < max(moved) < 0.05, "a few steps away"


def test_the_sparse_student_learns_from_the_teacher_beside_the_dense_student(trained):
    config = json.loads((trained[0] / "turbo" / "config.json").read_text("utf-8"))
    names = {role: config[role].rpartition("_t2v_")[2] for role in ("init", "teacher", "leader")}
    assert names == {
        "init": "followed.safetensors", "teacher": "teacher.safetensors",
        "leader": "rcm.safetensors",
    }  # fmt: skip


@pytest.mark.parametrize("part", ["turbo_int8", "student_int8", "rcm"])
def test_students_make_videos_in_few_steps(trained, part):
    folder = trained[0]
    parts = {name: export.file(size(), folder, name) for name in ("vae", "text", "tokenizer")}
    pipe = load(
        export.file(size(), folder, f"t2v_{part}"), device="cpu", vae=parts["vae"],
        text_encoder=parts["text"], tokenizer=parts["tokenizer"],
    )  # fmt: skip
    assert pipe.card.name == "nano"
    assert pipe.any_expert.attention.kind == ("sla" if part.startswith("turbo") else "dense")
    calls = []
    video = pipe("a red circle", on_step=lambda n, *_: calls.append(n))
    assert calls == [1, 2, 3, 4] and video.frames.shape == (9, 32, 32, 3)


def test_a_finished_stage_stays_and_a_longer_one_goes_on(trained):
    folder, reports = trained
    file = export.file(size(), folder, "t2v_sla")
    before = file.stat().st_mtime_ns
    assert run(folder, "sla", SPARSE) == json.loads(json.dumps(reports["sla"]))
    assert file.stat().st_mtime_ns == before
    longer = run(folder, "sla", {**SPARSE, "steps": 3})
    assert longer["steps"] == 3 and file.stat().st_mtime_ns > before
    lines = (folder / "sla" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_the_other_network_can_ship(trained, tmp_path):
    folder = trained[0]
    for part in ("t2v_turbo", "t2v_rcm"):
        target = export.file(size(), tmp_path, part)
        target.write_bytes(export.file(size(), folder, part).read_bytes())
    report = students.make_student(size("turbo"), tmp_path)
    assert report["network"] == "turbo"
    header = read_header(export.file(size(), tmp_path, "t2v_student_int8"))
    assert any("proj_l" in name for name in header.tensors)


def test_a_missing_stage_is_named(tmp_path):
    write_teacher(tmp_path)
    with pytest.raises(WeightsError, match="mini train sla"):
        students.make_merged(size(), tmp_path)


def test_the_source_gives_the_same_clips_after_a_restart(trained):
    folder = trained[0]

    def opened():
        return source.WorldSource(size(), folder, nano.CPU, 5, 2)

    first = opened()
    for iteration in range(20):
        last = first.batch(iteration, 0)
    again = opened()
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert first.pool.added > 6, "clips were renewed on the way"
    repeated = again.batch(19, 0)
    torch.testing.assert_close(repeated.latents_BCTHW, last.latents_BCTHW)
    torch.testing.assert_close(repeated.context_BSD, last.context_BSD)
    other = again.batch(19, 1)
    assert not torch.equal(other.latents_BCTHW, repeated.latents_BCTHW)
