"""The planner's arithmetic against published and counted figures, and its ladder."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from turbodiffusion.memory import host
from turbodiffusion.memory.gpus import GIB, GPUS, gpu
from turbodiffusion.memory.plan import (
    Layout,
    Machine,
    Plan,
    floor_seconds,
    plan,
)
from turbodiffusion.memory.work import Shape, Sizes, decode_work, encode_work, phases
from turbodiffusion.models.cards import CARDS, Attention
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.pipeline.planning import card_layouts

SMALL, LARGE = CARDS["TurboWan2.1-T2V-1.3B-480P"], CARDS["TurboWan2.1-T2V-14B-720P"]
MEDIUM, IMAGE = CARDS["TurboWan2.1-T2V-14B-480P"], CARDS["TurboWan2.2-I2V-A14B-720P"]
NO_SIZES = Sizes(0, 0, 0, 0, 0)


def shape(card=SMALL, steps: int = 1, **more) -> Shape:
    return Shape(card, card.width, card.height, card.frames, steps, **more)


def work(card, name: str, quantised: bool = True, steps: int = 1):
    attention = card.attention if quantised else Attention("dense")
    found = phases(shape(card, steps), NO_SIZES, attention, quantised)
    return next(w for w in found if w.name == name)


@pytest.mark.parametrize(
    ("card", "dense", "eight", "sixteen"),
    [(SMALL, 283, 101.8, 4.3), (MEDIUM, 1678, 873, 19.0), (LARGE, 6523, 2277, 44.0)],
    ids=["1.3B", "14B-480p", "14B-720p"],
)
def test_operations_of_the_network(card, dense, eight, sixteen) -> None:
    """TFLOP of one step, as published for the original and the accelerated form."""
    assert work(card, "denoise", False).sixteen / 1e12 == pytest.approx(dense, rel=0.002)
    assert work(card, "denoise").eight / 1e12 == pytest.approx(eight, rel=0.005)
    # The published figure leaves out the map of blocks and counts the text projections.
    assert work(card, "denoise").sixteen / 1e12 == pytest.approx(sixteen, rel=0.15)
    assert work(card, "denoise", steps=4).eight == 4 * work(card, "denoise").eight


@pytest.mark.parametrize(
    ("card", "seconds"), [(SMALL, 0.078), (MEDIUM, 0.611), (LARGE, 1.58)],
    ids=["1.3B", "14B-480p", "14B-720p"],
)  # fmt: skip
def test_floor(card, seconds) -> None:
    """Seconds of one step at 790 T, 1580 T and 4.3 TB/s: the sum over kernels that was published
    for these rates."""
    rates = replace(GPUS["H200"], bf16=790e12, int8=1580e12, bandwidth=4.3e12)
    machine = Machine("H200", 141 * GIB, 10**12, rates)
    assert floor_seconds(work(card, "denoise"), machine) == pytest.approx(seconds, rel=0.02)


@pytest.mark.parametrize(
    ("card", "decode", "encode"),
    [(SMALL, 275.4, 163.7), (LARGE, 639.2, 381.7)],
    ids=["480p", "720p"],
)
def test_operations_of_the_autoencoder(card, decode, encode) -> None:
    """TFLOP for 81 frames, counted by an operator counter."""
    assert decode_work(shape(card), NO_SIZES).sixteen / 1e12 == pytest.approx(decode, rel=5e-4)
    assert encode_work(shape(card), NO_SIZES).sixteen / 1e12 == pytest.approx(encode, rel=5e-4)


class Live(TorchDispatchMode):
    """The most bytes that were alive at once among tensors made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, lambda: self._drop(key))

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key)


@pytest.mark.parametrize("card", [SMALL, LARGE, CARDS["mini-teacher"]], ids=lambda c: c.name)
def test_memory_of_the_autoencoder_is_what_is_alive(card) -> None:
    """Counted at full size on the meta device; 3.2 and 7.4 GiB for decoding 480p and 720p."""
    one = replace(shape(card), frames=13)
    with torch.device("meta"):
        vae = WanVAE(card.vae).bfloat16()
        latent = torch.empty(1, *card.latent_shape(13, one.height, one.width))
        video = torch.empty(1, 3, 13, one.height, one.width)
    decode, encode = Live(), Live()
    with torch.no_grad():
        with decode:
            for _ in vae.decode_frames(latent.bfloat16()):
                pass
        with encode:
            vae.encode(video.bfloat16())
    ratios = [
        work(one, NO_SIZES).activations / counted.peak
        for work, counted in ((decode_work, decode), (encode_work, encode))
    ]
    low, high = (0.96, 1.12) if card.embedded else (0.99, 1.02)
    assert low < min(ratios) and max(ratios) < high


