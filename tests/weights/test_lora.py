"""LoRAs in every naming against the definition, and what is refused or left over."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from turbodiffusion.cli.main import main
from turbodiffusion.cli.merge import weighted
from turbodiffusion.errors import TurboDiffusionError, UsageError, WeightsError
from turbodiffusion.models.cards import MICRO_DIT
from turbodiffusion.weights import stream
from turbodiffusion.weights.adapted import Adapted
from turbodiffusion.weights.layouts import DIFFUSERS_DIT, translate
from turbodiffusion.weights.lora import LoRA, open_lora
from turbodiffusion.weights.stream import open_network, whole
from turbodiffusion.weights.synthetic import write_synthetic

DIT = replace(MICRO_DIT, dim=64, ffn_dim=96, num_heads=1, num_layers=2)
RANK = 4
MODULES = [
    f"blocks.{n}.{part}" for n in range(2) for part in
    (*(f"{a}_attn.{x}" for a in ("self", "cross") for x in "qkvo"), "ffn.0", "ffn.2")
]  # fmt: skip
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(DIT, tmp_path_factory.mktemp("base") / "base.pth", seed=1, sla=False)


def state(source: stream.Tensors) -> State:
    return {name: whole(source, name) for name in source.spec}


def matrices(base: Path, seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module → up, down: small whole numbers, so that every sum of products is exact."""
    generator = torch.Generator().manual_seed(seed)
    spec = open_network(base).spec
    found = {}
    for module in MODULES:
        out, into = spec[f"{module}.weight"].shape
        shapes = (out, RANK), (RANK, into)
        up, down = (torch.randint(-2, 3, s, generator=generator).float() / 8 for s in shapes)
        found[module] = up, down
    return found


def theirs(module: str) -> str:
    """The module as diffusers calls it."""
    return str(translate(module, DIFFUSERS_DIT, back=True))


# Naming → (key of a module without its ending, endings of up and down, whether alpha is stored)
Naming = tuple[Callable[[str], str], str, str, bool]
NAMINGS: dict[str, Naming] = {
    "comfyui": (lambda m: f"diffusion_model.{m}", ".lora_up.weight", ".lora_down.weight", True),
    "comfyui-nested": (
        lambda m: f"model.diffusion_model.{m}", ".lora_up.weight", ".lora_down.weight", False,
    ),
    "peft": (lambda m: f"diffusion_model.{m}", ".lora_B.weight", ".lora_A.weight", False),
    "peft-adapter": (
        lambda m: f"base_model.model.{m}", ".lora_B.default.weight", ".lora_A.default.weight",
        False,
    ),
    "diffsynth": (lambda m: f"pipe.dit.{m}", ".lora_B.weight", ".lora_A.weight", True),
    "bare": (lambda m: m, ".lora_B.default.weight", ".lora_A.default.weight", False),
    "diffusers": (
        lambda m: f"transformer.{theirs(m)}", ".lora_B.weight", ".lora_A.weight", False,
    ),
    "diffusers-old": (
        lambda m: f"transformer.{theirs(m)}", ".lora_linear_layer.up.weight",
        ".lora_linear_layer.down.weight", False,
    ),
    "other": (lambda m: m, "_lora.up.weight", "_lora.down.weight", False),
    "kohya": (
        lambda m: f"lora_unet_{m.replace('.', '_')}", ".lora_up.weight", ".lora_down.weight", True,
    ),
    "kohya-double": (
        lambda m: f"lora_unet__{m.replace('.', '_')}", ".lora_up.weight", ".lora_down.weight",
        True,
    ),
    "kohya-diffusers": (
        lambda m: f"lora_unet_{theirs(m).replace('.', '_')}", ".lora_up.weight",
        ".lora_down.weight", True,
    ),
}  # fmt: skip


