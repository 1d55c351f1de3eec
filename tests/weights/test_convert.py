"""Conversion is exact in both directions, from every dialect, and leaves nothing half done."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights.helpers import header_of, sparse_safetensors
from turbodiffusion import __version__
from turbodiffusion.errors import CapacityError, UsageError, WeightsError
from turbodiffusion.models.cards import CARDS, MICRO_DIT
from turbodiffusion.weights import write
from turbodiffusion.weights.convert import convert, description_metadata
from turbodiffusion.weights.detect import describe
from turbodiffusion.weights.header import read_header
from turbodiffusion.weights.layouts import INFIX, rename
from turbodiffusion.weights.read import open_checkpoint
from turbodiffusion.weights.spec import TensorSpec, dit_spec
from turbodiffusion.weights.write import write_checkpoint

State = dict[str, torch.Tensor]


def same(a: State, b: State) -> bool:
    """Same order, types, shapes and bits."""
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and torch.equal(a[k].contiguous().view(torch.uint8), b[k].contiguous().view(torch.uint8))
        for k in a
    )


def load(path: Path) -> State:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kind", ["bf16", "int8", "plain", "vae", "text"])
def test_there_and_back(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    convert(files[kind], tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "back.pth")
    original = load(files[kind])
    assert same(load(tmp_path / "back.pth"), original)
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert same({name: checkpoint.tensor(name) for name in checkpoint}, original)
    other = load_file(tmp_path / "m.safetensors")  # the library's own reader agrees
    assert other.keys() == original.keys()
    assert all(torch.equal(other[name], original[name]) for name in other)


def test_written_pth_is_what_torch_reads_in_every_way(files: dict[str, Path]) -> None:
    mapped = torch.load(files["int8"], weights_only=True, mmap=True)
    assert type(mapped) is dict
    assert same(mapped, load(files["int8"]))
    assert mapped["blocks.0.ffn.0.int8_weight"].dtype == torch.int8
    assert all(t.data_ptr() % 64 == 0 for t in mapped.values())


def test_metadata_describes_the_model(files: dict[str, Path], tmp_path: Path) -> None:
    convert(files["int8"], tmp_path / "m.safetensors", {"note": "mine"})
    assert read_header(tmp_path / "m.safetensors").metadata == {
        "format": "pt", "kind": "dit", "card": "micro", "layout": "int8",
        "attention": "sla", "source": "int8.pth", "turbodiffusion": __version__, "note": "mine",
    }  # fmt: skip


def test_metadata_of_the_source_survives(files: dict[str, Path], tmp_path: Path) -> None:
    convert(files["vae"], tmp_path / "a.safetensors", {"latent_mean": "[0.5]", "source": "first"})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    metadata = read_header(tmp_path / "b.safetensors").metadata
    assert metadata["latent_mean"] == "[0.5]" and metadata["source"] == "first"


def test_expert_survives_a_new_name() -> None:
    card = CARDS["TurboWan2.2-I2V-A14B-720P"]
    found = describe(header_of(dit_spec(card.dit), "TurboWan2.2-I2V-A14B-low-720P.pth"))
    metadata = description_metadata(found)
    assert metadata["expert"] == "low"
    again = describe(header_of(dit_spec(card.dit), "renamed.safetensors", **metadata))
    assert again.expert == "low" and again.card == card.name


def wrapped(state: State, dialect: str, folder: Path) -> Path:
    """The state dict as another writer would have saved it."""
    if dialect == "diffusers":
        names = rename(state, "dit", "diffusers")
        state = {names[name]: tensor for name, tensor in state.items()}
        state["patch_embedding.weight"] = state["patch_embedding.weight"].view(128, 8, 1, 2, 2)
        save_file(state, folder / "diffusion_pytorch_model.safetensors")
        return folder
    if dialect == "net in state_dict":
        path = folder / "export.pth"
        torch.save({"state_dict": {f"net.{k}": v for k, v in state.items()}, "step": 3}, path)
        return path
    if dialect == "wrapped blocks":
        path = folder / "wrapped.pth"
        torch.save({k.replace("blocks.1.", f"blocks.1.{INFIX}"): v for k, v in state.items()}, path)
        return path
    if dialect == "node editor":
        path = folder / "node.safetensors"
        save_file({f"model.diffusion_model.{k}": v for k, v in state.items()}, path)
        return path
    if dialect == "transposed storages":
        path = folder / "strided.pth"
        turned = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in state.items()}
        torch.save(turned, path)
        return path
    path = folder / "training.pth"  # one storage, sliced
    flat = torch.cat([v.flatten().to(torch.bfloat16) for v in state.values()])
    parts, at = {}, 0
    for name, tensor in state.items():
        parts[name] = flat[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
    torch.save(parts, path)
    return path


DIALECTS = [
    "diffusers", "net in state_dict", "wrapped blocks", "node editor", "transposed storages",
    "shared storage",
]  # fmt: skip


@pytest.mark.parametrize("target", ["out.pth", "out.safetensors"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_becomes_the_released_layout(
    files: dict[str, Path], tmp_path: Path, dialect: str, target: str
) -> None:
    original = load(files["plain"])
    source = wrapped(dict(original), dialect, tmp_path)
    convert(source, tmp_path / target)
    if dialect == "shared storage":
        original = {name: tensor.to(torch.bfloat16) for name, tensor in original.items()}
    result = load(tmp_path / target) if target == "out.pth" else load_file(tmp_path / target)
    assert result.keys() == original.keys()
    assert same({name: result[name] for name in original}, original)
    assert describe(read_header(tmp_path / target)).wrappers == ()


def test_the_third_norm_is_not_confused(files: dict[str, Path], tmp_path: Path) -> None:
    original = load(files["plain"])
    original["blocks.2.norm3.weight"].fill_(2.5)
    folder = wrapped(original, "diffusers", tmp_path)
    raw = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert raw["blocks.2.norm2.weight"].unique().tolist() == [2.5]
    convert(folder, tmp_path / "o.pth")
    assert load(tmp_path / "o.pth")["blocks.2.norm3.weight"].unique().tolist() == [2.5]


def test_tensors_of_an_unloadable_pickle_can_be_saved(
    files: dict[str, Path], tmp_path: Path
) -> None:
    original = load(files["plain"])
    torch.save({"state_dict": original, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="Namespace"):
        open_checkpoint(tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.pth")
    assert same(load(tmp_path / "b.pth"), original)


def test_incomplete_source_leaves_no_file(files: dict[str, Path], tmp_path: Path) -> None:
    state = load(files["plain"])
    del state["head.head.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"head\.head\.bias"):
        convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth"]


def test_a_lora_is_not_converted(tmp_path: Path) -> None:
    save_file({"x.lora_A.weight": torch.ones(1)}, tmp_path / "l.safetensors")
    with pytest.raises(WeightsError) as caught:
        convert(tmp_path / "l.safetensors", tmp_path / "m.pth")
    assert caught.value.code == "weights-lora"


def test_onto_itself_and_unknown_extension(files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(files["vae"], tmp_path / "v.pth")
    with pytest.raises(UsageError, match="source itself"):
        convert(tmp_path / "v.pth", tmp_path / "v.pth")
    with pytest.raises(WeightsError, match="cannot be written"):
        convert(tmp_path / "v.pth", tmp_path / "v.ckpt")


def test_full_disk_is_noticed_first(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CapacityError) as caught:
        convert(files["bf16"], tmp_path / "m.safetensors")
    assert caught.value.code == "weights-disk" and caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_failure_while_writing_keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(b"old")
    spec = {"a": TensorSpec((4,), "float32"), "b": TensorSpec((4,), "float32")}

    def source(name: str):  # type: ignore[no-untyped-def]
        if name == "b":
            raise KeyboardInterrupt
        yield bytes(16)

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, spec, source)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="8 bytes given"):
        write_checkpoint(path, spec, lambda name: [bytes(8)])


def test_zip64_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Records above 2 GB get a longer header; the limit is lowered instead of writing one.
    import zipfile

    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    spec = {"a": TensorSpec((3,), "float32"), "big": TensorSpec((40, 30), "bfloat16")}
    data = {"a": bytes(range(12)), "big": bytes(i % 251 for i in range(2400))}
    write_checkpoint(tmp_path / "m.pth", spec, lambda name: [data[name]])
    monkeypatch.undo()
    header = read_header(tmp_path / "m.pth")
    assert [info.offset % 64 for info in header.tensors.values()] == [0, 0]
    state = torch.load(tmp_path / "m.pth", weights_only=True, mmap=True)
    assert all(state[name].view(torch.uint8).numpy().tobytes() == data[name] for name in data)


def test_offsets_beyond_four_gigabytes(tmp_path: Path) -> None:
    spec = {"a": TensorSpec((1_200_000_000,), "float32"), "b": TensorSpec((4,), "float32")}
    path = sparse_safetensors(tmp_path / "big.safetensors", spec)
    with path.open("r+b") as file:
        file.seek(-16, 2)
        file.write(torch.arange(4.0).numpy().tobytes())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensor("b").tolist() == [0.0, 1.0, 2.0, 3.0]


def test_micro_spec_is_what_the_files_hold(files: dict[str, Path]) -> None:
    header = read_header(files["bf16"])
    spec = dit_spec(MICRO_DIT)
    assert {n: (t.shape, t.dtype) for n, t in header.tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in spec.items()
    }
