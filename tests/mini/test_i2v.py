"""Image to video: the data, the three trainings, and the two experts made of them."""

import json
import shutil
from dataclasses import dataclass, replace

import pytest
import torch

from tests.mini import nano
from tests.mini.conftest import TEACHER_REPORT, VAE_REPORT
from turbodiffusion.errors import UsageError
from turbodiffusion.mini import export, i2v, i2v_judge, world
from turbodiffusion.mini.export import read_report
from turbodiffusion.mini.images import ImageSource, i2v_card
from turbodiffusion.mini.recipe import SizeRecipe, recipe
from turbodiffusion.models.cards import CARDS, Attention
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import TextEncoder
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.pipeline.load import load
from turbodiffusion.weights.header import read_header
from turbodiffusion.weights.load import load_dit

# int8 linears need a width of 128.
TEACHER = replace(
    nano.NANO, dit=replace(nano.NANO.dit, dim=128, ffn_dim=128, num_heads=2, num_layers=1)
)
STUDENT = replace(
    TEACHER, name="nano", few_step=True, attention=replace(TEACHER.attention, kind="sla")
)
WIDE = {"task": "i2v", "experts": ("high", "low"), "dit": replace(TEACHER.dit, in_dim=20)}
I2V = replace(STUDENT, name="nano-i2v", **WIDE)
CARDS_OF_TEST = (TEACHER, STUDENT, I2V, replace(TEACHER, name="nano-i2v-teacher", **WIDE))
SHORT = {"steps": 2, "batch": 2, "micro_batch": 2, "log_every": 1}
SIZE_POOL = 6


@dataclass(frozen=True)
class WideNano(SizeRecipe):
    """The size whose cards this module names."""

    @property
    def card(self):
        return TEACHER


def size():
    made = nano.nano(teacher=nano.teacher_recipe(pool=8, first_pool=6))
    return WideNano(made.card_name, made.vae, made.decoder, made.teacher)


