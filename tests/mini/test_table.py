"""Counts to values, values to text, and what is kept beside the weights."""

import json
import math

import pytest

from turbodiffusion.mini import gates
from turbodiffusion.mini.metrics.fidelity import Thing
from turbodiffusion.mini.metrics.shares import Paired, interval
from turbodiffusion.mini.observe import Observation
from turbodiffusion.mini.recipe import recipe
from turbodiffusion.mini.report import differences, record
from turbodiffusion.mini.table import accuracy, signed, tables
from turbodiffusion.mini.tally import ATTRIBUTES, RowTally, Tally, psnr

MICRO = recipe("micro")
RIGHT = {"background": True, "colour": True, "shape": True, "motion": True, "joint": True}
WRONG = {**RIGHT, "shape": False, "joint": False}


def seen(scores, **changes):
    thing = {"overlap": 0.9, "sharpness": 0.8, "jerk": 0.01, "colour_drift": 2.0,
             "shape_drift": 0.02, "start": (0.5, 0.5)}  # fmt: skip
    return Observation(scores, (Thing(**{**thing, **changes}),), 0.25)


def tally(name, *scores, split="seen", objects=1):
    one = Tally(name, split, objects)
    for score in scores:
        one.add(seen(score))
    return one


def row_tally(name, **groups):
    """``seen=…, held_out=…`` joint results as text of 0 and 1."""
    row = RowTally(name)
    for split, marks in groups.items():
        row.groups[split, 1] = tally(name, *(RIGHT if m == "1" else WRONG for m in marks),
                                     split=split)  # fmt: skip
    return row