def test_memory_of_the_portable_network_is_what_is_alive() -> None:
    """Counted at full width with two blocks; the planner may be at most an eighth above."""
    one = shape(SMALL, form="portable")
    with torch.device("meta"):
        network = WanDiT(replace(SMALL.dit, num_layers=2), replace(SMALL.attention, kind="sla"))
        network.to(torch.bfloat16)
        latent = torch.empty(1, *SMALL.latent_shape(81, 480, 832))
        time, text = torch.ones(1, 1), torch.empty(1, 512, 4096, dtype=torch.bfloat16)
    counted = Live()
    with torch.no_grad(), counted:
        network(latent, time, text)
    plain = replace(SMALL.attention, kind="sla")
    denoise = phases(one, NO_SIZES, plain, False)[1]
    assert 0.99 < denoise.activations / counted.peak < 1.125


def test_names_of_gpus() -> None:
    names = {
        "NVIDIA GeForce RTX 5090": "RTX 5090",
        "rtx5090": "RTX 5090",
        "4090": "RTX 4090",
        "NVIDIA GeForce RTX 4070 Ti SUPER": "RTX 4070 Ti SUPER",
        "NVIDIA A100-SXM4-40GB": "A100 40GB",
        "NVIDIA A100 80GB PCIe": "A100 80GB",
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA H200": "H200",
        "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
        "NVIDIA GeForce RTX 4090 Laptop GPU": None,
        "Tesla V100-SXM2-32GB": None,
    }
    assert {n: (g.name if (g := gpu(n)) else None) for n in names} == names
    assert all(gpu(name) is one for name, one in GPUS.items())


def test_a_size_in_the_name_counts() -> None:
    names = {"RTX 4060 Ti 8GB": ("RTX 4060 Ti", 8), "RTX 4060 Ti": ("RTX 4060 Ti", 16),
             "NVIDIA L4": ("L4", 22.5), "L4 24GB": ("L4", 22.5)}  # fmt: skip
    found = {name: (one.name, one.memory / GIB) for name in names if (one := gpu(name))}
    assert found == names
    assert gpu("NVIDIA H100 NVL") is GPUS["H100 NVL"]  # slower than the SXM module


def test_rates_have_the_ratio_of_their_chip() -> None:
    """Tensor cores do int8 at twice bf16; GeForce halves bf16 with float32 accumulation."""
    for name, one in GPUS.items():
        chip = name.removeprefix("RTX ")
        geforce = name.startswith("RTX ") and chip[:4].isdigit() and chip[2:4] != "00"
        assert one.int8 / one.bf16 == pytest.approx(4 if geforce else 2, rel=0.02), name


def test_shared_memory_holds_both_sides() -> None:
    layouts = card_layouts(LARGE, "yes", 2)
    split = Machine("x", 20 * GIB, 20 * GIB, GPUS["GB10"])
    one = replace(split, unified=True)
    fits, shared = (plan(shape(LARGE, 4), LARGE.attention, layouts, m) for m in (split, one))
    assert fits.fits and not shared.fits and "of shared memory" in shared.problem


def made(card, name: str, ram: float = 64, memory: float = 0, quantised: str = "auto") -> Plan:
    one = GPUS[name]
    machine = Machine(name, int(memory * GIB) or one.memory, int(ram * GIB), one)
    layouts = card_layouts(card, quantised, 2)
    return plan(shape(card, 4), card.attention, layouts, machine)


@pytest.mark.parametrize(
    ("card", "name", "steps"),
    [
        (SMALL, "RTX 5090", []),
        (LARGE, "H100", []),
        (IMAGE, "B200", []),
        (SMALL, "RTX 4080", ["swap"]),
        (LARGE, "RTX 5090", ["8-bit", "swap"]),
        (MEDIUM, "RTX 3060", ["8-bit", "swap", "stream"]),
        (SMALL, "RTX 4060", ["swap", "stream"]),
    ],
    ids=lambda v: getattr(v, "name", v if isinstance(v, str) else ""),
)
def test_the_ladder(card, name, steps) -> None:
    found = made(card, name)
    assert found.fits and [s.split(":")[0].split()[0] for s in found.steps] == steps
    assert found.gpu_peak <= GPUS[name].memory and found.host_peak <= 64 * GIB
    assert found.seconds and all(p.basis == "estimate" for p in found.phases)


def test_tiles_where_the_picture_is_too_large() -> None:
    found = made(LARGE, "RTX 4060", memory=7.0, quantised="yes")
    assert found.settings.tile and "tile" in " ".join(found.steps)
    decode = next(p for p in found.phases if p.name == "decode")
    assert decode.gpu <= 7 * GIB < 8.1 * GIB < made(LARGE, "H100").phases[-1].gpu


def test_streaming_keeps_as_many_blocks_as_fit() -> None:
    stays = [made(MEDIUM, "RTX 3060", memory=m).settings.streamed.get("denoise") for m in
             (8, 10, 12, 14)]  # fmt: skip
    assert stays == sorted(stays) and stays[0] < stays[-1] < MEDIUM.dit.num_layers
    one = made(MEDIUM, "RTX 3060", memory=10)
    block = card_layouts(MEDIUM, "yes", 2)[0].sizes.dit_block
    denoise = next(p for p in one.phases if p.name == "denoise")
    assert 10 * GIB - block < denoise.gpu <= 10 * GIB
    assert denoise.host > (MEDIUM.dit.num_layers - stays[1]) * block


