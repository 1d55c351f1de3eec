"""Synthesis: interrupted anywhere it gives the same bytes, shared by processes, never mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.parallel.launch import ROOT
from turbodiffusion.cli.main import build_parser, main
from turbodiffusion.cli.train import synthesis as given
from turbodiffusion.errors import CapacityError, UsageError
from turbodiffusion.models.cards import CARDS
from turbodiffusion.pipeline.load import load
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.pipeline.request import Request
from turbodiffusion.train import synthesis as plans
from turbodiffusion.train.sharded import NEGATIVE, Sharded
from turbodiffusion.train.shards import Shards, ShardWriter, index_shard
from turbodiffusion.train.synthesis import (
    Synthesis,
    baseline_request,
    read_prompts,
    require_teacher,
)
from turbodiffusion.train.synthesize import SETTINGS, synthesize
from turbodiffusion.weights.synthetic import write_synthetic

SMALL = Request("", frames=9, width=32, height=32, steps=2, seed=7)
PROMPTS = tuple(f"a {colour} circle moving left" for colour in ("red", "green", "blue"))
TAR = "shard_*.tar"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return load("micro-teacher", device="cpu")


def plan(**changes: object) -> Synthesis:
    """Six samples in shards of three, two made together."""
    request = baseline_request(replace(SMALL, prompt=PROMPTS[0]), CARDS["micro-teacher"])
    whole = Synthesis(PROMPTS, request, repeat=2, samples_per_shard=3, batch=2)
    return replace(whole, **changes)


@pytest.fixture(scope="module")
def reference(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("reference")
    assert synthesize(pipe, plan(), folder, quiet=True)["samples"] == 6
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def samples(folder: Path) -> dict[int, tuple[torch.Tensor, torch.Tensor, str]]:
    paths = sorted(folder.glob(TAR))
    return {int(one.key): one.load() for path in paths for one in index_shard(path).samples}


def test_a_sample_is_the_teachers_video_of_its_prompt_and_seed(
    pipe: Pipeline, tmp_path: Path
) -> None:
    # A batch rounds otherwise, and shards hold bf16.
    synthesize(pipe, plan(batch=1), tmp_path / "one", quiet=True)
    synthesize(pipe, plan(batch=3), tmp_path / "three", quiet=True)
    one, three = samples(tmp_path / "one"), samples(tmp_path / "three")
    assert list(one) == list(three) == list(range(6))
    empty = pipe.encode_prompts([""])
    for n, (latent, embed, prompt) in one.items():
        assert prompt == PROMPTS[n % 3] and latent.dtype == embed.dtype == torch.bfloat16
        context = pipe.encode_prompts([prompt])
        assert torch.equal(embed, context[0].bfloat16())
        expected = pipe.denoise([replace(plan().request, seed=7 + n)], context, empty)[0]
        for found in (latent, three[n][0]):
            torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.01)
    assert (one[0][0] - one[3][0]).abs().max() > 0.1  # another seed of the same prompt


# In the middle of a batch, at its end, at the end of a shard, and of all.
@pytest.mark.parametrize("made", [1, 2, 3, 6])
def test_interrupted_after_any_sample_it_ends_with_the_same_bytes(
    pipe: Pipeline, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    made: int,
) -> None:  # fmt: skip
    add, count = ShardWriter.add, 0

    def interrupted(writer: ShardWriter, *sample: object) -> None:
        nonlocal count
        add(writer, *sample)  # type: ignore[arg-type]
        count += 1
        if count == made:
            with writer.temporary.open("r+b") as file:  # in the middle of the next one
                file.seek(index_shard(writer.temporary).samples[-1].end)
                file.truncate()
                file.write(b"000000")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "add", interrupted)
        synthesize(pipe, plan(), tmp_path, quiet=True)
    assert synthesize(pipe, plan(), tmp_path, quiet=True)["samples"] == 6 - made
    assert content(tmp_path) == reference


def test_two_processes_share_the_shards(
    pipe: Pipeline, reference: dict[str, bytes], tmp_path: Path
) -> None:
    synthesize(pipe, plan(), tmp_path, rank=1, world=2, quiet=True)
    assert [path.name for path in tmp_path.glob(TAR)] == ["shard_000001.tar"]
    synthesize(pipe, plan(), tmp_path, rank=0, world=2, quiet=True)
    assert content(tmp_path) == reference


@pytest.mark.parametrize("damage", ["junk", "zeros", "empty"])
def test_a_damaged_beginning_is_made_again(
    pipe: Pipeline, reference: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    whole = bytearray(reference["shard_000000.tar"])
    place = tmp_path / "shard_000000.tar.tmp"
    place.write_bytes(whole)
    offset, size = index_shard(place).samples[1].places["latent.pt"]
    whole[offset : offset + size] = bytes(size)
    place.write_bytes({"junk": b"no tar" * 99, "zeros": whole, "empty": b""}[damage])
    assert ShardWriter(tmp_path, 0).done == ({0} if damage == "zeros" else set())
    synthesize(pipe, plan(), tmp_path, quiet=True)
    assert content(tmp_path) == reference


def test_a_full_disk_loses_nothing(
    pipe: Pipeline, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, addfile = 0, tarfile.TarFile.addfile

    def full(archive: object, *words: object) -> None:
        nonlocal written
        written += 1
        if written > 7:  # two samples and a part of the third
            raise OSError(28, "No space left on device")
        addfile(archive, *words)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(CapacityError) as caught:
        patch.setattr(tarfile.TarFile, "addfile", full)
        synthesize(pipe, plan(), tmp_path, quiet=True)
    assert caught.value.code == "shards-disk"
    assert ShardWriter(tmp_path, 0).done == {0, 1}
    synthesize(pipe, plan(), tmp_path, quiet=True)
    assert content(tmp_path) == reference


def test_what_does_not_fit_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda folder: free)
    monkeypatch.setattr(sys.modules["turbodiffusion.pipeline.load"], "load", pytest.fail)
    words = ["--world", "200", "--out", str(tmp_path), "--model", "micro-teacher"]
    assert main(["train", "synthesize", *words]) == 4
    assert (
        "200 samples need 0.00635 GB" in (said := capsys.readouterr().err) and "shards-disk" in said
    )


def test_the_shards_train(pipe: Pipeline, reference: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in reference.items():
        (tmp_path / name).write_bytes(data)
    source = Sharded(tmp_path, 0, (8, 3, 8, 8), batch=2, micro_batch=2)
    batch = source.batch(0, 0)
    assert batch.latents_BCTHW.shape == (2, 8, 3, 8, 8)
    empty = pipe.encode_prompts([""]).bfloat16().float()
    assert torch.equal(batch.negative(), empty.expand_as(batch.context_BSD))
    assert set(reference) == {f"shard_00000{n}.tar" for n in range(2)} | {NEGATIVE, SETTINGS}


@pytest.mark.parametrize(
    "changes", [{"samples_per_shard": 2}, {"sigma_max": 80.0}, {"repeat": 1}, {"prompts": ("a",)}]
)
def test_shards_of_other_settings_are_not_mixed(
    pipe: Pipeline, reference: dict[str, bytes], tmp_path: Path, changes: dict[str, object]
) -> None:
    (tmp_path / SETTINGS).write_bytes(reference[SETTINGS])
    with pytest.raises(UsageError) as caught:
        synthesize(pipe, replace(plan(), **changes), tmp_path, quiet=True)
    assert caught.value.code == "synthesis-settings"
    assert [path.name for path in tmp_path.iterdir()] == [SETTINGS]


def test_the_first_noise_level_matters(pipe: Pipeline, tmp_path: Path) -> None:
    for name, sigma in (("high", 5000.0), ("low", 5.0)):
        changed = plan(sigma_max=sigma, prompts=PROMPTS[:1], repeat=1)
        synthesize(pipe, changed, tmp_path / name, quiet=True)
    one, two = (Shards(tmp_path / name).load(0)[0] for name in ("high", "low"))
    assert (one - two).abs().max() > 0.1


def flags(*words: str) -> Synthesis:
    parsed = ["train", "synthesize", "--out", "x", *words]
    args = build_parser("train").parse_args(parsed)
    return given(args, CARDS[args.model])


def test_defaults_are_those_of_the_published_set_or_of_the_embedded_teacher() -> None:
    big = flags("--world", "5", "--model", "TurboWan2.1-T2V-14B-480P")
    r = big.request
    assert (r.steps, r.solver, r.guidance, r.shift) == (100, "euler", 5.0, 3.0)
    assert (r.frames, r.width, r.height, r.baseline) == (81, 832, 480, True)
    assert (big.samples, big.samples_per_shard, big.batch, big.sigma_max) == (5, 256, 1, 5000.0)
    small = flags("--world", "5", "--model", "mini-teacher").request
    own = CARDS["mini-teacher"].baseline
    found = (small.steps, small.solver, small.guidance, small.shift)
    assert found == (own.steps, own.solver, own.guidance, own.shift)
    tall = flags("--world", "5", "--model", "TurboWan2.1-T2V-14B-480P", "--resolution", "480p",
                 "--aspect", "9:16", "--steps", "3", "--negative", "blur").request  # fmt: skip
    assert (tall.width, tall.height, tall.steps, tall.negative) == (480, 832, 3, "blur")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--model", "mini"), "synthesis-student"),
        (("--model", "TurboWan2.2-I2V-A14B-720P"), "synthesis-image"),
        (("--model", "micro-teacher", "--batch", "0"), "synthesis-setting"),
        (("--model", "micro-teacher", "--frames", "8"), "frames-illegal"),
    ],
)
def test_what_cannot_be_made(words: tuple[str, ...], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        flags("--world", "5", *words)
    assert caught.value.code == code


def test_the_negative_prompt_of_published_shards(
    pipe: Pipeline, reference: dict[str, bytes], tmp_path: Path
) -> None:
    words = ["train", "synthesize", "--negative-only", "--model", "micro-teacher", "--device",
             "cpu", "--out", str(tmp_path)]  # fmt: skip
    assert main(words) == 0
    assert content(tmp_path) == {NEGATIVE: reference[NEGATIVE]}
    assert main([*words, "--negative", "a red circle"]) == 0
    stored = torch.load(tmp_path / NEGATIVE, weights_only=True)
    assert torch.equal(stored, pipe.encode_prompts(["a red circle"])[0].bfloat16())


def test_a_student_by_its_file(tmp_path: Path) -> None:
    spec = replace(CARDS["micro-teacher"].dit, num_layers=1)
    require_teacher(write_synthetic(spec, tmp_path / "dense.pth", sla=False))
    with pytest.raises(UsageError) as caught:
        require_teacher(write_synthetic(spec, tmp_path / "sparse.pth"))
    assert caught.value.code == "synthesis-student"


def test_prompts_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa ball\n\n  a cube é \n", "utf-8")
    assert read_prompts(path) == ("a ball", "a cube é")
    for text in (b"\n", b"\xff\xff"):
        path.write_bytes(text)
        with pytest.raises(UsageError):
            read_prompts(path)


LEAN = """
import sys
for name in ("av", "pydantic", "diffusers", "webdataset"):
    sys.modules[name] = None
from turbodiffusion.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_killed_from_outside_and_started_again(tmp_path: Path) -> None:
    """By the command, and without the packages of videos and pipelines of others."""
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    words = ["train", "synthesize", "--prompts", str(path), "--repeat", "12", "--model",
             "micro-teacher", "--resolution", "32x32", "--frames", "9", "--steps", "2",
             "--samples-per-shard", "24", "--batch", "4", "--device", "cpu", "--out"]  # fmt: skip

    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", LEAN, *words, str(folder)], cwd=ROOT, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(killed)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(killed.glob("*.tar.tmp")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(killed.glob("*.tar.tmp")) and not list(killed.glob(TAR))
    said, errors = start(killed).communicate(timeout=120)
    assert "samples/s" in errors and "left" in errors, errors
    report = json.loads(said)
    assert 0 < report["samples"] <= 36 and report["model"] == "micro-teacher"
    made = start(whole)  # with as many threads, on which the last bits depend
    made.communicate(timeout=120)
    assert made.returncode == 0
    assert content(killed) == content(whole) and len(samples(whole)) == 36
