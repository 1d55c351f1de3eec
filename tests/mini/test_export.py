"""The files of an embedded model: released names, bf16, and all that is known about them."""

import json
import os

import pytest
import torch

from tests.mini import nano
from tests.mini.conftest import TEACHER_REPORT, VAE_REPORT
from turbodiffusion.errors import WeightsError
from turbodiffusion.mini import export
from turbodiffusion.mini.recipe import recipe
from turbodiffusion.models.text_encoder import Tokenizer
from turbodiffusion.weights.find import find
from turbodiffusion.weights.load import load_dit, load_text_encoder, load_vae
from turbodiffusion.weights.read import open_checkpoint
from turbodiffusion.weights.spec import dit_spec, text_spec, vae_spec

MICRO = recipe("micro")
SPECS = {
    "vae": vae_spec(MICRO.card.vae),
    "t2v_teacher": dit_spec(MICRO.card.dit, sla=False),
    "text": text_spec(MICRO.card.text),
}


@pytest.mark.parametrize("part", SPECS)
def test_released_names_in_bf16(random_micro, part):
    stored = open_checkpoint(export.file(MICRO, random_micro[0], part))
    spec = SPECS[part]
    assert set(stored.keys()) == set(spec)
    for key in stored.keys():  # noqa: SIM118 (a checkpoint is not a dict)
        assert tuple(stored.shape(key)) == tuple(spec[key].shape), key
        assert stored.tensor(key).dtype == torch.bfloat16


def test_metadata_is_complete(random_micro):
    for part, role, report in (
        ("vae", "vae", VAE_REPORT),
        ("t2v_teacher", "dit", TEACHER_REPORT),
        ("text", "text_encoder", TEACHER_REPORT),
    ):
        metadata = open_checkpoint(export.file(MICRO, random_micro[0], part)).metadata
        assert metadata["format"] == "pt"
        assert metadata["card"] == "micro-teacher" and metadata["role"] == role
        assert json.loads(metadata["training"]) == report
    metadata = open_checkpoint(export.file(MICRO, random_micro[0], "vae")).metadata
    assert json.loads(metadata["latent_mean"]) == VAE_REPORT["latent_mean"]
    assert json.loads(metadata["latent_std"]) == VAE_REPORT["latent_std"]


def test_the_loader_returns_what_was_saved(random_micro):
    folder, vae, dit, text = random_micro
    card = MICRO.card
    loaded = [
        (vae, load_vae(export.file(MICRO, folder, "vae"), card.vae)),
        (dit, load_dit(export.file(MICRO, folder, "t2v_teacher"), card)),
        (text, load_text_encoder(export.file(MICRO, folder, "text"), card.text)),
    ]
    for ours, theirs in loaded:
        got = theirs.state_dict()
        for key, value in ours.state_dict().items():
            assert torch.equal(got[key], value.bfloat16()), key
    config = loaded[0][1].config
    assert list(config.latent_mean) == VAE_REPORT["latent_mean"]
    assert list(config.latent_std) == VAE_REPORT["latent_std"]


def test_a_folder_of_them_is_found(random_micro):
    folder = random_micro[0]
    files = find(folder)
    assert files.card.name == "micro-teacher"
    assert files.dit == {"": folder / "micro_t2v_teacher.safetensors"}
    assert files.vae == folder / "micro_vae.safetensors"
    assert files.text_encoder == folder / "micro_text.safetensors"
    assert files.tokenizer == folder / "micro_tokenizer.json"
    assert find(folder / "micro_t2v_teacher.safetensors") == files


def test_the_package_is_searched_after_the_folder(random_micro, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "PACKAGED", random_micro[0])
    assert export.find_part(MICRO, tmp_path, "vae") == random_micro[0] / "micro_vae.safetensors"
    own = tmp_path / "micro_vae.safetensors"
    own.write_bytes(b"")
    assert export.find_part(MICRO, tmp_path, "vae") == own


@pytest.mark.parametrize(
    ("part", "stage"), [("vae", "vae"), ("t2v_teacher", "teacher"), ("text", "teacher")]
)
def test_a_missing_stage_is_named_with_its_command(monkeypatch, tmp_path, part, stage):
    monkeypatch.setattr(export, "PACKAGED", tmp_path / "package")
    with pytest.raises(WeightsError, match=f"micro_{part}.safetensors") as caught:
        export.find_part(MICRO, tmp_path, part)
    assert caught.value.code == "mini-stage-missing"
    assert f"mini train {stage} --size micro" in caught.value.fix


def test_report_parts_are_merged(tmp_path):
    path = export.update_report(MICRO, tmp_path, vae={"steps": 1}, teacher={"steps": 2})
    assert path == tmp_path / "micro_report.json"
    export.update_report(MICRO, tmp_path, teacher={"steps": 3})
    assert json.loads(path.read_text()) == {"vae": {"steps": 1}, "teacher": {"steps": 3}}
    assert [p.name for p in tmp_path.iterdir()] == ["micro_report.json"]


def test_an_interrupted_report_leaves_the_old_one(tmp_path, monkeypatch):
    path = export.update_report(MICRO, tmp_path, vae={"steps": 1})
    with pytest.raises(TypeError):
        export.update_report(MICRO, tmp_path, vae=object())  # cannot be JSON

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export.update_report(MICRO, tmp_path, vae={"steps": 2})
    assert json.loads(path.read_text()) == {"vae": {"steps": 1}}


def test_an_interrupted_export_leaves_the_old_weights(random_micro, tmp_path, monkeypatch):
    vae = random_micro[1]
    export.save_vae(MICRO, vae, VAE_REPORT, tmp_path)
    before = (tmp_path / "micro_vae.safetensors").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export.save_vae(MICRO, vae, {**VAE_REPORT, "steps": 9}, tmp_path)
    assert (tmp_path / "micro_vae.safetensors").read_bytes() == before


def test_tokenizer_is_written_once_and_reads(tmp_path):
    path = export.write_tokenizer(nano.nano(), tmp_path)
    assert path.name == "nano_tokenizer.json"
    stamp = path.stat().st_mtime_ns
    assert export.write_tokenizer(nano.nano(), tmp_path) == path
    assert path.stat().st_mtime_ns == stamp, "a stage that goes on keeps its vocabulary"
    ids, mask = Tokenizer.from_file(path, 24)(["a red circle moving left"])
    assert ids[0, 5] == 1 and mask.sum() == 6, "five words, five tokens, the end"