def test_nothing_fits() -> None:
    found = made(LARGE, "RTX 4060", memory=4)
    assert not found.fits and "'denoise' needs" in found.problem and found.settings.quantised
    found = made(MEDIUM, "RTX 3060", ram=2)
    assert not found.fits and "host memory" in found.problem


def test_quantised_only_where_it_may_be_chosen() -> None:
    assert not made(LARGE, "RTX 5090", quantised="no").settings.quantised
    assert made(SMALL, "RTX 5090", quantised="yes").settings.quantised


def test_two_experts_must_both_be_there_to_stay() -> None:
    one, two = made(LARGE, "H100", quantised="yes"), made(IMAGE, "H100", quantised="yes")
    sizes = card_layouts(IMAGE, "yes", 2)[0].sizes
    assert not one.settings.swap and not two.settings.swap
    assert two.phases[0].gpu - one.phases[0].gpu == pytest.approx(sizes.dit, rel=1e-3)
    assert made(IMAGE, "RTX 5090", quantised="yes").settings.swap


def test_time() -> None:
    """Streaming never makes it faster, a measured share replaces the published one, and blocks
    that are copied again at every step cost what the link takes."""
    base = made(MEDIUM, "RTX 3090", quantised="yes")
    short = made(MEDIUM, "RTX 3090", memory=9, quantised="yes")
    assert short.seconds == base.seconds  # the copies hide behind the computing
    layouts = card_layouts(MEDIUM, "yes", 2)
    slow = Machine("x", 9 * GIB, 64 * GIB, replace(GPUS["RTX 3090"], link=5e8))
    denoise = plan(shape(MEDIUM, 4), MEDIUM.attention, layouts, slow).phases[1]
    stay = short.settings.streamed["denoise"]
    again = 3 * (MEDIUM.dit.num_layers - stay) * layouts[0].sizes.dit_block
    assert denoise.seconds == pytest.approx((layouts[0].sizes.dit + again) / 0.4e9, rel=1e-6)
    machine = Machine("RTX 3090", 24 * GIB, 64 * GIB, GPUS["RTX 3090"])
    measured = plan(shape(MEDIUM, 4), MEDIUM.attention, layouts, machine,
                    lambda phase, quantised: (0.7, "measured"))  # fmt: skip
    a, b = ({p.name: p.seconds for p in x.phases}["denoise"] for x in (base, measured))
    copy = layouts[0].sizes.dit / (GPUS["RTX 3090"].link * 0.8)
    assert (a - copy) / (b - copy) == pytest.approx(2.0)
    unknown = plan(shape(MEDIUM, 4), MEDIUM.attention, layouts, replace(machine, rates=None))
    assert unknown.seconds is None and unknown.phases[0].basis == "unknown"


def test_on_a_cpu() -> None:
    layouts = card_layouts(SMALL, "auto", 2)
    machine = Machine("CPU", 0, 64 * GIB, cores=8)
    one = plan(shape(SMALL, 4, form="portable"), SMALL.attention, layouts, machine)
    assert one.fits and one.gpu_peak == 0 and one.seconds is None
    few = plan(shape(SMALL, 4, form="portable"), SMALL.attention, layouts,
               replace(machine, ram=15 * GIB))  # fmt: skip
    assert not few.fits and "of memory are needed" in few.problem
    assert isinstance(layouts[0], Layout) and one.host_peak > layouts[0].sizes.text


def test_sizes_of_the_networks() -> None:
    sizes = card_layouts(MEDIUM, "auto", 2)
    assert [x.sizes.dit for x in sizes] == [28_580_761_728, 14_533_273_728]
    assert sizes[0].sizes.text == pytest.approx(11.36e9, rel=1e-3)
    assert sizes[1].sizes.dit_block == pytest.approx(351_272_960, rel=0.01)


@pytest.mark.parametrize("version", [2, 1])
def test_free_memory_in_a_container(tmp_path: Path, version: int) -> None:
    names = {2: ("memory.max", "memory.current", "memory.stat", "file"),
             1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes",
                 "memory/memory.stat", "cache")}[version]  # fmt: skip
    (tmp_path / "memory").mkdir()
    (tmp_path / names[0]).write_text("8000000\n")
    (tmp_path / names[1]).write_text("5000000\n")
    (tmp_path / names[2]).write_text(f"anon 1\n{names[3]} 4000000\n")
    assert host._container(tmp_path) == 7_000_000
    (tmp_path / names[0]).write_text("max\n")
    assert host._container(tmp_path) > 10**15


def test_free_memory_here() -> None:
    assert 10**8 < host.free_ram() < 10**14
    assert host.peak_ram() > 10**7 and host.cores() >= 1