def write_lora(
    path: Path, naming: Naming, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]],
    alpha: float = 2.0 * RANK, **metadata: str,
) -> Path:  # fmt: skip
    named, up_ending, down_ending, has_alpha = naming
    tensors = {}
    for module, (up, down) in pairs.items():
        tensors[named(module) + up_ending] = up.bfloat16()
        tensors[named(module) + down_ending] = down.bfloat16()
        if has_alpha:
            tensors[named(module) + ".alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata)
    return path


def definition(before: State, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], w: float):
    after = dict(before)
    for module, (up, down) in pairs.items():
        value = before[f"{module}.weight"]
        after[f"{module}.weight"] = (value.float() + w * (up @ down)).to(value.dtype)
    return after


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_the_definition(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naming: str
) -> None:
    monkeypatch.setattr(stream, "STRIPE", 5000)
    pairs = matrices(base)
    file = write_lora(tmp_path / "lora.safetensors", NAMINGS[naming], pairs)
    out = tmp_path / "out.safetensors"
    assert main(["merge", str(base), str(out), "--lora", f"{file}:0.5"]) == 0
    before, after = state(open_network(base)), state(open_network(out))
    scale = 2.0 if NAMINGS[naming][3] else 1.0  # without alpha it is the rank
    assert equal(after, definition(before, pairs, 0.5 * scale))
    assert sum(not torch.equal(before[n], after[n]) for n in before) == len(MODULES)


def test_any_range_of_elements(base: Path, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "l.safetensors", NAMINGS["peft"], matrices(base))
    network = open_network(base)
    adapted = Adapted(network, [(open_lora(file, network.spec), 1.0)])
    name = "blocks.1.ffn.2.weight"
    flat = whole(adapted, name).flatten()
    for start, stop in ((0, 1), (95, 97), (100, 300), (len(flat) - 5, len(flat)), (7, 7)):
        assert torch.equal(adapted.elements(name, start, stop), flat[start:stop])


def test_diffusers_own_conversion_means_the_same(base: Path, tmp_path: Path) -> None:
    conversion = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    pairs, network = matrices(base), open_network(base)
    ours = write_lora(tmp_path / "ours.safetensors", NAMINGS["comfyui"], pairs)
    tensors = {key: whole_of(ours, key) for key in open_lora(ours, network.spec).header.tensors}
    converted = conversion._convert_non_diffusers_wan_lora_to_diffusers(tensors)
    save_file({k: v.contiguous() for k, v in converted.items()}, tmp_path / "t.safetensors")
    one, two = (open_lora(path, network.spec) for path in (ours, tmp_path / "t.safetensors"))
    assert one.dialect == "comfyui" and two.dialect == "diffusers-peft"
    assert equal(state(Adapted(network, [(one, 1.0)])), state(Adapted(network, [(two, 1.0)])))


def whole_of(path: Path, key: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor(key)


def test_plain_differences(base: Path, tmp_path: Path) -> None:
    network = open_network(base)
    before = state(network)
    targets = {
        "diffusion_model.blocks.0.ffn.0.diff": "blocks.0.ffn.0.weight",
        "diffusion_model.blocks.0.ffn.0.diff_b": "blocks.0.ffn.0.bias",
        "diffusion_model.blocks.1.diff_m": "blocks.1.modulation",
        "diffusion_model.head.diff_m": "head.modulation",
        "diffusion_model.head.head.diff_b": "head.head.bias",
        "diffusion_model.blocks.0.self_attn.norm_q.diff": "blocks.0.self_attn.norm_q.weight",
        "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
    }
    tensors = {key: torch.randn(before[name].shape) for key, name in targets.items()}
    patch = tensors["diffusion_model.patch_embedding.diff"]
    tensors["diffusion_model.patch_embedding.diff"] = patch.reshape(64, -1, 1, 2, 2)
    save_file(tensors, tmp_path / "d.safetensors")
    lora = open_lora(tmp_path / "d.safetensors", network.spec)
    assert lora.dialect == "diff" and not lora.unmatched and not lora.ranks
    after = state(Adapted(network, [(lora, 0.5)]))
    for key, name in targets.items():
        change = 0.5 * tensors[key].reshape(before[name].shape)
        assert torch.equal(after[name], (before[name].float() + change).to(before[name].dtype))
        assert not torch.equal(after[name], before[name])
    assert all(torch.equal(after[n], before[n]) for n in before if n not in targets.values())


def test_a_convolution_of_patches(base: Path, tmp_path: Path) -> None:
    network = open_network(base)
    up = torch.randint(-2, 3, (64, RANK, 1, 1, 1)) / 8
    down = torch.randint(-2, 3, (RANK, 8, 1, 2, 2)) / 8
    key = "diffusion_model.patch_embedding"
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down},
              tmp_path / "p.safetensors")  # fmt: skip
    lora = open_lora(tmp_path / "p.safetensors", network.spec)
    name = "patch_embedding.weight"
    after, before = whole(Adapted(network, [(lora, 1.0)]), name), whole(network, name)
    change = up.flatten(1) @ down.flatten(1)
    assert torch.equal(after, (before.float() + change).to(before.dtype))


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(RANK)),
        ({"lora_alpha": 8, "alpha_pattern": {"self_attn.q": 16}}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {r"blocks\.1\..*": 16}}, 2.0),
        ({"r": 4}, 1.0),
    ],
)
def test_alpha_from_pefts_settings(
    base: Path, tmp_path: Path, settings: dict[str, object], scale: float
) -> None:
    network, pairs = open_network(base), matrices(base)
    one = write_lora(tmp_path / "adapter_model.safetensors", NAMINGS["peft-adapter"], pairs)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    packed = {f"transformer.{key}": value for key, value in settings.items()}
    packed |= {"transformer_2.lora_alpha": 64}
    folder = tmp_path / "diffusers"
    folder.mkdir()
    two = write_lora(folder / "l.safetensors", NAMINGS["diffusers"], pairs,
                     lora_adapter_metadata=json.dumps(packed))  # fmt: skip
    theirs = settings.get("alpha_pattern") == {"self_attn.q": 16}  # attn1.to_q in diffusers' words
    for path in (one,) if theirs else (one, two):
        changes = open_lora(path, network.spec).changes["blocks.0.self_attn.q.weight"]
        assert [change.scale for change in changes] == [scale]


