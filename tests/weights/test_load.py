"""Networks get exactly the tensors of their file; what does not suit is refused unread."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import CARDS, UMT5_XXL, Attention
from turbodiffusion.weights.convert import convert
from turbodiffusion.weights.header import read_header
from turbodiffusion.weights.load import load_dit, load_text_encoder, load_vae
from turbodiffusion.weights.read import Checkpoint

MICRO = CARDS["micro-teacher"]
DENSE = Attention("dense")
SLA = Attention("sla", topk=0.5, block_q=16, block_k=16)


def code_of(action) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(WeightsError) as caught:
        action()
    return caught.value.code


def forward(dit: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = dit.dtype
    x = torch.randn(1, 8, 3, 8, 8, generator=generator).to(dtype)
    text = torch.randn(1, 24, 64, generator=generator).to(dtype)
    return dit(x, torch.full((1, 1), 500.0, dtype=dtype), text)


@pytest.mark.parametrize("kind", ["bf16", "int8", "safetensors"])
def test_tensors_are_those_of_the_file(files: dict[str, Path], kind: str) -> None:
    dit = load_dit(files[kind], MICRO)
    assert dit.attention.kind == "sla" and not dit.training
    assert dit.quantized == (kind == "int8")
    state, source = dit.state_dict(), torch.load(files["bf16" if kind != "int8" else kind])
    assert state.keys() == source.keys()
    for name, tensor in state.items():
        assert tensor.dtype == source[name].dtype and torch.equal(tensor, source[name]), name
    assert not any(p.requires_grad for p in dit.parameters())
    assert forward(dit).isfinite().all()


def test_cpu_tensors_stay_mapped_and_private(files: dict[str, Path]) -> None:
    before = files["bf16"].read_bytes()
    dit = load_dit(files["bf16"], MICRO)
    places = read_header(files["bf16"]).tensors
    shifts = {t.data_ptr() - places[name].offset for name, t in dit.state_dict().items()}
    assert len(shifts) == 1  # as far apart in memory as in the file: one mapping, no copies
    with torch.no_grad():
        dit.blocks[0].ffn[0].weight.zero_()
    assert files["bf16"].read_bytes() == before


def test_dense_ignores_the_projection(files: dict[str, Path]) -> None:
    dense = load_dit(files["bf16"], MICRO, DENSE)
    assert not any("proj_l" in name for name in dense.state_dict())
    plain = load_dit(files["plain"], MICRO)
    assert plain.attention.kind == "dense"
    sparse = load_dit(files["bf16"], MICRO, SLA)
    assert sparse.attention == SLA
    assert not torch.equal(forward(dense), forward(sparse))


def test_sla_on_a_plain_file(files: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match="plain Wan network") as caught:
        load_dit(files["plain"], MICRO, SLA)
    assert caught.value.code == "weights-no-sla"


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_contradicting_quant_flag_is_a_warning(files: dict[str, Path], kind: str) -> None:
    with pytest.warns(UserWarning, match="the file decides"):
        dit = load_dit(files[kind], MICRO, quant_linear=kind == "bf16")
    assert dit.quantized == (kind == "int8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dit(files[kind], MICRO, quant_linear=kind == "int8")


def test_dtype_when_asked(files: dict[str, Path]) -> None:
    dit = load_dit(files["bf16"], MICRO, DENSE, dtype=torch.float32)
    assert {t.dtype for t in dit.state_dict().values()} == {torch.float32}
    int8 = load_dit(files["int8"], MICRO, DENSE, dtype=torch.float32)
    types = {name: t.dtype for name, t in int8.state_dict().items()}
    assert types["blocks.0.ffn.0.int8_weight"] == torch.int8
    assert types["blocks.0.ffn.0.scale"] == types["blocks.0.ffn.0.bias"] == torch.float32
    assert forward(dit).dtype == torch.float32


def test_narrowing_keeps_norms(files: dict[str, Path], tmp_path: Path) -> None:
    state = {n: t.float() for n, t in torch.load(files["plain"]).items()}
    torch.save(state, tmp_path / "fp32.pth")
    dit = load_dit(tmp_path / "fp32.pth", MICRO, dtype=torch.bfloat16)
    types = {name: t.dtype for name, t in dit.state_dict().items()}
    wide = {name for name, dtype in types.items() if dtype == torch.float32}
    assert wide == {name for name in types if "norm" in name}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_norms_and_projection_of_either_type(
    files: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    state = torch.load(files["bf16"])
    state = {n: t.to(dtype) if "norm" in n or "proj_l" in n else t for n, t in state.items()}
    torch.save(state, tmp_path / "m.pth")
    dit = load_dit(tmp_path / "m.pth", MICRO, SLA)
    name = "blocks.0.self_attn.attn_op.local_attn.proj_l.weight"
    assert dit.state_dict()[name].dtype == dtype
    assert dit.state_dict()["blocks.0.norm3.weight"].dtype == dtype
    assert forward(dit).isfinite().all()


def test_five_dimensional_patch_embedding(files: dict[str, Path], tmp_path: Path) -> None:
    state = torch.load(files["plain"])
    flat = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = flat.view(128, 8, 1, 2, 2)
    torch.save({f"net.{n}": t for n, t in state.items()}, tmp_path / "m.pth")
    dit = load_dit(tmp_path / "m.pth", MICRO)
    assert torch.equal(dit.patch_embedding.weight, flat)
    assert torch.equal(forward(dit), forward(load_dit(files["plain"], MICRO)))


def test_wrong_files_are_refused_before_a_tensor_is_read(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Checkpoint, key: str) -> torch.Tensor:
        raise AssertionError(f"{key} was read")

    monkeypatch.setattr(Checkpoint, "tensor", never)
    state = torch.load(files["bf16"])
    del state["blocks.3.cross_attn.k.bias"]
    torch.save(state, tmp_path / "missing.pth")
    assert code_of(lambda: load_dit(tmp_path / "missing.pth", MICRO)) == "weights-keys"
    assert code_of(lambda: load_dit(files["vae"], MICRO)) == "weights-kind"
    assert code_of(lambda: load_vae(files["bf16"], MICRO.vae)) == "weights-kind"
    assert code_of(lambda: load_dit(files["bf16"], CARDS["mini-teacher"])) == "weights-card"
    assert code_of(lambda: load_text_encoder(files["text"], UMT5_XXL)) == "weights-text-width"
    with pytest.raises(AssertionError, match="was read"):
        load_dit(files["bf16"], MICRO)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_vae(files: dict[str, Path], dtype: torch.dtype | None) -> None:
    vae = load_vae(files["vae"], MICRO.vae, dtype=dtype)
    source = torch.load(files["vae"])
    for name, tensor in vae.state_dict().items():
        assert tensor.dtype == (dtype or torch.float32)
        assert torch.equal(tensor, source[name].to(dtype or torch.float32))
    latent = vae.encode(torch.zeros(1, 3, 5, 16, 16, dtype=vae.dtype))
    assert latent.shape == (1, 8, 2, 4, 4) and latent.isfinite().all()


def test_latent_statistics_come_from_the_metadata(files: dict[str, Path], tmp_path: Path) -> None:
    mean, std = [0.5 * i for i in range(8)], [1.0 + i for i in range(8)]
    stats = {"latent_mean": json.dumps(mean), "latent_std": json.dumps(std)}
    convert(files["vae"], tmp_path / "v.safetensors", stats)
    vae = load_vae(tmp_path / "v.safetensors", MICRO.vae)
    assert vae.config.latent_mean == tuple(mean) and vae.config.latent_std == tuple(std)
    video = torch.zeros(1, 3, 1, 16, 16)
    raw = load_vae(files["vae"], MICRO.vae).encode(video)
    shape = (1, 8, 1, 1, 1)
    expected = (raw - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    torch.testing.assert_close(vae.encode(video), expected)


@pytest.mark.parametrize("text", ["[1]", "nonsense", "[1,1,1,1,1,1,1,0]", "[NaN,1,1,1,1,1,1,1]"])
def test_unusable_latent_statistics(files: dict[str, Path], tmp_path: Path, text: str) -> None:
    convert(files["vae"], tmp_path / "v.safetensors", {"latent_std": text})
    assert (
        code_of(lambda: load_vae(tmp_path / "v.safetensors", MICRO.vae)) == "weights-latent-stats"
    )


def test_text_encoder(files: dict[str, Path]) -> None:
    text = load_text_encoder(files["text"], MICRO.text)
    source = torch.load(files["text"])
    assert text.state_dict().keys() == source.keys()
    assert all(torch.equal(t, source[name]) for name, t in text.state_dict().items())
    ids = torch.tensor([[5, 6, 1] + [0] * 21])
    rows = text.encode(ids, (ids > 0).long())
    assert rows.shape == (1, 24, 64) and rows[:, 3:].eq(0).all() and rows[:, :3].isfinite().all()


def test_text_encoder_of_a_diffusers_folder(files: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from turbodiffusion.weights.layouts import rename

    source = torch.load(files["text"])
    names = rename(source, "text_encoder", "transformers")
    save_file({names[n]: t for n, t in source.items()}, tmp_path / "model.safetensors")
    text = load_text_encoder(tmp_path, MICRO.text, dtype=torch.float32)
    assert all(torch.equal(t, source[name].float()) for name, t in text.state_dict().items())


def test_image_to_video_experts(tmp_path: Path) -> None:
    from turbodiffusion.weights.synthetic import write_synthetic

    card = replace(MICRO, task="i2v", dit=replace(MICRO.dit, in_dim=20))
    path = write_synthetic(card, tmp_path / "x-high.pth", quantized=True)
    dit = load_dit(path, card)
    x, y = torch.zeros(1, 8, 3, 8, 8).bfloat16(), torch.ones(1, 12, 3, 8, 8).bfloat16()
    out = dit(x, torch.ones(1, 1).bfloat16(), torch.zeros(1, 24, 64).bfloat16(), y)
    assert out.shape == x.shape and out.isfinite().all()
