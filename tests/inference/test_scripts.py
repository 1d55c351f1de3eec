"""The released command lines, as files and as modules, on tiny checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from turbodiffusion.inference import i2v, t2v
from turbodiffusion.media import RESOLUTIONS, read_video

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "turbodiffusion" / "inference"
COMMON = {
    "num_samples": 1, "num_steps": 4, "vae_path": "checkpoints/Wan2.1_VAE.pth",
    "text_encoder_path": "checkpoints/models_t5_umt5-xxl-enc-bf16.pth", "num_frames": 81,
    "prompt": None, "aspect_ratio": "16:9", "seed": 0, "save_path": "output/generated_video.mp4",
    "attention_type": "sagesla", "sla_topk": 0.1, "quant_linear": False, "default_norm": False,
    "serve": False,
}  # fmt: skip
T2V_OWN = {"model": "Wan2.1-1.3B", "sigma_max": 80, "resolution": "480p"}
I2V_OWN = {
    "model": "Wan2.2-A14B", "sigma_max": 200, "resolution": "720p", "boundary": 0.9, "ode": False,
    "adaptive_resolution": False, "image_path": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(models, monkeypatch):
    """480p and 720p of the tiny cards."""
    for name in ("480p", "720p"):
        for aspect, size in {"16:9": (48, 32), "9:16": (32, 48), "1:1": (40, 40)}.items():
            monkeypatch.setitem(RESOLUTIONS[name], aspect, size)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.fromarray(np.full((40, 80, 3), 90, np.uint8)).save(path)
    return path


def run_t2v(models, *words: object, file: str = "bf16") -> int:
    command = ["--dit_path", models[file], "--prompt", "a red circle", "--num_frames", "9",
               "--save_path", "out.mp4", *words]  # fmt: skip
    return t2v.main([str(w) for w in command])


def run_i2v(models, picture, *words: object) -> int:
    command = [
        "--high_noise_model_path", models["high"], "--low_noise_model_path", models["low"],
        "--prompt", "a red circle", "--num_frames", "9", "--image_path", picture, "--save_path",
        "out.mp4", *words,
    ]  # fmt: skip
    return i2v.main([str(w) for w in command])


def test_every_released_flag_with_its_default():
    args = vars(t2v.build_parser().parse_args(["--dit_path", "x"]))
    assert {k: args.get(k, "absent") for k in COMMON | T2V_OWN} == COMMON | T2V_OWN
    words = ["--high_noise_model_path", "x", "--low_noise_model_path", "y"]
    args = vars(i2v.build_parser().parse_args(words))
    assert {k: args.get(k, "absent") for k in COMMON | I2V_OWN} == COMMON | I2V_OWN


def test_published_command(models, capsys):
    """The command line of the README, on an int8 file; nothing contradicts the file."""
    assert run_t2v(
        models, "--model", "Wan2.1-1.3B", "--resolution", "480p", "--num_steps", 4,
        "--quant_linear", "--attention_type", "sagesla", "--sla_topk", "0.25", file="int8",
    ) == 0  # fmt: skip
    shown = capsys.readouterr()
    video = read_video("out.mp4")
    assert video.frames.shape == (9, 32, 48, 3) and video.settings["sigma_max"] == 80
    assert video.settings["attention"]["topk"] == 0.25
    assert shown.err.count("warning:") == 1 and "accuracy of 8-bit attention" in shown.err
    assert shown.out.strip().endswith("out.mp4")


@pytest.mark.parametrize(
    ("file", "words", "said"),
    [
        ("bf16", ["--quant_linear"], "--quant_linear was given, but Tiny2.1-T2V-1.3B-480P.pth"),
        ("int8", [], "--quant_linear was not given, but Tiny2.1-T2V-1.3B-480P-quant.pth holds"),
        ("bf16", ["--model", "Wan2.1-14B"], "--model Wan2.1-14B: the file is Tiny2.1-T2V-1.3B"),
        ("plain", [], "--attention_type sagesla: original-wan.pth has no projection"),
        ("bf16", ["--default_norm"], "--default_norm is without effect"),
        ("bf16", ["--num_frames", "8"], "8 frames were asked for; 4·n+1 is needed, making 5"),
    ],
    ids=["quant", "no-quant", "model", "plain", "norm", "frames"],
)
def test_the_file_knows(models, capsys, file, words, said):
    assert run_t2v(models, *words, file=file) == 0
    assert f"warning: {said}" in capsys.readouterr().err
    assert Path("out.mp4").exists()


def test_original_attention_ignores_the_projection(models, capsys):
    assert run_t2v(models, "--attention_type", "original") == 0
    assert read_video("out.mp4").settings["attention"]["kind"] == "dense"
    assert "warning" not in capsys.readouterr().err


def test_samples_stand_side_by_side(models):
    assert run_t2v(models, "--num_samples", 3, "--seed", 4, "--aspect_ratio", "9:16") == 0
    video = read_video("out.mp4")
    assert video.frames.shape == (9, 48, 96, 3) and video.settings["samples"] == 3
    assert run_t2v(models, "--seed", 5, "--aspect_ratio", "9:16") == 0
    alone = read_video("out.mp4").frames.astype(int)
    middle = video.frames[:, :, 32:64].astype(int)
    left = video.frames[:, :, :32].astype(int)
    assert np.abs(middle - alone).mean() < 0.5 * np.abs(left - alone).mean()


@pytest.mark.parametrize(
    ("words", "size"),
    [([], (32, 48)), (["--adaptive_resolution"], (24, 56)), (["--ode"], (32, 48)),
     (["--aspect_ratio", "1:1"], (40, 40))],
    ids=["sde", "adaptive", "ode", "square"],
)  # fmt: skip
def test_image_to_video(models, picture, words, size):
    assert run_i2v(models, picture, *words) == 0
    video = read_video("out.mp4")
    assert video.frames.shape == (9, *size, 3)
    settings = video.settings
    assert settings["ode"] is ("--ode" in words)
    assert (settings["sigma_max"], settings["boundary"]) == (200, 0.9)


def test_default_paths_that_are_not_there_are_looked_for(models, monkeypatch, tmp_path, capsys):
    """The tokenizer lies beside the text encoder, whose path is given; the VAE is found."""
    import shutil

    apart = tmp_path / "apart"
    (apart / "google" / "umt5-xxl").mkdir(parents=True)
    text = shutil.copy(models["text"], apart)
    shutil.copy(models["tokenizer"], apart / "google" / "umt5-xxl")
    alone = tmp_path / "alone" / models["bf16"].name
    alone.parent.mkdir()
    shutil.copy(models["bf16"], alone)
    monkeypatch.setenv("TURBODIFFUSION_MODELS", str(tmp_path / "vae"))
    (tmp_path / "vae").mkdir()
    shutil.copy(models["vae"], tmp_path / "vae")
    assert run_t2v({"bf16": alone}, "--text_encoder_path", text) == 0
    assert run_t2v({"bf16": alone}, "--vae_path", "gone.pth") == 1
    assert "There is no vae at gone.pth" in capsys.readouterr().err


def test_refused(models, picture, capsys):
    def said(code, expected):
        err = capsys.readouterr().err
        assert code == 2 and expected in err, err

    said(run_t2v(models, "--serve"), "serve-unavailable")
    said(t2v.main(["--dit_path", str(models["bf16"])]), "--prompt is required")
    said(i2v.main(["--high_noise_model_path", "a", "--low_noise_model_path", "b", "--prompt", "x"]),
         "--image_path is required")  # fmt: skip
    said(run_t2v(models, "--resolution", "999p"), "media-resolution")
    said(run_t2v(models, "--num_samples", "0"), "num-illegal")
    said(run_t2v(models, "--sla_topk", "0"), "attention-topk")
    said(run_t2v(models, file="high"), "Use wan2.2_i2v_infer.py")
    with pytest.raises(SystemExit):
        run_t2v(models, "--num_steps", "5")


def test_single_frame_is_a_picture(models, capsys):
    assert run_t2v(models, "--num_frames", 1) == 0
    assert Path("out.jpg").exists() and "One frame is a picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        [str(SCRIPTS / "wan2.1_t2v_infer.py")],
        [str(SCRIPTS / "wan2.2_i2v_infer.py")],
        ["-m", "turbodiffusion.inference.wan2.1_t2v_infer"],
        ["-m", "turbodiffusion.inference.wan2.2_i2v_infer"],
    ],
    ids=lambda words: words[-1].rpartition("/")[2],
)
def test_run_as_file_and_as_module(words, tmp_path):
    """Also with the package's own folder on PYTHONPATH, as the released instructions say."""
    module = words[0] == "-m"
    path = str(ROOT) if module else str(ROOT / "turbodiffusion")
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=tmp_path, capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert "--sla_topk" in done.stdout
    assert "drawn on the CPU" in " ".join(done.stdout.split())


def test_scripts_do_not_hide_modules(tmp_path):
    """The package's rooms must not answer to `import models` when a script is run as a file."""
    script = (SCRIPTS / "wan2.1_t2v_infer.py").as_posix()
    code = (
        f"import runpy, sys; sys.path.insert(0, {(SCRIPTS).as_posix()!r}); "
        f"runpy.run_path({script!r}, run_name='x'); "
        "import importlib.util as u; print(u.find_spec('models'), u.find_spec('common'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "turbodiffusion")},
    )  # fmt: skip
    assert done.stdout.strip() == "None None"
