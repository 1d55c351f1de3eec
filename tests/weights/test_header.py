"""Headers of good files equal what torch says; bad files are named for what they are."""

from __future__ import annotations

import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.weights.helpers import Call, torch_pickle, write_pickle_zip, write_raw_safetensors
from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import DiTConfig
from turbodiffusion.weights.convert import read_range
from turbodiffusion.weights.detect import describe
from turbodiffusion.weights.header import read_header
from turbodiffusion.weights.read import open_checkpoint
from turbodiffusion.weights.synthetic import write_synthetic

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.uint16,
]  # fmt: skip


def raises(code: str, path: Path, *parts: str) -> None:
    with pytest.raises(WeightsError) as caught:
        read_header(path)
    assert caught.value.code == code
    for part in parts:
        assert part in caught.value.message
    assert caught.value.fix.endswith(".") or "`" in caught.value.fix


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    base = torch.arange(1, 1 + 7 * 5).to(dtype)
    tensors = {"a": base.reshape(7, 5).clone(), "scalar": base[3].clone(), "none": base[:0].clone()}
    path = tmp_path / f"x.{suffix}"
    if suffix == "pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    header = read_header(path)
    assert header.shapes == {"a": (7, 5), "scalar": (), "none": (0,)}
    for name, info in header.tensors.items():
        assert info.dtype == str(dtype).removeprefix("torch.")
        raw = b"".join(read_range(info))
        assert raw == bytes(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())


def test_pth_views_parameters_wrapper_and_other_values(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    table = OrderedDict(
        whole=base, rows=base[2:], turned=base.t(), p=nn.Parameter(torch.ones(3)), note="text"
    )
    path = tmp_path / "x.pt"
    torch.save({"state_dict": table, "epoch": 3, "args": {"lr": 1e-3}}, path)
    header = read_header(path)
    assert header.wrapper == "state_dict" and header.foreign == ()
    assert list(header.tensors) == ["whole", "rows", "turned", "p"]
    assert header.tensors["turned"].stride == (1, 4)
    assert header.tensors["rows"].offset == header.tensors["whole"].offset + 2 * 4 * 4
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint:
            assert torch.equal(checkpoint.tensor(name), table[name])
            assert checkpoint.shape(name) == tuple(table[name].shape)


def test_state_dict_of_a_module_keeps_order(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))  # its state dict carries _metadata
    torch.save(module.state_dict(), tmp_path / "m.pth")
    assert list(read_header(tmp_path / "m.pth").tensors) == list(module.state_dict())


def test_safetensors_metadata(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors", metadata={"card": "micro"})
    assert read_header(tmp_path / "m.safetensors").metadata == {"card": "micro"}


def test_format_is_read_from_the_bytes_not_the_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").rename(tmp_path / "m.pth")
    torch.save({"b": torch.ones(2)}, tmp_path / "n.safetensors")
    assert list(read_header(tmp_path / "m.pth").tensors) == ["a"]
    assert list(read_header(tmp_path / "n.safetensors").tensors) == ["b"]


def shards(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    save_file({"a": torch.ones(2)}, folder / "m-00001-of-00002.safetensors")
    save_file({"b": torch.ones(3)}, folder / "m-00002-of-00002.safetensors")
    default = {"b": "m-00002-of-00002.safetensors", "a": "m-00001-of-00002.safetensors"}
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": default if weight_map is None else weight_map}))
    return index


@pytest.mark.parametrize("give", ["folder", "index"])
def test_shards(tmp_path: Path, give: str) -> None:
    index = shards(tmp_path)
    header = read_header(tmp_path if give == "folder" else index)
    assert header.container == "sharded" and header.shapes == {"b": (3,), "a": (2,)}
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensor("b").sum() == 3


def test_broken_shards(tmp_path: Path) -> None:
    index = shards(
        tmp_path, {"a": "m-00001-of-00002.safetensors", "c": "m-00002-of-00002.safetensors"}
    )
    raises("weights-header", index, "c")
    shards(tmp_path, {"a": "../m.safetensors"})
    raises("weights-header", index, "outside")
    shards(tmp_path, {})
    raises("weights-header", index, "weight_map")
    shards(tmp_path)
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    raises("weights-shard-missing", tmp_path, "m-00002-of-00002.safetensors")


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    raises("weights-folder", tmp_path, "no checkpoint")
    (tmp_path / "model_index.json").write_text(
        json.dumps({"transformer": ["d", "T"], "transformer_2": [None, None], "vae": ["d", "V"]})
    )
    raises("weights-several-networks", tmp_path, "transformer, vae")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "weights-empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "weights-html"),
        (b"\n  <html lang=en>", "weights-html"),
        (b'{"error":"Repository not found"}', "weights-html"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "weights-lfs-pointer"),
        (pickle.dumps({"a": 1}, protocol=2), "weights-legacy-pickle"),
        (b"GGUF\x03\x00\x00\x00" + b"\x01" * 20, "weights-format"),
        (b"\x00" * 4096, "weights-truncated"),
        (b"RIFF....AVI ", "weights-format"),
        (b"PK\x03\x04" + b"\x00" * 300, "weights-truncated"),
    ],
)  # fmt: skip
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "TurboWan2.1-T2V-1.3B-480P.pth"
    path.write_bytes(content)
    raises(code, path, str(path))


@pytest.mark.parametrize(
    "content", [b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b""]
)
def test_the_same_under_a_safetensors_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_header(path)
    assert caught.value.code in ("weights-html", "weights-lfs-pointer", "weights-empty")


def test_missing_file(tmp_path: Path) -> None:
    raises("weights-missing", tmp_path / "no.pth", "no.pth")


def test_legacy_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    raises("weights-legacy-pickle", path)


