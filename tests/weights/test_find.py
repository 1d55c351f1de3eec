"""Names, paths and hub ids lead to files; what is missing is named with the command for it."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.weights.helpers import sparse_safetensors
from turbodiffusion.errors import SetupError, TurboDiffusionError, UsageError, WeightsError
from turbodiffusion.models.cards import CARDS, DIT_1_3B, DIT_A14B, UMT5_XXL, WAN_VAE
from turbodiffusion.weights import download as fetching
from turbodiffusion.weights import hub, places
from turbodiffusion.weights.catalogue import BASE_FILES, dit_files
from turbodiffusion.weights.find import default_name, find
from turbodiffusion.weights.spec import dit_spec, text_spec, vae_spec

SMALL = "TurboWan2.1-T2V-1.3B-480P"
I2V = "TurboWan2.2-I2V-A14B-720P"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: no embedded model, no checkpoints, an empty hub cache, no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "data_folder", lambda: tmp_path / "package")
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return tmp_path


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def embed(folder: Path, size: str, *names: str) -> None:
    for name in names or ("vae.safetensors", "text.safetensors", "tokenizer.json",
                          "t2v_teacher.safetensors"):  # fmt: skip
        touch(folder / "package" / f"{size}_{name}")


def base(folder: Path) -> None:
    touch(folder / "Wan2.1_VAE.pth")
    touch(folder / "models_t5_umt5-xxl-enc-bf16.pth")
    touch(folder / "google" / "umt5-xxl" / "tokenizer.json")


def dit(path: Path, quantized: bool = False, i2v: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return sparse_safetensors(path, dit_spec(DIT_A14B if i2v else DIT_1_3B, quantized))


def fails(code: str, action: Callable[[], object], *parts: str) -> TurboDiffusionError:
    with pytest.raises(TurboDiffusionError) as caught:
        action()
    assert caught.value.code == code, caught.value
    for part in parts:
        assert part in caught.value.message + caught.value.fix
    return caught.value


def test_embedded_models(nowhere: Path) -> None:
    embed(nowhere, "micro")
    files = find("micro")
    assert files.card.name == "micro-teacher"
    assert files.dit == {"": nowhere / "package" / "micro_t2v_teacher.safetensors"}
    assert files.text_encoder.name == "micro_text.safetensors"
    assert (files.vae.name, files.tokenizer.name) == (
        "micro_vae.safetensors",
        "micro_tokenizer.json",
    )
    assert find("micro-teacher") == find() == files


def test_default_is_mini_once_complete(nowhere: Path) -> None:
    assert default_name() == "micro"
    embed(nowhere, "micro")
    embed(nowhere, "mini", "t2v_teacher.safetensors", "vae.safetensors", "text.safetensors")
    assert default_name() == "micro"
    embed(nowhere, "mini")
    assert default_name() == "mini" and find().card.name == "mini-teacher"


def test_student_comes_before_the_teacher(nowhere: Path) -> None:
    embed(nowhere, "micro")
    assert find("micro").card.name == "micro-teacher"
    embed(nowhere, "micro", "t2v_student.safetensors")
    assert find("micro").card.name == "micro"
    assert find("micro").dit[""].name == "micro_t2v_student.safetensors"
    embed(nowhere, "micro", "t2v_student_int8.safetensors")
    assert find("micro").dit[""].name == "micro_t2v_student_int8.safetensors"
    assert find("micro", quantized=False).dit[""].name == "micro_t2v_student.safetensors"
    assert find("micro-teacher").dit[""].name == "micro_t2v_teacher.safetensors"


def test_two_experts_of_an_embedded_model(nowhere: Path) -> None:
    embed(nowhere, "mini")
    fails("weights-missing", lambda: find("mini-i2v"), "mini_i2v_high_int8.safetensors")
    embed(nowhere, "mini", "i2v_high_int8.safetensors")
    fails("weights-missing", lambda: find("mini-i2v"), "mini_i2v_low_int8.safetensors")
    assert default_name("i2v") == "mini"
    embed(nowhere, "mini", "i2v_low_int8.safetensors")
    assert default_name("i2v") == "mini-i2v" and default_name() == "mini"
    files = find("mini-i2v")
    assert files.card.name == "mini-i2v"
    assert {expert: path.name for expert, path in files.dit.items()} == {
        "high": "mini_i2v_high_int8.safetensors", "low": "mini_i2v_low_int8.safetensors",
    }  # fmt: skip
    assert files.vae.name == "mini_vae.safetensors"
    fails("weights-missing", lambda: find("mini-i2v-teacher"), "mini_i2v_teacher_high.safetensors")


def test_experts_of_an_embedded_model_by_path(nowhere: Path) -> None:
    embed(nowhere, "mini")
    spec = dit_spec(CARDS["mini-i2v"].dit, True)
    for expert in ("high", "low"):
        path = nowhere / "run" / f"mini_i2v_{expert}_int8.safetensors"
        path.parent.mkdir(exist_ok=True)
        sparse_safetensors(path, spec)
    files = find(path)
    assert files.card.name == "mini-i2v" and files.dit["low"] == path
    assert files.dit["high"] == path.with_name("mini_i2v_high_int8.safetensors")


def test_embedded_model_that_is_not_shipped(nowhere: Path) -> None:
    fails("weights-missing", lambda: find("mini"), "mini_t2v_teacher.safetensors", "mini train")
    embed(nowhere, "mini", "t2v_teacher.safetensors")
    fails("weights-missing", lambda: find("mini"), "mini_vae.safetensors")
    assert find("mini", "dit").dit[""].is_file()
    assert not find("mini", "dit").vae.exists()


@pytest.mark.parametrize("where", ["models", "checkpoints", f"models/{SMALL}"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_released_model_in_a_searched_folder(nowhere: Path, where: str, suffix: str) -> None:
    path = touch(nowhere / where / f"{SMALL}{suffix}")
    base(nowhere / "models")
    files = find(SMALL)
    assert files.card.name == SMALL and files.dit[""].resolve() == path
    assert files.vae == nowhere / "models" / "Wan2.1_VAE.pth"
    assert files.tokenizer == nowhere / "models/google/umt5-xxl/tokenizer.json"


def test_layouts_of_a_released_model(nowhere: Path) -> None:
    base(nowhere / "models")
    quant = touch(nowhere / "models" / f"{SMALL}-quant.pth")
    assert find(SMALL).dit[""] == quant
    assert find(f"{SMALL}-quant").dit[""] == quant
    fails("weights-missing", lambda: find(SMALL, quantized=False), f"{SMALL}.pth")
    plain = touch(nowhere / "models" / f"{SMALL}.pth")
    assert find(SMALL).dit[""] == plain
    assert find(SMALL, quantized=True).dit[""] == quant
    assert find(f"TurboDiffusion/{SMALL}").dit[""] == plain


def test_both_experts_in_one_layout(nowhere: Path) -> None:
    base(nowhere / "models")
    touch(nowhere / "models" / "TurboWan2.2-I2V-A14B-high-720P.pth")
    fails("weights-missing", lambda: find(I2V), "TurboWan2.2-I2V-A14B-low-720P.pth")
    for expert in ("high", "low"):
        touch(nowhere / "models" / f"TurboWan2.2-I2V-A14B-{expert}-720P-quant.pth")
    names = {e: p.name for e, p in find(I2V).dit.items()}
    assert names == {e: f"TurboWan2.2-I2V-A14B-{e}-720P-quant.pth" for e in ("high", "low")}


def test_missing_released_model_says_where_and_how(nowhere: Path) -> None:
    error = fails("weights-missing", lambda: find(SMALL), f"{SMALL}.pth", f"{SMALL}-quant.pth")
    for place in ("models", "checkpoints", "hub"):
        assert place in error.message
    assert f"turbodiffusion download {SMALL}" in error.fix
    touch(nowhere / "models" / f"{SMALL}.pth")
    error = fails("weights-missing", lambda: find(SMALL), "Wan2.1_VAE.pth")
    assert f"turbodiffusion download {SMALL}" in error.fix
    assert find(SMALL, "dit").dit[""].is_file()


def cached(folder: Path, repository: str, path: str) -> Path:
    root = folder / "hub" / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text("c0ffee")
    return touch(root / "snapshots" / "c0ffee" / path)


def test_hub_cache_without_the_hub_library(nowhere: Path) -> None:
    remote = dit_files(CARDS[SMALL])[""]
    path = cached(nowhere, remote.repository, remote.path)
    vae = BASE_FILES["vae"]
    for file in BASE_FILES.values():
        cached(nowhere, file.repository, file.path)
    files = find(SMALL)
    assert files.dit == {"": path}
    assert files.vae == hub.cached_file(vae.repository, vae.path)


def test_old_snapshot_is_used_where_main_is_unknown(nowhere: Path) -> None:
    path = cached(nowhere, "a/b", "x.pth")
    shutil.rmtree(path.parents[2] / "refs")
    assert hub.cached_file("a/b", "x.pth") == path
    assert hub.cached_file("a/b", "y.pth") is None and hub.cached_file("a/c", "x") is None


def test_local_file_with_companions_around_it(nowhere: Path) -> None:
    path = dit(nowhere / "project" / "runs" / "one" / "anything.safetensors")
    fails("weights-missing", lambda: find(path), "Wan2.1_VAE.pth", "runs")
    base(nowhere / "project" / "checkpoints")
    files = find(path)
    assert files.card.name == SMALL and files.dit == {"": path}
    assert files.vae == nowhere / "project" / "checkpoints" / "Wan2.1_VAE.pth"
    beside = touch(path.parent / "Wan2.1_VAE.safetensors")
    assert find(path).vae == beside
    given = touch(nowhere / "mine.pth")
    assert find(path, vae=given).vae == given
    fails("weights-missing", lambda: find(path, text_encoder="no.pth"), "text encoder at no.pth")


def test_local_file_of_an_embedded_card(nowhere: Path, files: dict[str, Path]) -> None:
    embed(nowhere, "micro")
    run = nowhere / "run"
    run.mkdir()
    path = Path(shutil.copy(files["plain"], run / "student.pth"))
    found = find(path)
    assert found.card.name == "micro-teacher" and found.dit == {"": path}
    assert found.vae == nowhere / "package" / "micro_vae.safetensors"
    own = touch(run / "micro_vae.safetensors")
    assert find(str(path)).vae == own


def test_the_other_expert_is_found_beside(nowhere: Path) -> None:
    base(nowhere / "checkpoints")
    high = dit(nowhere / "TurboWan2.2-I2V-A14B-high-720P.safetensors", i2v=True)
    fails("weights-expert-missing", lambda: find(high), "needs two experts")
    low = dit(nowhere / "TurboWan2.2-I2V-A14B-low-720P.safetensors", i2v=True)
    assert find(high).dit == find(low).dit == {"high": high, "low": low}
    for name in ("HIGH_noise/model.safetensors", "LOW_noise/model.safetensors"):
        dit(nowhere / name, i2v=True)
    assert find(nowhere / name).dit["high"] == nowhere / "HIGH_noise" / "model.safetensors"
    other = dit(nowhere / "b.safetensors", i2v=True)
    fails("weights-expert-missing", lambda: find(other))
    assert find(other, low=low).dit == {"high": other, "low": low}
    with pytest.warns(UserWarning, match="swapped"):
        find(low, low=high)
    small = dit(nowhere / "small.safetensors")
    fails("weights-card", lambda: find(other, low=small), "dim 1536 instead of 5120")


def test_wan_folder_with_expert_folders(nowhere: Path) -> None:
    folder = nowhere / "Wan2.2-I2V-A14B"
    for name in ("high_noise_model", "low_noise_model"):
        dit(folder / name / "diffusion_pytorch_model.safetensors", i2v=True)
    base(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = find(folder)
    assert {e: p.name for e, p in files.dit.items()} == {
        "high": "high_noise_model", "low": "low_noise_model",
    }  # fmt: skip
    assert files.tokenizer == folder / "google/umt5-xxl/tokenizer.json"


def test_wan_folder_with_everything_in_it(nowhere: Path) -> None:
    folder = nowhere / "Wan2.1-T2V-1.3B"
    path = dit(folder / "diffusion_pytorch_model.safetensors")
    sparse_safetensors(folder / "Wan2.1_VAE.safetensors", vae_spec(WAN_VAE))
    name = "models_t5_umt5-xxl-enc-bf16.safetensors"
    sparse_safetensors(folder / name, text_spec(UMT5_XXL))
    touch(folder / "tokenizer.json")
    files = find(folder)
    assert files.dit == {"": path} and files.text_encoder == folder / name
    dit(folder / "second.safetensors", quantized=True)
    fails("weights-folder", lambda: find(folder), "second.safetensors")
    assert find(path).dit == {"": path}


def test_folder_without_a_network(nowhere: Path) -> None:
    fails("weights-folder", lambda: find(nowhere), "no diffusion transformer")


def diffusers_folder(folder: Path, i2v: bool) -> Path:
    parts = {"transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "V"],
             "text_encoder": ["transformers", "T"], "tokenizer": ["transformers", "K"]}  # fmt: skip
    parts["transformer_2"] = ["diffusers", "W"] if i2v else [None, None]
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "P", **parts}))
    for name in ("transformer", "transformer_2") if i2v else ("transformer",):
        dit(folder / name / "diffusion_pytorch_model.safetensors", i2v=i2v)
    for name in ("vae", "text_encoder"):
        touch(folder / name / "model.safetensors")
    touch(folder / "tokenizer" / "tokenizer.json")
    return folder


@pytest.mark.parametrize("i2v", [False, True], ids=["t2v", "i2v"])
def test_diffusers_folder(nowhere: Path, i2v: bool) -> None:
    folder = diffusers_folder(nowhere / "Wan-Diffusers", i2v)
    files = find(folder)
    assert files.card.name == (I2V if i2v else SMALL)
    experts = {"high": "transformer", "low": "transformer_2"} if i2v else {"": "transformer"}
    assert files.dit == {e: folder / name for e, name in experts.items()}
    assert files.vae == folder / "vae" and files.text_encoder == folder / "text_encoder"
    assert files.tokenizer == folder / "tokenizer" / "tokenizer.json"


def test_hub_id_from_the_cache(nowhere: Path) -> None:
    error = fails("weights-missing", lambda: find("some-one/Wan-Diffusers"), "hub cache")
    assert "turbodiffusion download some-one/Wan-Diffusers" in error.fix
    root = nowhere / "hub" / "models--some-one--Wan-Diffusers" / "snapshots" / "1"
    diffusers_folder(root, False)
    assert find("some-one/Wan-Diffusers").dit == {"": root / "transformer"}


def test_download_only_on_request_and_never_offline(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails("weights-offline", lambda: find(SMALL, download=True), "HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    error = fails("hub-library-missing", lambda: find(SMALL, download=True), "pip install")
    assert isinstance(error, SetupError)
    asked: list[tuple[str, str]] = []

    def fetch_file(repository: str, path: str) -> Path:
        asked.append((repository, path))
        return touch(nowhere / "got" / path)

    def fetch_folder(repository: str) -> Path:
        asked.append((repository, ""))
        return diffusers_folder(nowhere / "got" / "x", False)

    monkeypatch.setattr(fetching, "fetch_file", fetch_file)
    monkeypatch.setattr(fetching, "fetch_folder", fetch_folder)
    with pytest.raises(WeightsError):
        find(SMALL)
    assert not asked
    files = find(SMALL, download=True)
    assert asked[0] == (f"TurboDiffusion/{SMALL}", f"{SMALL}.pth")
    assert files.vae == nowhere / "got" / "Wan2.1_VAE.pth"
    assert find("some-one/x", download=True).dit == {"": nowhere / "got" / "x" / "transformer"}
    assert asked[-1] == ("some-one/x", "")


@pytest.mark.parametrize("name", ["checkpoints/none.pth", "./a/b", "none.safetensors", "a/b/c"])
def test_path_that_does_not_exist(name: str) -> None:
    fails("weights-missing", lambda: find(name), Path(name).name)


def test_unknown_name() -> None:
    error = fails("card-unknown", lambda: find("TurboWan-9B"), SMALL)
    assert isinstance(error, UsageError)


def test_other_files_as_model(nowhere: Path, files: dict[str, Path]) -> None:
    fails("weights-kind", lambda: find(files["vae"]), "a VAE where")
    (nowhere / "page.pth").write_text("<html>")
    fails("weights-html", lambda: find("page.pth"))


def test_network_that_fits_no_card(nowhere: Path) -> None:
    from dataclasses import replace

    path = nowhere / "big.safetensors"
    sparse_safetensors(path, dit_spec(replace(DIT_1_3B, num_layers=29)))
    fails("weights-card", lambda: find(path), "29 blocks", SMALL)


def test_role_must_be_known() -> None:
    with pytest.raises(ValueError, match="role"):
        find("micro", "unet")


def test_search_order_of_several_folders(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    one, two = nowhere / "one", nowhere / "two"
    monkeypatch.setenv("TURBODIFFUSION_MODELS", f"{one}{os.pathsep}{two}")
    base(two)
    second = touch(two / f"{SMALL}.pth")
    assert find(SMALL).dit[""] == second
    first = touch(one / f"{SMALL}.pth")
    assert find(SMALL).dit[""] == first
