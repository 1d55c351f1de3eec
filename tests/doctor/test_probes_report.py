"""The report: a line that sums up, only what is wrong, one command each; JSON and exit codes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.doctor.machines import linux, windows
from turbodiffusion.cli.main import main
from turbodiffusion.doctor import measure, readings, selftest, shell, show
from turbodiffusion.doctor.facts import Operator
from turbodiffusion.doctor.findings import LEVELS
from turbodiffusion.doctor.measure import Measured
from turbodiffusion.doctor.probes import PROBES, Probe
from turbodiffusion.doctor.selftest import Clip
from turbodiffusion.doctor.verdict import SCHEMA, judge, wanted

BAD = windows("RTX 5090", "591.74", "2.13.0+cpu")
OPERATORS = (
    Operator("cuda:0", "attention", "triton", "because"),
    Operator("cuda:0", "norm", "portable", "no kernel"),
)


def test_only_what_is_wrong_is_shown():
    text = show.report(BAD, judge(BAD))
    lines = text.splitlines()
    assert lines[0] == (
        "blocked (1 blocker): GeForce RTX 5090, driver 591.74, torch 2.13.0+cpu, Windows"
    )
    assert lines[2].startswith("blocker  P05 torch: torch 2.13.0+cpu is the CPU build")
    assert "           turbodiffusion setup --fix P05" in lines
    assert "more: turbodiffusion errors TORCH-CPU-BUILD" in text
    assert "P03" not in text and "Python 3.12" not in text
    assert "Not needed: nvcc, Visual Studio, Conda, flash-attn." in text


def test_verbose_shows_every_probe():
    text = show.report(BAD, judge(BAD), verbose=True)
    assert all(number in text for number in PROBES)


def test_operators_with_reasons_when_they_differ():
    facts = linux("RTX 4090", operators=OPERATORS)
    text = show.report(facts, judge(facts))
    assert "  norm       portable  no kernel" in text
    same = replace(facts, operators=OPERATORS[:1])
    assert "Operators on cuda:0 run their triton form: attention." in show.report(same, judge(same))


def test_json_has_a_schema_and_every_finding():
    facts = linux("RTX 4090", operators=OPERATORS)
    table = json.loads(json.dumps(judge(facts).as_json(facts)))
    assert table["schema"] == SCHEMA == 1
    assert table["verdict"] == "ready" and table["exit_code"] == 0
    assert {f["probe"] for f in table["findings"]} == set(PROBES)
    assert all(f["level"] in LEVELS and f["title"] for f in table["findings"])
    assert table["operators"][0]["backend"] == "triton"


def test_a_probe_that_fails_does_not_end_the_report(monkeypatch):
    def fail(facts):
        raise KeyError("x")

    monkeypatch.setitem(PROBES, "P13", Probe("cache folders", fail))
    verdict = judge(linux("RTX 4090"))
    broken = [f for f in verdict.findings if f.probe == "P13"]
    assert "The probe itself failed: KeyError" in broken[0].found
    assert {f.probe for f in verdict.findings} == set(PROBES)


@pytest.mark.parametrize(
    ("words", "found"), [(["p05"], ("P05",)), (["Triton", "P08"], ("P08",)), ([], ())]
)
def test_only(words, found):
    assert wanted(words) == found


def test_causes_are_entries_of_the_catalogue():
    from tests.doctor.test_machines import MACHINES
    from turbodiffusion.doctor.catalogue import FAILURES

    known = {entry.id for entry in FAILURES}
    causes = {f.cause for row in MACHINES for f in judge(row[1]).findings if f.cause}
    assert len(causes) > 15 and causes <= known


class TestCommand:
    @pytest.fixture
    def machine(self, monkeypatch):
        asked = []

        def read(needs=(), on_stage=None, environment=None):
            asked.append(set(needs))
            return self.facts

        monkeypatch.setattr(readings, "read", read)
        self.asked = asked
        return asked

    facts = BAD

    def test_blockers_exit_3(self, machine, capsys):
        assert main(["doctor"]) == 3
        assert capsys.readouterr().out.startswith("blocked")
        assert machine == [{"torch", "triton", "packages", "network", "video"}]

    def test_warnings_exit_0(self, machine, capsys):
        self.facts = linux("RTX 4090", variables={"TRITON_INTERPRET": "1"})
        assert main(["doctor"]) == 0
        assert "unset TRITON_INTERPRET" in capsys.readouterr().out

    def test_only_asks_what_it_needs(self, machine, capsys):
        assert main(["doctor", "--only", "P14", "--json"]) == 0
        table = json.loads(capsys.readouterr().out)
        assert [f["probe"] for f in table["findings"]] == ["P14"]
        assert machine == [set()]
        main(["doctor", "--only", "P08"])
        assert machine[1] == {"triton"}

    def test_unknown_probe(self, capsys):
        assert main(["doctor", "--only", "P99"]) == 2
        assert "doctor-probe-unknown" in capsys.readouterr().err

    def test_wrong_kernels_exit_3(self, machine, monkeypatch, capsys):
        self.facts = linux("RTX 4090")
        rows = {"title": "kernels: 0 of 1", "rows": [{"error": "x"}], "lines": ["  WRONG"]}
        monkeypatch.setattr(measure, "run", lambda *_: Measured("kernels", rows))
        assert main(["doctor", "--kernels"]) == 3
        assert "WRONG" in capsys.readouterr().out
        assert main(["doctor", "--kernels", "--json"]) == 3
        assert json.loads(capsys.readouterr().out)["kernels"]["rows"] == [{"error": "x"}]

    def test_kernels_without_torch(self, machine, capsys):
        self.facts = linux("RTX 4090", build="")
        assert main(["doctor", "--kernels"]) == 3
        assert "setup-incomplete" in capsys.readouterr().err

    def test_explain_is_the_catalogues(self, tmp_path, capsys):
        log = tmp_path / "log"
        log.write_text("AssertionError: Torch not compiled with CUDA enabled")
        assert main(["doctor", "--explain", str(log), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["headline"]["id"] == "TORCH-CPU-BUILD"

    @pytest.mark.parametrize(
        ("right", "code", "text"),
        [
            ({"colour": True, "joint": True}, 0, "selftest passed"),
            (
                {"colour": False, "motion": True, "joint": False},
                1,
                "selftest failed (colour wrong)",
            ),
        ],
    )
    def test_selftest(self, machine, monkeypatch, capsys, right, code, text):
        self.facts = linux("RTX 4090")
        good = Measured("kernels", {"title": "kernels: 1 of 1", "rows": [], "lines": []})
        monkeypatch.setattr(measure, "run", lambda *_: good)
        clip = Clip(17, {"denoise": 1.0, "decode": 2.0}, "red circle", right)
        monkeypatch.setattr(selftest, "make_clip", lambda say: clip)
        assert main(["selftest", "--video"]) == code
        out = capsys.readouterr().out
        assert text in out and "denoise 1.0 s, decode 2.0 s" in out

    def test_selftest_stops_at_a_blocker(self, machine, monkeypatch, capsys):
        monkeypatch.setattr(measure, "run", lambda *_: pytest.fail("went on"))
        assert main(["selftest"]) == 3


@pytest.mark.parametrize(
    ("word", "bash", "powershell"),
    [
        ("torch", "torch", "torch"),
        ("a b", "'a b'", "'a b'"),
        ("it's", "'it'\"'\"'s'", "'it''s'"),
        ("torch==2.13.0+cu130", "torch==2.13.0+cu130", "torch==2.13.0+cu130"),
        ("$HOME", "'$HOME'", "'$HOME'"),
        ("a,b", "a,b", "'a,b'"),
    ],
)
def test_quoting(word, bash, powershell):
    assert shell.quote(word, "bash") == bash
    assert shell.quote(word, "powershell") == powershell


def test_powershell_calls_a_quoted_program():
    words = ["C:\\my env\\python.exe", "-m", "pip"]
    assert shell.line(words, "powershell") == "& 'C:\\my env\\python.exe' -m pip"
    assert shell.line(["python", "-m", "pip"], "powershell") == "python -m pip"