@pytest.fixture(scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        for one in CARDS_OF_TEST:
            patch.setitem(CARDS, one.name, one)
        yield


def write_text_to_video(folder):
    """Random weights of everything that the stages start from."""
    generator = torch.Generator().manual_seed(9)
    vae, text = WanVAE(TEACHER.vae), TextEncoder(TEACHER.text)
    dit, rcm = WanDiT(TEACHER.dit), WanDiT(TEACHER.dit)
    sla = WanDiT(TEACHER.dit, Attention("sla", block_q=16, block_k=16))
    for module in (vae, text, dit, rcm, sla):
        module.init_weights(generator)
    with torch.no_grad():
        for module in (dit, rcm, sla):
            module.head.head.weight.normal_(std=0.1, generator=generator)
        for block in sla.blocks:
            block.self_attn.attn_op.local_attn.proj_l.weight.normal_(std=0.1, generator=generator)
    export.save_vae(size(), vae, VAE_REPORT, folder)
    export.write_tokenizer(size(), folder)
    export.save_teacher(size(), dit, text, TEACHER_REPORT, folder)
    for module, part in ((rcm, "rcm"), (sla, "turbo")):
        export._write(module, export.file(size(), folder, f"t2v_{part}"), {"card": "nano"})


@pytest.fixture(scope="module")
def trained(known, tmp_path_factory):
    """(folder, report of the trainings, report of the merge) after all stages."""
    folder = tmp_path_factory.mktemp("i2v")
    write_text_to_video(folder)
    report = i2v.train_i2v(size(), folder, nano.CPU, changes=SHORT, quiet=True)
    merged = i2v.make_i2v_merged(size(), folder, {"high": 2.0, "low": 1.0})
    changes = {**SHORT, "loss": {"topk": 0.34}}  # one of the three key blocks
    i2v.train_i2v(size(), folder, nano.CPU, changes=changes, parts=i2v.ALIGNED, quiet=True)
    i2v.make_i2v_students(replace(size(), image_student="turbo"), folder)
    return folder, report, merged


def tensors(folder, part):
    from safetensors.torch import load_file

    return {k: v.float() for k, v in load_file(export.file(size(), folder, part)).items()}


def test_batches_carry_the_first_frame(trained):
    folder = trained[0]
    source = ImageSource(size(), folder, nano.CPU, 3, 4, SIZE_POOL)
    batch = source.batch(0, 0)
    assert batch.latents_BCTHW.shape == (4, 8, 3, 8, 8)
    condition = batch.condition_BCTHW
    assert condition.shape == (4, 12, 3, 8, 8)
    assert (condition[:, :4, 0] == 1).all() and not condition[:, :4, 1:].any()
    # The first latent frame comes of the first frame alone, in the clip as in the condition.
    torch.testing.assert_close(condition[:, 4:, 0], batch.latents_BCTHW[:, :, 0], rtol=0, atol=0.02)
    assert (condition[:, 4:, 1:] - batch.latents_BCTHW[:, :, 1:]).abs().max() > 0.02
    assert len(source.pool) == SIZE_POOL
    again = ImageSource(size(), folder, nano.CPU, 3, 4, SIZE_POOL).batch(0, 0)
    assert torch.equal(again.condition_BCTHW, condition)


def test_condition_is_that_of_the_pipeline(trained):
    folder = trained[0]
    pool = ImageSource(size(), folder, nano.CPU, 3, 4, SIZE_POOL).pool
    from turbodiffusion.mini.data import render_clips

    clips = render_clips(world.sample_scenes(1, 5, two_objects=0), 9, 32, torch.device("cpu"))
    latent = pool.encode(clips)[:, 8:]
    pipe = load(export.file(size(), folder, "i2v_high_int8"), device="cpu")
    y = pipe.condition(clips[0, :, 0], 9)
    torch.testing.assert_close(y[:, 4:], latent, rtol=1e-4, atol=1e-4)


def test_the_start_makes_what_the_teacher_makes(trained):
    folder, g = trained[0], torch.Generator().manual_seed(1)
    plain = load_dit(export.file(size(), folder, "t2v_teacher"), TEACHER, dtype=torch.float32)
    wide = load_dit(
        export.file(size(), folder, "i2v_start"), CARDS["nano-i2v-teacher"], dtype=torch.float32
    )
    x, y = torch.randn(2, 8, 3, 8, 8, generator=g), torch.randn(2, 12, 3, 8, 8, generator=g)
    t, text = torch.tensor([[900.0], [100.0]]), torch.randn(2, 24, 64, generator=g)
    with torch.no_grad():
        torch.testing.assert_close(wide(x, t, text, y), plain(x, t, text), rtol=1e-5, atol=1e-5)


def test_parts_go_on_from_each_other(trained):
    folder, report = trained[:2]
    assert report["complete"] and set(report) == {"complete", *(p.name for p in i2v.PARTS)}
    files = {part: tensors(folder, f"i2v_{part}") for part in ("base", "teacher_high", "start")}
    new = files["base"]["patch_embedding.weight"][:, 32:]
    assert new.abs().max() > 0, "the network has begun to look at the image"
    assert not files["start"]["patch_embedding.weight"][:, 32:].any()
    assert any(not torch.equal(files["base"][k], v) for k, v in files["teacher_high"].items())
    config = json.loads((folder / "i2v_teacher_high" / "config.json").read_text())
    assert config["init"].endswith("nano_i2v_base.safetensors")
    assert config["loss"]["times"]["low"] == 0.9


def test_finished_parts_are_left_alone(trained, monkeypatch):
    monkeypatch.setattr(i2v, "train", lambda *_, **__: pytest.fail("trained again"))
    report = i2v.train_i2v(size(), trained[0], nano.CPU, changes=SHORT, quiet=True)
    assert report["complete"]


def test_a_paused_run_goes_on(trained, tmp_path):
    write_text_to_video(tmp_path)
    report = i2v.train_i2v(size(), tmp_path, nano.CPU, 1e-4, SHORT, quiet=True)
    assert not report["complete"] and not report["base"]["complete"]
    assert report["base"]["steps"] < 2 and set(report) == {"complete", "base"}
    report = i2v.train_i2v(size(), tmp_path, nano.CPU, changes=SHORT, quiet=True)
    assert report["complete"]
    for part in ("base", "teacher_low"):
        straight, cut = tensors(trained[0], f"i2v_{part}"), tensors(tmp_path, f"i2v_{part}")
        assert all(torch.equal(straight[name], cut[name]) for name in straight), part


def test_delta_goes_to_both_experts(trained):
    folder, _, report = trained
    assert report["dense_high"]["weight"] == 2 and report["merged_low"]["weight"] == 1
    rcm, sla, teacher = (tensors(folder, f"t2v_{part}") for part in ("rcm", "turbo", "teacher"))
    for expert, w in (("high", 2.0), ("low", 1.0)):
        base = tensors(folder, f"i2v_teacher_{expert}")
        dense, merged = (tensors(folder, f"i2v_{kind}_{expert}") for kind in ("dense", "merged"))
        assert set(dense) == set(base)
        assert set(merged) - set(base) == {n for n in sla if "proj_l" in n}
        for made in (dense, merged):
            assert torch.equal(made["patch_embedding.weight"], base["patch_embedding.weight"])
        for name in sla:
            if "proj_l" in name:
                assert torch.equal(merged[name], sla[name])
            elif name != "patch_embedding.weight":
                few = base[name] + w * (rcm[name] - teacher[name])
                assert (dense[name] - few).abs().max() <= 0.005 * few.abs().max(), name
                both = few + sla[name] - rcm[name]  # bf16 rounds twice
                assert (merged[name] - both).abs().max() <= 0.01 * both.abs().max(), name


def test_merged_experts_follow_the_dense_ones(trained):
    folder = trained[0]
    for expert, low, high in (("high", 0.9, 1.0), ("low", 0.0, 0.9)):
        config = json.loads((folder / f"i2v_turbo_{expert}" / "config.json").read_text())
        assert config["init"].endswith(f"nano_i2v_merged_{expert}.safetensors")
        assert config["teacher"].endswith(f"nano_i2v_dense_{expert}.safetensors")
        times = config["loss"]["times"]
        assert (times["low"], times["high"]) == (low, high)
        plain, eight = (export.file(size(), folder, f"i2v_{expert}{x}") for x in ("", "_int8"))
        for path in (plain, eight):
            metadata = read_header(path).metadata
            assert metadata["card"] == "nano-i2v" and metadata["expert"] == expert
        merged, aligned = (tensors(folder, f"i2v_{k}{expert}") for k in ("merged_", ""))
        assert read_report(size(), folder)["i2v"][expert]["network"] == f"turbo_{expert}"
        assert any(not torch.equal(merged[name], aligned[name]) for name in merged)


def test_dense_experts_can_ship(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "copy")
    report = i2v.make_i2v_students(size(), tmp_path / "copy")
    assert report["low"]["network"] == "dense_low"
    for form in ("", "_int8"):
        path = export.file(size(), tmp_path / "copy", f"i2v_low{form}")
        assert load(path, device="cpu").any_expert.attention.kind == "dense"
    shipped, dense = (tensors(tmp_path / "copy", f"i2v_{part}") for part in ("low", "dense_low"))
    assert all(torch.equal(shipped[name], value) for name, value in dense.items())


def test_own_distillation_takes_the_place_of_the_text_networks(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    changes = {**SHORT, "steps": 3, "loss": {"every": 2, "consistency": {"warmup": 1}}}
    report = i2v.train_i2v(
        size(), folder, nano.CPU, changes=changes, parts=i2v.DISTILLED, quiet=True
    )
    assert report["complete"] and report["rcm"]["steps"] == 3
    assert read_header(export.file(size(), folder, "i2v_rcm")).metadata["card"] == "nano-i2v"
    report = i2v.make_i2v_merged(size(), folder, {"low": 1.0})
    assert "i2v_rcm − i2v_base" in report["dense_high"]["merge"]
    files = {p: tensors(folder, f"i2v_{p}") for p in ("rcm", "base", "teacher_low", "dense_low")}
    name = "patch_embedding.weight"  # of one shape now, so that it takes part
    wanted = files["teacher_low"][name] + files["rcm"][name] - files["base"][name]
    torch.testing.assert_close(files["dense_low"][name], wanted, rtol=0.01, atol=1e-3)


def test_experts_animate_an_image(trained):
    pipe = load(export.file(size(), trained[0], "i2v_low_int8"), device="cpu")
    assert pipe.card.name == "nano-i2v" and pipe.any_expert.quantized
    assert pipe.any_expert.attention.kind == "sla"
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    calls = []
    video = pipe("a shape moving left", image=image, on_step=lambda n, *_: calls.append(n))
    assert video.frames.shape == (9, 32, 32, 3) and calls == [1, 2, 3, 4]
    other = pipe("a shape moving left", image=255 - image)
    assert (video.frames != other.frames).any(), "the image makes a difference"


def test_only_mini_has_one():
    assert i2v_card(recipe("mini")).name == "mini-i2v-teacher"
    with pytest.raises(UsageError, match="no image-to-video model of the size micro"):
        i2v_card(recipe("micro"))


def test_judge_of_true_clips_and_of_noise(known, trained):
    pipe = load(export.file(size(), trained[0], "i2v_high_int8"), device="cpu")

    def truth(clip, text, seed):
        return (clip.permute(1, 2, 3, 0) + 1) / 2

    row = i2v_judge._measured(pipe, "truth", truth, 24, False, 0, None)
    assert row.psnr == row.psnr_least == 99
    assert row.colour > 0.9 and row.background > 0.9 and row.motion > 0.9, "9×32×32 is coarse"
    swapped = i2v_judge._measured(pipe, "truth", truth, 24, True, 0, None)
    agree = i2v_judge.chance(24)
    for name in i2v_judge.FROM_IMAGE:
        assert getattr(swapped, name) <= agree[name] + 0.15, "chance, not the text's own scene"
    assert swapped.psnr == 99, "likeness is to the image that was given"
    noise = i2v_judge.measure(pipe, "int8", samples=4)
    assert noise.psnr < 26 and noise.joint < 0.5 and noise.steps == 4
    assert "int8" in i2v_judge.table([noise])


def test_rows_by_name(trained):
    rows = i2v_judge.measure_rows(size(), trained[0], ["vae", "teacher-4", "exchanged"], 2, "cpu")
    assert [row.name for row in rows] == ["vae", "teacher-4", "exchanged"]
    assert [row.steps for row in rows] == [0, 4, 4]
    with pytest.raises(UsageError, match="no row 'best'"):
        i2v_judge.measure_rows(size(), trained[0], ["best"], 2, "cpu")


def test_psnr():
    black, gray = torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)
    assert i2v_judge.psnr(black, gray) == pytest.approx(20)
    assert i2v_judge.psnr(gray, gray) == 99