@pytest.mark.parametrize("keep", [0.999, 0.6, 0.3, 0.01])
@pytest.mark.parametrize("kind", ["bf16", "safetensors"])
def test_truncated(tmp_path: Path, files: dict[str, Path], kind: str, keep: float) -> None:
    whole = files[kind].read_bytes()
    path = tmp_path / files[kind].name
    path.write_bytes(whole[: int(len(whole) * keep)])
    raises("weights-truncated", path, str(path.stat().st_size))


TABLES = [
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "data_offsets": [0, 4]}},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": 3}},
    {"a": 5},
    {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    },
]


@pytest.mark.parametrize("table", TABLES, ids=range(len(TABLES)))
def test_malformed_safetensors_tables(tmp_path: Path, table: dict[str, object]) -> None:
    raises("weights-header", write_raw_safetensors(tmp_path / "m.safetensors", table, b"\0" * 8))


@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff\xfe{}", b"[" * 100_000])
def test_malformed_safetensors_json(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    raises("weights-header", path)


def test_header_length_beyond_reason(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    raises("weights-header", path)
    path.write_bytes((5000).to_bytes(8, "little") + b"{}")
    raises("weights-truncated", path)
    path.write_bytes(b"\x05\x00")
    raises("weights-header", path)


def test_no_tensors(tmp_path: Path) -> None:
    raises("weights-no-tensors", write_raw_safetensors(tmp_path / "m.safetensors", {}, b""))
    torch.save({"epoch": 3}, tmp_path / "e.pth")
    raises("weights-no-tensors", tmp_path / "e.pth")
    torch.save([torch.ones(2)], tmp_path / "l.pth")
    raises("weights-no-tensors", tmp_path / "l.pth")


def test_zip_that_torch_did_not_write(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as archive:
        archive.writestr("model.safetensors", "x")
    raises("weights-format", tmp_path / "z.pth", "data.pkl")


def test_compressed_zip(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    raises("weights-compressed", tmp_path / "b.pth")


def test_pickle_never_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    data = torch_pickle({"a": torch.ones(2), "x": Call(os.system, f"touch {mark}")})
    path = write_pickle_zip(tmp_path / "evil.pth", data, {"0": b"\0" * 8})
    header = read_header(path)
    assert header.shapes == {"a": (2,)}
    assert header.foreign == (f"{os.system.__module__}.system",)
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(path)
    assert caught.value.code == "weights-unsafe-pickle" and "system" in caught.value.message
    assert not mark.exists()


GLOBALS = ["builtins eval", "builtins getattr", "torch load", "os system", "copyreg _reconstructor"]


@pytest.mark.parametrize("name", [*GLOBALS, "torch.storage _load_from_bytes"])
def test_no_global_means_what_it_says(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    mark = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    data = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"(" + pickle.dumps(code, 2)[2:-1]
    path = write_pickle_zip(tmp_path / "evil.pth", data + b"tR.")
    raises("weights-no-tensors", path)
    assert not mark.exists()


def test_pickle_cannot_alter_the_reader(tmp_path: Path) -> None:
    # BUILD on the tensor constructor would set attributes of a plain function.
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."
    raises("weights-header", write_pickle_zip(tmp_path / "evil.pth", data))
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pth")
    assert read_header(tmp_path / "good.pth").shapes == {"a": (2,)}


def test_tensor_beyond_its_storage(tmp_path: Path) -> None:
    data = torch_pickle({"a": torch.ones(4)})
    raises("weights-header", write_pickle_zip(tmp_path / "a.pth", data, {"0": b"\0" * 8}), "beyond")
    raises("weights-header", write_pickle_zip(tmp_path / "b.pth", data), "not in the archive")


def test_garbage_pickle(tmp_path: Path) -> None:
    raises("weights-header", write_pickle_zip(tmp_path / "a.pth", b"\x80\x02}q"))
    raises("weights-header", write_pickle_zip(tmp_path / "b.pth", b"R."))


def test_tensors_saved_on_a_gpu(tmp_path: Path) -> None:
    # torch.save writes the device's name once and refers back to it.
    data = torch_pickle({"a": torch.ones(2), "b": torch.zeros(3)})
    data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert b"cuda:0" in data
    storages = {"0": torch.ones(2).numpy().tobytes(), "1": bytes(12)}
    path = write_pickle_zip(tmp_path / "gpu.pth", data, storages)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensor("a").tolist() == [1.0, 1.0]
        assert checkpoint.tensor("a").device.type == "cpu"


def test_a_sound_header_over_an_unreadable_file(tmp_path: Path) -> None:
    table = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
             "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
             "c": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}  # fmt: skip
    path = write_raw_safetensors(tmp_path / "m.safetensors", table, bytes(12))
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(path).tensor("a")
    assert caught.value.code == "weights-unreadable"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_random_damage_is_read_or_refused_never_a_crash(tmp_path: Path, suffix: str) -> None:
    sizes = DiTConfig(8, 8, 1, 1, in_dim=1, out_dim=1, text_dim=2, freq_dim=2)
    whole = write_synthetic(sizes, tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"damaged.{suffix}"
    draw = random.Random(0)
    codes = set()
    for _ in range(400):
        damaged = bytearray(whole)
        reach = len(whole) if suffix == "pth" else 4500  # the header, where damage shows
        for _ in range(draw.choice((1, 3, 20))):
            damaged[draw.randrange(reach)] = draw.randrange(256)
        end = len(whole) if draw.random() < 0.8 else draw.randrange(1, len(whole))
        path.write_bytes(damaged[:end])
        try:
            describe(read_header(path))
        except WeightsError as error:
            codes.add(error.code)
    assert {"weights-header", "weights-truncated"} <= codes