def test_the_bias_of_a_product_is_scaled_with_it(base: Path, tmp_path: Path) -> None:
    network = open_network(base)
    key, ones = "diffusion_model.blocks.0.ffn.2", torch.ones(64)
    save_file({f"{key}.lora_A.weight": torch.zeros(RANK, 96), f"{key}.lora_B.bias": ones,
               f"{key}.lora_B.weight": torch.zeros(64, RANK), f"{key}.alpha": torch.tensor(8.0)},
              tmp_path / "b.safetensors")  # fmt: skip
    lora = open_lora(tmp_path / "b.safetensors", network.spec)
    name = "blocks.0.ffn.2.bias"
    change = whole(Adapted(network, [(lora, 1.0)]), name).float() - whole(network, name).float()
    torch.testing.assert_close(change, 2 * ones, atol=0.01, rtol=0)
    assert not lora.unmatched


def test_what_is_not_used_is_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pair(module: str, out: int, into: int) -> State:
        return {f"{module}.lora_up.weight": torch.ones(out, 2),
                f"{module}.lora_down.weight": torch.ones(2, into)}  # fmt: skip

    unused = {
        **pair("lora_te_text_model_layers_0_q", 64, 64), **pair("lora_unet_blocks_9_ffn_0", 96, 64),
        **pair("lora_unet_blocks_0_ffn_0", 64, 64), **pair("lora_unet_blocks_1_ffn_0", 96, 63),
        "lora_unet_blocks_0_ffn_2.lora_up.weight": torch.ones(64, 2), "extra": torch.ones(1),
    }  # fmt: skip
    used = pair("lora_unet_blocks_0_self_attn_q", 64, 64)
    save_file({**unused, **used}, tmp_path / "mixed.safetensors")
    lora = open_lora(tmp_path / "mixed.safetensors", open_network(base).spec)
    assert list(lora.changes) == ["blocks.0.self_attn.q.weight"] and lora.ranks == {2}
    assert set(lora.unmatched) == set(unused)
    reasons = {key: lora.unmatched[key] for key in unused}
    assert reasons["lora_unet_blocks_9_ffn_0.lora_up.weight"] == "no such part of this network"
    assert reasons["lora_te_text_model_layers_0_q.lora_up.weight"] == "no such part of this network"
    assert reasons["lora_unet_blocks_1_ffn_0.lora_down.weight"] == "another shape"
    assert reasons["lora_unet_blocks_0_ffn_2.lora_up.weight"] == "half of a product"
    assert reasons["extra"] == "no part of a change"
    out = str(tmp_path / "o.pth")
    assert main(["merge", str(base), out, "--lora", str(tmp_path / "mixed.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "mixed.safetensors: 1 tensors changed (kohya naming, rank 2, strength 1)" in said
    assert "unused   4 (another shape): lora_unet_blocks_0_ffn_0" in said


def fails(code: str, action: Callable[[], object]) -> TurboDiffusionError:
    with pytest.raises(TurboDiffusionError) as caught:
        action()
    assert caught.value.code == code
    return caught.value


def opened(base: Path, tensors: State, expert: str = "") -> LoRA:
    path = base.parent / "tried.safetensors"
    save_file({key: value.clone() for key, value in tensors.items()}, path)
    return open_lora(path, open_network(base).spec, expert)


def test_loras_that_cannot_be_used(base: Path, tmp_path: Path) -> None:
    one = torch.ones(1, 1)
    for key in ("lycoris_blocks_0_ffn_0.lokr_w1", "diffusion_model.x.hada_w1_a"):
        error = fails("lora-kind", lambda key=key: opened(base, {key: one}))
        assert key in error.message
    product = {"x.lora_A.weight": one, "x.lora_B.weight": one}
    fails("lora-kind", lambda: opened(base, {**product, "x.dora_scale": one}))
    fails("lora-kind", lambda: opened(base, {"blocks.0.ffn.0.weight": one}))
    error = fails("lora-nothing", lambda: opened(base, product))
    assert "2 (no such part of this network): x.lora_A.weight" in error.message
    int8 = write_synthetic(DIT, tmp_path / "int8.pth", True, sla=False)
    words = ["merge", str(int8), str(tmp_path / "o.pth"), "--lora"]
    file = write_lora(tmp_path / "l.safetensors", NAMINGS["comfyui"],
                      {"head.head": (torch.ones(32, 2), torch.ones(2, 64))})  # fmt: skip
    network = open_network(int8)
    error = fails("lora-quantized",
                  lambda: Adapted(network, [(open_lora(file, network.spec), 1.0)]))  # fmt: skip
    assert isinstance(error, WeightsError) and "quantize" in error.fix
    assert main([*words, str(file)]) == 1 and not (tmp_path / "o.pth").exists()


def test_two_experts_in_one_file(base: Path) -> None:
    pair = {"blocks.0.attn1.to_q.lora_A.weight": torch.ones(1, 64),
            "blocks.0.attn1.to_q.lora_B.weight": torch.ones(64, 1)}  # fmt: skip
    second = {f"transformer_2.{key}": value for key, value in pair.items()}
    both = {f"transformer.{key}": value for key, value in pair.items()} | second
    for expert, prefix in (("high", "transformer."), ("low", "transformer_2.")):
        lora = opened(base, both, expert)
        (change,) = lora.changes["blocks.0.self_attn.q.weight"]
        assert change.up.startswith(prefix) and len(lora.unmatched) == 2
        assert set(lora.unmatched.values()) == {"for the other expert"}
    fails("lora-expert", lambda: opened(base, both))
    assert opened(base, second).changes  # all for one: there is nothing to choose


def test_several_loras_on_a_merge(base: Path, tmp_path: Path) -> None:
    files = [
        write_lora(tmp_path / f"{n}.safetensors", NAMINGS["bare"], matrices(base, n))
        for n in (1, 2)
    ]
    plus = write_synthetic(DIT, tmp_path / "plus.safetensors", seed=5)
    words = ["merge", base, tmp_path / "o.pth", "--plus", plus, "--minus", base, "--weight", 0.25,
             "--lora", files[0], "--lora", f"{files[1]}:-0.5"]  # fmt: skip
    assert main(list(map(str, words))) == 0
    before, changed, after = (state(open_network(p)) for p in (base, plus, tmp_path / "o.pth"))
    name = "blocks.1.cross_attn.v"
    value = before[f"{name}.weight"].float()
    value = (value + 0.25 * (changed[f"{name}.weight"].float() - value)).bfloat16().float()
    for n, strength in ((1, 1.0), (2, -0.5)):
        up, down = matrices(base, n)[name]
        value = value + strength * (up @ down)
    assert torch.equal(after[f"{name}.weight"], value.bfloat16())
    assert len(after) == len(before) + 4  # the projections of plus


def test_arguments(base: Path, tmp_path: Path) -> None:
    for words in ([], ["--plus", str(base)], ["--minus", str(base)]):
        assert main(["merge", str(base), str(tmp_path / "o.pth"), *words]) == 2
    assert weighted("a.safetensors:0.25") == (Path("a.safetensors"), 0.25)
    assert weighted(r"C:\loras\a.safetensors") == (Path(r"C:\loras\a.safetensors"), 1.0)
    assert weighted("a.safetensors:-1") == (Path("a.safetensors"), -1.0)
    odd = tmp_path / "a:0.5"
    odd.touch()
    assert weighted(str(odd)) == (odd, 1.0)
    with pytest.raises(UsageError):
        weighted("a.safetensors:nan")
