"""Merging, quantising and exporting against their definitions, and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from turbodiffusion.cli.main import main
from turbodiffusion.errors import CapacityError, UsageError, WeightsError
from turbodiffusion.models.cards import CARDS, MICRO_DIT
from turbodiffusion.ops.linear import naive
from turbodiffusion.weights import stream, write
from turbodiffusion.weights.distributed import open_distributed, save_distributed
from turbodiffusion.weights.layouts import INFIX, rename
from turbodiffusion.weights.load import load_dit
from turbodiffusion.weights.merge import Merged
from turbodiffusion.weights.quantize import QUANTIZED, Quantized
from turbodiffusion.weights.spec import PROJ_L, dit_spec
from turbodiffusion.weights.stream import open_network, save, whole
from turbodiffusion.weights.synthetic import write_synthetic

DIT = replace(MICRO_DIT, dim=256, ffn_dim=320, num_heads=2, num_layers=2)
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Student, sparse network, teacher and a wider-input relative."""
    folder = tmp_path_factory.mktemp("family")
    wide = replace(DIT, in_dim=36)
    return {
        "student": write_synthetic(DIT, folder / "student.pth", seed=1, sla=False),
        "sla": write_synthetic(DIT, folder / "sla.safetensors", seed=2),
        "teacher": write_synthetic(DIT, folder / "teacher.pth", seed=3, sla=False),
        "image": write_synthetic(wide, folder / "image.safetensors", seed=4, sla=False),
    }


def state(path: Path) -> State:
    return {n: whole(one, n) for one in [open_network(path)] for n in one.spec}


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


