"""``turbodiffusion mini …`` as typed: what it prints, stores and refuses."""

import json
import shutil

import pytest

from turbodiffusion.cli.main import main
from turbodiffusion.cli.mini import STAGES
from turbodiffusion.mini import world
from turbodiffusion.mini.attributes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES


def call(capsys, *words):
    code = main(["mini", *map(str, words)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_world(capsys):
    code, out, _ = call(capsys, "world")
    assert code == 0
    for name in (*COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS):
        assert name in out, name
    for red, green, blue in world.PALETTE.values():
        assert f"({red:.2f}, {green:.2f}, {blue:.2f})" in out
    for top, bottom in world.GRADIENTS.values():
        ends = [", ".join(f"{v:.2f}" for v in end) for end in (top, bottom)]
        assert f"({ends[0]}), ({ends[1]})" in out
    assert "bouncing: y(u) = y0 - h·|sin(2·π·u)|" in out
    assert "circling: (x, y)(u) = centre + o·(cos, sin)(2π·(phase + u))" in out
    assert "1.9–2.3" in out and "mod 8 = 0" in out
    words = out.splitlines()[-1].split(": ")[1].split()
    assert words == world.WORDS


@pytest.mark.parametrize("command", ["train", "judge", "sheet", "world"])
def test_help(capsys, command):
    with pytest.raises(SystemExit) as left:
        main(["mini", command, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert f"turbodiffusion mini {command}" in out
    if command == "train":
        assert "{" + ",".join(STAGES) in out.replace("\n", "")
        for flag in ("--size", "--run-minutes", "--minutes", "--steps", "--batch", "--device"):
            assert flag in out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train vae --size maxi", ("mini-size", "'maxi'", "micro, mini")),
        ("judge --size maxi", ("mini-size", "'maxi'", "micro, mini")),
        ("sheet --size maxi --out a.png", ("mini-size", "'maxi'", "micro, mini")),
        ("train vae --device cud", ("device-unknown", "'cud'", "cpu")),
        ("judge --rows truth,students", ("mini-list", "'students'", "truth, vae, teacher")),
        ("judge --objects 1,3", ("mini-list", "'3'", "1, 2")),
        ("sheet --out a.mp4", ("mini-sheet-format", "'a.mp4'", ".png")),
    ],
)
def test_wrong_values_exit_2(capsys, words, named):
    code, out, err = call(capsys, *words.split())
    assert code == 2 and out == ""
    for part in named:
        assert part in err


@pytest.mark.parametrize(
    "words",
    [
        "train",
        "train everything",
        "train vae --steps 0",
        "train vae --minutes -1",
        "train vae --run-minutes nan",
        "judge --samples 0",
        "judge --batch 0",
        "sheet",
        "sheet --out a.png --objects 3",
        "",
    ],
)
def test_wrong_flags_exit_2(capsys, words):
    with pytest.raises(SystemExit) as left:
        main(["mini", *words.split()])
    assert left.value.code == 2
    assert "usage: turbodiffusion mini" in capsys.readouterr().err


def test_missing_weights_name_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("turbodiffusion.mini.export.PACKAGED", tmp_path)
    words = ("judge", "--size", "micro", "--weights", tmp_path, "--rows")
    code, _, err = call(capsys, *words, "int8-4")
    assert code == 1 and "mini train turbo --size micro" in err
    code, _, err = call(capsys, *words, "teacher")
    assert code == 1
    assert "mini-stage-missing" in err and "mini train teacher --size micro" in err


@pytest.fixture
def weights(random_micro, tmp_path):
    """A copy: commands write into the folder."""
    return shutil.copytree(random_micro[0], tmp_path / "weights")


def test_judge_prints_and_records_the_table(capsys, weights, monkeypatch):
    words = ["judge", "--size", "micro", "--weights", weights, "--samples", 1, "--steps", 1]
    words += ["--guidance", 1, "--device", "cpu", "--real", 0]
    code, out, _ = call(capsys, *words, "--rows", "truth,vae,teacher", "--record")
    assert code == 0
    lines = out.split("\n\n")[0].splitlines()
    assert lines[0].startswith("row") and len(lines) == 7, "three rows, seen and held out"
    assert [line.split("  ")[0] for line in lines[1::2]] == [
        "rendered truth", "VAE reconstruction", "teacher",
    ]  # fmt: skip
    assert "100.0 (21–100)" in lines[1]
    stored = json.loads((weights / "micro_report.json").read_text("utf-8"))
    assert {"vae", "teacher", "quality"} <= set(stored), "what training stored is still there"
    rows = stored["quality"]["rows"]
    assert len(rows) == 6 and rows[5]["network_calls"] == 1
    assert rows[0]["machine"]["device"].startswith("CPU")
    assert stored["quality"]["weights"]["dit"]["file"] == "micro_t2v_teacher.safetensors"
    for part in ("micro_t2v_teacher", "micro_text"):  # not needed for what follows
        (weights / f"{part}.safetensors").unlink()
    monkeypatch.setattr("turbodiffusion.mini.rows.PACKAGED", weights)
    code, out, _ = call(capsys, *words, "--json", "--objects", "1,2")
    values = json.loads(out)
    assert code == 0 and values["model"] == "micro" and len(values["rows"]) == 8
    assert {row["row"] for row in values["rows"]} == {"rendered truth", "VAE reconstruction"}, (
        "rows whose files are there"
    )
    after = json.loads((weights / "micro_report.json").read_text("utf-8"))
    assert after == stored, "nothing is stored without --record"


def test_judge_checks_gates_and_prompts(capsys, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("turbodiffusion.mini.rows.PACKAGED", weights)
    words = ["judge", "--size", "micro", "--weights", weights, "--device", "cpu", "--real", 0]
    words += ["--steps", 1, "--guidance", 1]
    saved = tmp_path / "out" / "result.json"
    code, out, _ = call(capsys, *words, "--rows", "vae", "--samples", 1, "--gates", "--save", saved)
    assert code == 1, "random weights reconstruct nothing"
    assert "FAILS" in out and "not measured" in out
    again = call(capsys, "judge", "--size", "micro", "--load", saved, "--gates")
    assert again[:2] == (1, out), "a saved result is printed and checked as a fresh one"
    picture = tmp_path / "again.png"
    made = ("judge", "--size", "micro", "--weights", weights, "--device", "cpu")
    call(capsys, *made, "--load", saved, "--sheet", picture)
    assert picture.exists(), "made again from the same noise"
    code, _, err = call(capsys, "judge", "--size", "micro", "--load", tmp_path / "no.json")
    assert code == 2 and "mini-result" in err
    file = tmp_path / "prompts.txt"
    file.write_text("A red circle, moving left.\n\na purple dog\nblue cross growing\n", "utf-8")
    picture = tmp_path / "rows.png"
    code, out, err = call(
        capsys, *words, "--rows", "teacher", "--prompts", file, "--json", "--sheet", picture
    )
    values = json.loads(out)
    assert code == 0 and sum(row["videos"] for row in values["rows"]) == 2
    assert "background" not in values["rows"][0], "no prompt names one"
    assert picture.exists()
    assert [one["prompt"] for one in values["not_judged"]] == ["a purple dog"]
    assert "not judged: 'a purple dog'" in err


def test_the_whole_recipe_ends_with_its_table(capsys, tmp_path, monkeypatch):
    """A paused one does not."""
    from turbodiffusion.cli import mini

    asked = []

    def measure_quality(size, options, progress):
        asked.append((size.card_name, options))
        return {"rows": []}, None

    monkeypatch.setattr("turbodiffusion.mini.quality.measure_quality", measure_quality)
    for complete in (True, False):
        report = {"complete": complete}
        monkeypatch.setattr(mini, "_run_stage", lambda *given, report=report: report)
        code, out, _ = call(capsys, "train", "all", "--device", "cpu", "--out", tmp_path)
        assert code == 0
        assert ("combinations" in out) is complete
    assert [(name, options.folder) for name, options in asked] == [("micro-teacher", tmp_path)]


def test_sheet(capsys, weights, tmp_path):
    from PIL import Image

    words = ["sheet", "--size", "micro", "--weights", weights, "--samples", 2, "--steps", 1]
    words += ["--guidance", 1, "--device", "cpu", "--out", tmp_path / "sheet.png"]
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert str(tmp_path / "sheet.png") in out and "right in 2: background" in out
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 6 * 128, "six frames of a row, each enlarged to 128 pixels"
        assert picture.height > 2 * 128
