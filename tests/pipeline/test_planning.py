"""``generate`` asks the planner first: it refuses, adapts, walks down the ladder, and learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.pipeline import tiny
from turbodiffusion.cli.main import main
from turbodiffusion.errors import CapacityError, UsageError
from turbodiffusion.memory.gpus import GIB, GPUS
from turbodiffusion.memory.plan import Settings
from turbodiffusion.models.cards import CARDS
from turbodiffusion.pipeline import placement, planning, rates
from turbodiffusion.pipeline.load import load
from turbodiffusion.pipeline.planning import described_machine, plan_card, plan_files
from turbodiffusion.pipeline.rates import Rate
from turbodiffusion.pipeline.request import Request, resolve
from turbodiffusion.weights.find import find

pytestmark = pytest.mark.filterwarnings("ignore:.*accuracy of 8-bit attention")
T2V = ["--model", tiny.T2V.name, "--steps", "1", "--output", "o.png", "--frames", "1"]


def small_machine(monkeypatch, ram: int) -> None:
    monkeypatch.setattr(planning, "free_ram", lambda: ram)


def test_refuses_before_anything_is_loaded(models, monkeypatch, capsys):
    small_machine(monkeypatch, 10**8)
    monkeypatch.setattr("turbodiffusion.pipeline.batch.open_pipeline", None)
    assert main(["generate", "a red circle", *T2V]) == 4
    err = capsys.readouterr().err
    assert "plan-too-large" in err and "0.1 GiB are free" in err


def test_tries_all_the_same_when_told_to(models, monkeypatch, capsys):
    small_machine(monkeypatch, 10**8)
    assert main(["generate", "a red circle", *T2V, "--no-plan"]) == 0


def test_takes_the_8_bit_file_where_the_other_is_too_large(models, monkeypatch, capsys):
    name = tiny.T2V.name
    files = find(name)
    request = resolve(Request("x"), files.card)
    plain = plan_files(files, [request], {}, others=False).plan.host_peak
    small_machine(monkeypatch, plain - 1)
    monkeypatch.setattr("turbodiffusion.memory.plan.HOST_BASE", 0)
    plain = plan_files(files, [request], {}, others=False).plan.host_peak
    eight = plan_files(find(name, quantized=True), [request], {}).plan.host_peak
    assert eight < plain
    small_machine(monkeypatch, (eight + plain) // 2)
    assert main(["generate", "a red circle", "--model", name, "--output", "o.png",
                 "--frames", "1", "--json"]) == 0  # fmt: skip
    shown = capsys.readouterr()
    assert json.loads(shown.out)["settings"]["quantised"] is True
    path = str(models["bf16"])  # a file that was named is not exchanged
    assert main(["generate", "a red circle", "--model", path, "--output", "o.png"]) == 4


def test_the_largest_request_counts(models):
    files = find(tiny.T2V.name)
    requests = [resolve(Request("x", frames=n), files.card) for n in (1, 9, 5)]
    assert plan_files(files, requests, {}).shape.frames == 9


def test_samples_are_decoded_together(models):
    files = find(tiny.T2V.name)
    request = resolve(Request("x"), files.card)
    one, three = (plan_files(files, [request], {}, samples=n).plan for n in (1, 3))
    assert three.phases[-1].host > one.phases[-1].host
    assert three.phases[0].host == one.phases[0].host


def test_only_the_planned_run_teaches(models, monkeypatch, capsys):
    """Of runs of different sizes it is the largest one that was planned."""
    learned = []
    monkeypatch.setattr(
        "turbodiffusion.pipeline.batch.learn", lambda planned, *_: learned.append(planned)
    )
    Path("p.txt").write_text(
        '{"prompt": "a", "frames": 1}\n{"prompt": "b", "frames": 5}\n{"prompt": "c", "frames": 1}\n'
    )
    words = ["--model", tiny.T2V.name, "--steps", "1", "--output", "o/"]
    assert main(["generate", "--prompts", "p.txt", *words]) == 0
    assert [planned.shape.frames for planned in learned] == [5]


def test_runs_teach_the_planner(models, capsys):
    assert main(["plan", tiny.T2V.name, "--device", "cpu", "--quantised", "no"]) == 0
    out = capsys.readouterr().out
    assert "estimate" in out and "measured" not in out  # of another model, on another machine
    assert main(["generate", "a red circle", "--model", tiny.T2V.name, "-o", "o.mp4"]) == 0
    capsys.readouterr()
    assert main(["plan", tiny.T2V.name, "--quantised", "no", "--device", "cpu", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = {p["name"]: p for p in shown["phases"]}
    assert found["denoise"]["basis"] == "measured" and 0 < found["denoise"]["seconds"] < 100


def test_a_run_with_an_image_teaches_how_long_the_image_takes(models, capsys):
    """Before that the encoder is taken to be as fast as the decoder; neither is unknown."""

    def planned():
        assert main(["plan", tiny.I2V.name, "--device", "cpu", "--quantised", "no", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return {p["name"]: p["basis"] for p in found["phases"]}, found["seconds"]

    basis, seconds = planned()
    assert basis["condition"] == "estimate" and seconds > 0
    Image.new("RGB", (64, 48), "red").save("x.png")
    words = ["--model", tiny.I2V.name, "--image", "x.png", "-o", "o.mp4", "--json"]
    assert main(["generate", "it moves", *words]) == 0
    spent = json.loads(capsys.readouterr().out)["seconds"]
    assert list(spent)[:3] == ["text", "condition", "denoise"]
    basis, _ = planned()
    assert basis["condition"] == basis["text"] == "measured"


def test_rates(models):
    old = Rate("cpu", "a", "denoise", False, "sla", 2.0)
    rates.remember([old, replace(old, share=1.0), replace(old, phase="decode", card="b")])
    known = rates.recorded()
    assert rates.lookup(known, "cpu", "a", "denoise", False, "sla") == (2.0, "measured")
    assert rates.lookup(known, "cpu", "a", "denoise", True, "sla") == (2.0, "estimate")
    assert rates.lookup(known, "cpu", "b", "decode", True, "dense") == (2.0, "measured")
    assert rates.lookup(known, "gpu", "a", "denoise", False, "sla") is None
    gpus = [replace(old, device="RTX 5090", card="b", share=0.5), replace(old, device="H200")]
    assert rates.lookup(gpus, "L4", "a", "denoise", False, "sla") == (2.0, "estimate")
    assert rates.lookup(gpus, "RTX 5090", "a", "denoise", False, "sla") == (0.5, "estimate")
    assert rates.lookup(gpus, "L4", "c", "denoise", True, "sla") == (0.5, "estimate")
    elsewhere = [replace(r, here=False) for r in known]
    assert rates.lookup(elsewhere, "cpu", "a", "denoise", False, "sla") == (2.0, "estimate")
    rates._path().write_text("[{}")
    assert all(r.device for r in rates.recorded())


class Memory:
    """An allocator that fails until the pipeline needs less."""

    def __init__(self, function, enough):
        self.function, self.enough, self.failures = function, enough, 0

    def __call__(self, *args, **more):
        if not self.enough():
            self.failures += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return self.function(*args, **more)


def test_ladder_of_the_autoencoder(models, monkeypatch, capsys):
    from turbodiffusion.pipeline.stages import Stages

    pipes = []
    original = Stages.decode

    def decode(self, latent):
        pipes.append(self)
        if self.tile == 0 or self.tile > 24:
            raise MemoryError
        yield from original(self, latent)

    monkeypatch.setattr(Stages, "decode", decode)
    assert main(["generate", "a red circle", *T2V]) == 0
    err = capsys.readouterr().err
    assert "out of memory in the phase 'decode': now tiles of 256 pixels" in err
    assert pipes[0].tile == 24 and Path("o.png").exists() and len(pipes) == 5


def test_ladder_ends(models, monkeypatch, capsys):
    from turbodiffusion.pipeline.stages import Stages

    monkeypatch.setattr(Stages, "decode", Memory(None, lambda: False))
    assert main(["generate", "a red circle", *T2V]) == 4
    assert "memory-exhausted" in capsys.readouterr().err and not Path("o.png").exists()


def test_other_errors_do_not_walk_down(models):
    pipe = load(tiny.T2V.name)
    with pytest.raises(ValueError, match="plain"):
        placement.with_ladder(pipe, "decode", lambda: (_ for _ in ()).throw(ValueError("plain")),
                              print)  # fmt: skip
    assert pipe.tile == 0


def test_ladder_of_the_network_on_a_gpu(models, monkeypatch):
    """Bookkeeping only: the device claims to be a GPU, and no weight is moved."""
    pipe = load(tiny.T2V.name)
    pipe.device = torch.device("cuda:0")
    monkeypatch.setattr("turbodiffusion.memory.offload.BlockStream.open", lambda self: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    pipe.residency.device = pipe.device
    steps = [placement.step_down(pipe, "denoise") for _ in range(4)]
    assert "only the network in use" in steps[0] and pipe.residency.swap
    assert "now 1 blocks stay" in steps[1] and "now 0 blocks" in steps[2] and steps[3] is None
    assert "tiles of" in placement.step_down(pipe, "decode")
    assert "now 0 blocks" in placement.step_down(pipe, "text")


def test_streamed_run_gives_the_same_video(models):
    pipe = load(tiny.T2V.name)
    request = {"num_frames": 5, "num_inference_steps": 1, "output_type": "latent", "seed": 3}
    expected = pipe("a red circle", **request).frames
    pipe.residency.swap = True
    for module, blocks in ((pipe.text_encoder, pipe.text_encoder.layers),
                           (pipe.any_expert, pipe.any_expert.blocks)):  # fmt: skip
        pipe.residency.stream(module, blocks, 1)
    assert torch.equal(pipe("a red circle", **request).frames, expected)


def test_apply_sets_what_the_plan_says(models):
    pipe = load(tiny.I2V.name)
    placement.apply(pipe, Settings(False, swap=True, tile=16))
    assert pipe.tile == 0 and pipe.residency.swap is None  # on the CPU there is nothing to gain


def test_described_machines():
    one = described_machine("rtx 5090", None, None)
    assert (one.gpu, one.ram) == (int(0.95 * 32 * GIB), int(0.85 * 64 * GIB))
    assert one.rates is GPUS["RTX 5090"]
    shared = described_machine("GB10", None, None)
    assert shared.unified and shared.gpu == shared.ram == int(0.85 * 128 * GIB)
    assert described_machine("GB10", None, 64).gpu == int(0.85 * 64 * GIB)
    assert described_machine("RTX 2080", 8, 16).rates is None
    with pytest.raises(UsageError, match="RTX 4090"):
        described_machine("RTX 2080", None, None)
    with pytest.raises(UsageError, match="--ram"):
        described_machine("4090", None, -1)


def test_require_fit_names_what_would_help():
    card = CARDS["TurboWan2.1-T2V-14B-720P"]
    machine = described_machine("RTX 4060", 4, None)
    planned = plan_card(card, resolve(Request("x"), card), machine, "no")
    with pytest.raises(CapacityError) as caught:
        planning.require_fit(planned)
    assert caught.value.exit_code == 4 and "--quantised yes" in caught.value.fix