def definition(base: State, plus: State, minus: State, w: float) -> State:
    merged = dict(base)
    for name, value in base.items():
        if name in plus and name in minus and plus[name].shape == minus[name].shape == value.shape:
            delta = plus[name].float() - minus[name].float()
            merged[name] = (value.float() + w * delta).to(value.dtype)
    return merged | {n: v for n, v in plus.items() if n not in base and n not in minus}


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_merge_is_its_definition(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    weight: float, suffix: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(stream, "STRIPE", 5000)  # several stripes a tensor
    out = tmp_path / f"merged{suffix}"
    words = ["merge", family["student"], out, "--plus", family["sla"], "--minus", family["teacher"]]
    assert main([*map(str, words), "--weight", str(weight)]) == 0
    sides = [state(family[name]) for name in ("student", "sla", "teacher")]
    assert equal(state(out), definition(*sides, weight))
    assert any(PROJ_L in name for name in state(out))
    assert list(open_network(out).spec) == list(dit_spec(DIT))  # the released order


def test_a_delta_moves_to_a_relative_and_the_report_says_what_stayed(
    family: dict[str, Path], tmp_path: Path
) -> None:
    merged = Merged(*(open_network(family[n]) for n in ("image", "sla", "teacher")))
    save(merged, tmp_path / "out.safetensors")
    before, after = state(family["image"]), state(tmp_path / "out.safetensors")
    assert torch.equal(before["patch_embedding.weight"], after["patch_embedding.weight"])
    assert merged.report.kept == {"patch_embedding.weight": "another shape"}
    assert all(PROJ_L in name for name in merged.report.added) and len(merged.report.added) == 4
    assert not merged.report.skipped
    assert "kept     1 (another shape): patch_embedding.weight" in merged.report.lines()


def test_what_two_sides_have_and_the_base_lacks_is_skipped(family: dict[str, Path]) -> None:
    merged = Merged(*(open_network(family[n]) for n in ("student", "sla", "sla")))
    assert len(merged.report.skipped) == 4 and not merged.report.added


def test_merges_that_make_no_sense(family: dict[str, Path], tmp_path: Path) -> None:
    int8 = write_synthetic(DIT, tmp_path / "int8.pth", True, sla=False)
    other = write_synthetic(replace(DIT, dim=128, num_heads=1, ffn_dim=64, out_dim=4, freq_dim=64,
                                    in_dim=4, text_dim=32), tmp_path / "other.pth")  # fmt: skip
    student = open_network(family["student"])
    with pytest.raises(WeightsError) as caught:
        Merged(student, open_network(int8), student)
    assert caught.value.code == "merge-quantized"
    with pytest.raises(WeightsError) as caught:
        Merged(student, open_network(other), open_network(other))
    assert caught.value.code == "merge-nothing"
    with pytest.raises(WeightsError) as caught:
        Quantized(open_network(int8))
    assert caught.value.code == "quantize-twice"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_quantise_is_its_definition(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(stream, "STRIPE", 40_000)
    out = tmp_path / f"int8{suffix}"
    assert main(["quantize", str(family["sla"]), str(out)]) == 0
    expected: State = {}
    for name, value in state(family["sla"]).items():
        if QUANTIZED.fullmatch(name):
            layer = name.removesuffix(".weight")
            expected[f"{layer}.int8_weight"], expected[f"{layer}.scale"] = naive.quantize_tile(
                value
            )
        else:
            expected[name] = value
    assert equal(state(out), expected)
    spec = dit_spec(DIT, quantized=True)
    assert open_network(out).spec == spec and list(open_network(out).spec) == list(spec)


def test_a_float32_file_is_rounded_to_bf16_first(family: dict[str, Path], tmp_path: Path) -> None:
    wide = {n: v.float() for n, v in state(family["sla"]).items()}
    save_file(wide, tmp_path / "wide.safetensors")
    one, two = (tmp_path / f"{n}.pth" for n in "ab")
    save(Quantized(open_network(tmp_path / "wide.safetensors")), one)
    save(Quantized(open_network(family["sla"])), two)
    assert equal(state(one), state(two))


def _run(family: dict[str, Path], name: str, folder: Path) -> Path:
    """A training run whose checkpoint has the network and its float32 average."""
    import torch.distributed.checkpoint as dcp

    step = folder / "checkpoints" / "iter_000000005"
    values = state(family[name])
    tensors = {f"net.{n}": torch.zeros_like(v) for n, v in values.items()}
    tensors |= {f"net_ema.{n.replace('blocks.0.', 'blocks.0.' + INFIX)}": v.float() * 1.001
                for n, v in values.items()}  # fmt: skip
    dcp.save(tensors, checkpoint_id=step / "model")
    (folder / "checkpoints" / "latest_checkpoint.txt").write_text(step.name + "\n")
    return folder


@pytest.mark.filterwarnings("ignore:.*torch.distributed.*")
def test_the_chain_in_one_command_equals_its_steps(family: dict[str, Path], tmp_path: Path) -> None:
    rcm, sla = (_run(family, name, tmp_path / name) for name in ("student", "sla"))
    files = {n: tmp_path / f"{n}.safetensors" for n in ("one", "rcm", "sla", "merged", "steps")}
    base = str(family["teacher"])

    def command(*words: object) -> None:
        assert main([str(word) for word in words]) == 0

    command("export", rcm, files["one"], "--sla", sla, "--base", base, "--quantize")
    command("export", rcm, files["rcm"])
    command("export", sla, files["sla"])
    command("merge", files["rcm"], files["merged"], "--plus", files["sla"], "--minus", base)
    command("quantize", files["merged"], files["steps"])
    assert equal(state(files["one"]), state(files["steps"]))
    average = {n: (v.float() * 1.001).to(v.dtype) for n, v in state(family["student"]).items()}
    assert equal(state(files["rcm"]), average)


@pytest.mark.filterwarnings("ignore:.*torch.distributed.*")
def test_files_of_every_form_are_mixed(family: dict[str, Path], tmp_path: Path) -> None:
    """A sharded folder, a run, a ``.pth`` in diffusers' names, and one of wrapped blocks."""
    student, sla, teacher = (state(family[name]) for name in ("student", "sla", "teacher"))
    folder = tmp_path / "shards"
    folder.mkdir()
    halves = [{n: v for i, (n, v) in enumerate(student.items()) if i % 2 == k} for k in range(2)]
    index = {}
    for k, half in enumerate(halves):
        name = f"model-{k}-of-2.safetensors"
        save_file({f"model.{n}": v for n, v in half.items()}, folder / name)
        index |= {f"model.{n}": name for n in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    names = rename(teacher, "dit", "diffusers")
    torch.save({names[n]: v for n, v in teacher.items()}, tmp_path / "diffusers.pth")
    wrapped = {n.replace("blocks.1.", "blocks.1." + INFIX): v for n, v in teacher.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "wrapped.pth")
    run = tmp_path / "run"
    save_distributed(open_network(family["sla"]), run / "checkpoints" / "iter_000000001" / "model")
    (run / "checkpoints" / "latest_checkpoint.txt").write_text("iter_000000001")
    expected = definition(student, sla, teacher, 1.0)
    for minus in ("diffusers.pth", "wrapped.pth"):
        out = tmp_path / f"out-{minus}"
        words = ["merge", folder, out, "--plus", run, "--minus", tmp_path / minus]
        assert main(list(map(str, words))) == 0
        assert equal(state(out), expected)


@pytest.mark.filterwarnings("ignore:.*torch.distributed.*")
def test_export_needs_no_name_for_a_run_and_its_file_loads(
    family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rcm, sla = (_run(family, name, tmp_path / name) for name in ("student", "sla"))
    words = ["export", rcm, "--sla", sla, "--base", family["teacher"], "--quantize"]
    assert main(list(map(str, words))) == 0
    loaded = load_dit(rcm / "export.safetensors", replace(CARDS["micro-teacher"], dit=DIT))
    assert loaded.quantized and loaded.attention.kind == "sla"
    assert main(["export", str(family["student"])]) == 2
    assert "export-out" in capsys.readouterr().err


def test_distributed_and_back(family: dict[str, Path], tmp_path: Path) -> None:
    save_distributed(open_network(family["sla"]), tmp_path / "dcp")
    save(open_network(tmp_path / "dcp"), tmp_path / "back.pth")
    assert equal(state(tmp_path / "back.pth"), state(family["sla"]))
    with pytest.raises(UsageError) as caught:
        save_distributed(open_network(family["sla"]), tmp_path / "dcp")
    assert caught.value.code == "convert-folder-exists"
    for shard in (tmp_path / "dcp").glob("*.distcp"):
        shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(WeightsError) as failure:
        save(open_distributed(tmp_path / "dcp"), tmp_path / "broken.pth")
    assert failure.value.code == "weights-distributed"
    assert not (tmp_path / "broken.pth").exists()


def test_sla_needs_a_base(family: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(family["student"]), "--sla", str(family["sla"])]) == 2
    assert "export-base" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CapacityError) as caught:
        save(Quantized(open_network(family["sla"])), tmp_path / "new" / "out.pth")
    assert caught.value.code == "weights-disk"
    assert not list((tmp_path / "new").iterdir())


def test_an_existing_file_is_kept(family: dict[str, Path]) -> None:
    with pytest.raises(UsageError) as caught:
        save(open_network(family["sla"]), family["teacher"])
    assert caught.value.code == "convert-target-exists"
    assert load_file(family["sla"])


MEASURE = """
import resource, sys
from pathlib import Path
from turbodiffusion.cli.main import main
import turbodiffusion.weights.quantize, turbodiffusion.weights.distributed, torch
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = peak()
assert main(sys.argv[1:]) == 0
print("grown", peak() - start)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Three files of 270 MB each, merged and then quantised by a child process."""
    pytest.importorskip("resource", reason="peak memory is read with the POSIX module resource")
    large = replace(MICRO_DIT, dim=1536, ffn_dim=8960, num_heads=12, num_layers=3)
    files = [write_synthetic(large, tmp_path / "a.pth", sla=False)] * 3
    size = files[0].stat().st_size / 2**20
    merge = ["merge", files[0], tmp_path / "m.pth", "--plus", files[1], "--minus", files[2]]
    for words in (merge, ["quantize", tmp_path / "m.pth", tmp_path / "q.pth"]):
        command = [sys.executable, "-c", MEASURE, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        grown = float(done.stdout.split("grown")[-1])
        print(f"{words[0]}: {size:.0f} MiB a file, {grown:.0f} MiB of memory")
        assert grown < size / 2