def test_a_tally_counts_what_was_asked():
    one = tally("teacher", RIGHT, WRONG, {**RIGHT, "shape": None})
    one.seconds, one.calls = [2.0, 9.0, 3.0], 100
    values = one.as_json()
    assert values["videos"] == 3 and values["seconds_per_video"] == 3.0, "the median"
    assert values["network_calls"] == 100
    assert values["colour"] == {
        "accuracy": 1.0, "interval95": [round(v, 4) for v in interval(3, 3)], "samples": 3,
    }  # fmt: skip
    assert values["shape"]["accuracy"] == 0.5 and values["shape"]["samples"] == 2
    assert values["joint"]["accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    assert "psnr_db" not in values
    assert json.loads(json.dumps(values)) == values


def test_an_empty_tally_has_no_shares():
    values = Tally("teacher", "seen", 1).as_json()
    assert values["videos"] == 0 and not set(RIGHT) & set(values)


def test_psnr_is_that_of_the_mean_error():
    assert psnr([1e-3, 3e-3]) == pytest.approx(-10 * math.log10(2e-3))
    assert psnr([]) is None and psnr([0.0]) == math.inf


def test_means_leave_out_what_was_not_seen():
    row = RowTally("rcm-4", calls=4)
    group = row.group("seen", 1)
    for jerk in (0.01, math.nan, 0.03):
        group.add(seen(RIGHT, jerk=jerk))
    group.add(Observation(WRONG, (), math.nan))
    values = row.as_json(None)
    assert values["videos"] == 4 and values["jerk"] == pytest.approx(0.02)
    assert values["flicker"] == 0.25 and "frechet" not in values and "diversity" not in values


def test_accuracy_text():
    other = tally("teacher", {**RIGHT, "shape": None})
    rows = [tally("VAE reconstruction", WRONG, split="held_out", objects=2), other]
    lines = accuracy([row.as_json() for row in rows]).splitlines()
    assert lines[0].split() == ["row", "combinations", "objects", "videos", *ATTRIBUTES]
    assert lines[1].startswith("VAE reconstruction  held-out      2        1")
    assert "100.0 (21–100)" in lines[1] and "0.0 (0–79)" in lines[1]
    shape = lines[0].index("shape")
    assert lines[2][shape] == "–", "an attribute nobody asked for is a dash, in its column"


def test_signs():
    assert [signed(v) for v in (1.25, -0.96, 0.04, -0.04)] == ["+1.2", "−1.0", "0.0", "0.0"]


def test_differences_are_paired_by_video():
    rows = {
        "teacher": row_tally("teacher", seen="1111011110", held_out="11110"),
        "rcm-4": row_tally("rcm-4", seen="1110111110", held_out="11110"),
    }
    found = {(d["later"], d["earlier"], d["split"]): d for d in differences(rows)}
    assert list(found) == [("rcm-4", "teacher", s) for s in ("seen", "held_out", "all")]
    one = found["rcm-4", "teacher", "seen"]
    assert (one["only_later"], one["only_earlier"], one["difference"]) == (1, 1, 0.0)
    assert one["interval95"] == [round(v, 5) for v in Paired(7, 1, 1, 1).interval()]
    assert found["rcm-4", "teacher", "all"]["videos"] == 15
    assert one["aim"] == -0.02 and one["met"] is False, "ten videos cannot tell two points"


@pytest.mark.parametrize(("lost", "met"), [(0, True), (20, True), (60, False)])
def test_an_aim_is_met_by_the_lower_end(lost, met):
    """Of 1000 videos, losing 20 leaves −2.0 (−3.0 at least); losing 60 does not."""
    marks = "0" * lost + "1" * (1000 - lost)
    rows = {"teacher": row_tally("t", seen="1" * 1000), "rcm-4": row_tally("r", seen=marks)}
    one = differences(rows)[0]
    low = 100 * one["interval95"][0]
    assert one["met"] is (low > -3.0)
    if lost != 20:  # there the end lies at the limit
        assert one["met"] is met


def test_tables_leave_out_what_is_not_there():
    rows = [tally("teacher", RIGHT).as_json()]
    assert tables({"rows": rows}) == accuracy(rows)
    row = row_tally("rcm-4", seen="11")
    whole = [row.as_json(None)]
    pair = differences({"teacher": row_tally("teacher", seen="10"), "rcm-4": row})
    text = tables({"rows": rows, "whole": whole, "differences": pair})
    parts = text.split("\n\n")
    assert len(parts) == 4
    assert "rcm-4 − teacher" in parts[1] and "−2 not met" in parts[1]
    assert parts[2].splitlines()[0].split()[:3] == ["row", "videos", "IoU"]
    assert "0.900" in parts[2] and "0.80" in parts[2]
    assert "Fréchet" in parts[3]


def measured(**joint):
    """A result with the joint accuracies ``row: (seen, held-out)`` of 100 videos each."""
    rows = []
    for name, shares in joint.items():
        name = name.replace("_", "-") if name != "vae" else "VAE reconstruction"
        for split, share in zip(("seen", "held_out"), shares, strict=True):
            rows.append({"row": name, "split": split, "objects": 1, "psnr_db": 35.0,
                         "joint": {"accuracy": share, "samples": 100}})  # fmt: skip
    return {"rows": rows, "whole": []}


def verdicts(result):
    return {(g.row, g.what.split(" ≥")[0].split(" ≤")[0]): g.holds for g in gates.gates(result)}


def test_gates_compare_with_what_was_measured():
    found = verdicts(measured(teacher=(0.95, 0.9), rcm_4=(0.91, 0.84), vae=(0.98, 0.96)))
    assert found["teacher", "joint seen, 1 object"] is True
    assert found["teacher", "joint seen, 2 objects"] is None
    assert found["rcm-4", "joint seen"] is True and found["rcm-4", "joint held-out"] is False
    assert found["VAE reconstruction", "joint held-out"] is False
    assert found["VAE reconstruction", "PSNR"] is True
    assert found["int8-4", "joint seen"] is None


def test_gates_of_whole_rows():
    result = measured(teacher=(1, 1))
    result["whole"] = [
        {"row": "teacher-4", "frechet": 0.4}, {"row": "rcm-4", "frechet": 0.5, "diversity": 0.9},
        {"row": "int8-4", "step_cosine": [0.999, 0.985]},
    ]  # fmt: skip
    found = verdicts(result)
    assert found["rcm-4", "Fréchet"] is False and found["rcm-4", "diversity"] is True
    assert found["int8-4", "cosine per step to turbo-4"] is False
    text = gates.report(gates.gates(result))
    assert "0.985" in text and "FAILS" in text and "not measured" in text.splitlines()[-1]


def result(rows, weights="w1", machine="m1", **more):
    return {
        "model": "micro", "weights": {"vae": {"hash": weights}}, "machine": machine, "rows": rows,
        **more,
    }  # fmt: skip


def row(name, split="seen", accuracy=0.5):
    return {"row": name, "split": split, "objects": 1, "network_calls": 0, "colour": accuracy}


def test_recorded_rows_add_up_and_follow_their_weights(tmp_path):
    (tmp_path / "micro_report.json").write_text('{"vae": {"steps": 4}}')

    def store(*given, **kind):
        path = record(MICRO, tmp_path, result(list(given), **kind))
        return json.loads(path.read_text())

    first = store(row("teacher"), row("rendered truth"))  # in the table's order afterwards
    assert first["vae"] == {"steps": 4}
    assert first["quality"]["rows"] == [
        {**row(n), "machine": "m1"} for n in ("rendered truth", "teacher")
    ]
    second = store(row("teacher", accuracy=0.9), row("teacher", "held_out"), machine="m2")
    assert [(r["row"], r["split"], r["colour"]) for r in second["quality"]["rows"]] == [
        ("rendered truth", "seen", 0.5), ("teacher", "seen", 0.9), ("teacher", "held_out", 0.5),
    ]  # fmt: skip
    assert [r["machine"] for r in second["quality"]["rows"]] == ["m1", "m2", "m2"]
    assert second["quality"]["weights"] == {"vae": {"hash": "w1"}}
    whole = {"vae": {"hash": "w1"}, "dit": {"hash": "d"}}
    path = record(MICRO, tmp_path, {**result([row("VAE reconstruction")]), "weights": whole})
    stored = json.loads(path.read_text())["quality"]
    assert len(stored["rows"]) == 4 and stored["weights"] == whole, "another part is no conflict"
    third = store(row("VAE reconstruction"), weights="w2")
    assert [r["row"] for r in third["quality"]["rows"]] == ["VAE reconstruction"], (
        "old weights, old numbers"
    )


def test_another_network_takes_its_own_rows_away_and_no_others(tmp_path):
    pairs = [
        {"later": later, "earlier": "rcm-4", "split": "all"} for later in ("turbo-4", "student-4")
    ]
    names = ("teacher", "rcm-4", "turbo-4", "student-4")
    before = {part: {"hash": "1"} for part in ("vae", "dit", "t2v_rcm", "t2v_turbo")}
    first = {**result([row(n) for n in names], differences=pairs), "weights": before}
    record(MICRO, tmp_path, first)
    after = {**before, "t2v_turbo": {"hash": "2"}}
    again = {**result([row("rcm-4", accuracy=0.9)]), "weights": after}
    stored = json.loads(record(MICRO, tmp_path, again).read_text())["quality"]
    assert [(r["row"], r["colour"]) for r in stored["rows"]] == [
        ("teacher", 0.5), ("rcm-4", 0.9), ("student-4", 0.5),
    ]  # fmt: skip
    assert [d["later"] for d in stored["differences"]] == ["student-4"]
    assert stored["weights"] == after


def test_recorded_rows_as_a_whole_and_differences_add_up_too(tmp_path):
    pair = {"later": "rcm-4", "earlier": "teacher", "split": "seen", "difference": 0.1}
    one = {"row": "rcm-4", "network_calls": 4, "frechet": 0.5}
    record(MICRO, tmp_path, result([row("rcm-4")], whole=[one], differences=[pair]))
    again = result(
        [row("teacher")],
        whole=[{**one, "frechet": 0.4}],
        differences=[{**pair, "split": "all"}],
        outcomes={"teacher": {"seen-1": "01"}},
    )
    stored = json.loads(record(MICRO, tmp_path, again).read_text())["quality"]
    assert [r["frechet"] for r in stored["whole"]] == [0.4]
    assert [d["split"] for d in stored["differences"]] == ["seen", "all"]
    assert "outcomes" not in stored
