"""Setup: plans without doing, changes with a way back, repairs only what was complained about."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.bootstrap.checkout import make_ready
from turbodiffusion.bootstrap import gpu, install
from turbodiffusion.bootstrap.environment import Environment, _try_lock
from turbodiffusion.bootstrap.tags import Gpu, Machine
from turbodiffusion.cli.main import main
from turbodiffusion.doctor import clean, setup
from turbodiffusion.doctor.facts import Facts, Package, Torch, Triton
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.setup import Options, Setup, forgotten, plan
from turbodiffusion.doctor.undo import beside
from turbodiffusion.doctor.verdict import Verdict
from turbodiffusion.errors import SetupError

ROOT = Path(__file__).parents[2]
FINE = Verdict((Finding("P05", "ok", "fine"),))
BROKEN = Verdict(
    (
        Finding("P05", "blocker", "torch is broken.", fix="f", command="c", repairable=True),
        Finding("P09", "major", "no compiler.", fix="Install gcc.", command="apt install gcc"),
    )
)


def tree(folder: Path) -> str:
    """A digest of every path and content below a folder, but for the log, which goes on."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.name == "setup.log":
            continue
        digest.update(str(path.relative_to(folder)).encode())
        if path.is_symlink():
            digest.update(os.readlink(path).encode())
        elif path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Bench:
    """A set-up run with stand-ins for the installation and for the checks."""

    def __init__(self, folder: Path, monkeypatch, machine: Machine) -> None:
        self.folder, self.patch = folder / ".venv", monkeypatch
        self.said: list[str] = []
        self.asked: list[str] = []
        self.installed = 0
        self.answer = True
        self.checks: list[tuple[str, ...]] = []
        self.verdicts = [FINE]
        self.facts = Facts()
        self.work = lambda environment: None
        for name in ("TURBODIFFUSION_TORCH", "TURBODIFFUSION_VENV"):
            monkeypatch.setenv(name, "")
        monkeypatch.setattr(gpu, "read_machine", lambda: machine)
        monkeypatch.setattr(install, "ensure", self.ensure)

    def ready(self) -> Environment:
        environment = Environment(ROOT, self.folder)
        make_ready(environment)
        package = environment.site_packages / "torch"
        package.mkdir()
        (package / "version.py").write_text("__version__ = '2.13.0+cpu'\n")
        return environment

    def ensure(self, environment: Environment, extras=(), because: str = "") -> None:
        self.installed += 1
        self.work(environment)

    def check(self, environment: Environment, probes) -> tuple[Facts, Verdict]:
        self.checks.append(tuple(probes))
        return self.facts, self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]

    def agree(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer

    def setup(self, **options) -> Setup:
        asked = Options(venv=str(self.folder), **options)
        return Setup(asked, self.said.append, self.agree, self.check)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch, Machine())


RTX = Machine((Gpu("NVIDIA GeForce RTX 5090", (12, 0)),), (591, 74), "Windows", "AMD64")


class TestPlan:
    def test_first_start_on_windows(self, tmp_path):
        environment = Environment(ROOT, tmp_path / "venv")
        build = setup.tags.choose(RTX)
        lines = plan(environment, RTX, build, "first start")
        assert lines[1] == "GPU: NVIDIA GeForce RTX 5090, capability 12.0, driver 591.74"
        assert "torch 2.13.0+cu132 from the PyTorch wheel index, tag cu132" in lines[4]
        assert lines[5].strip() == "3. triton-windows 3.7.1.post27"
        assert not any("as it is now" in line for line in lines)

    def test_nothing_to_do(self, bench):
        bench.ready()
        assert bench.setup().run() == 0
        assert "Nothing to install: torch 2.13.0+cpu" in bench.text
        assert bench.installed == 0 and bench.asked == []
        assert bench.checks == [setup.CHECKS]

    def test_dry_run_never_installs_nor_asks(self, bench):
        assert bench.setup(dry_run=True).run() == 0
        assert "Because: first start" in bench.text
        assert (bench.installed, bench.asked, bench.checks) == (0, [], [])
        assert not bench.folder.exists()

    def test_no_means_no(self, bench):
        bench.answer = False
        assert bench.setup().run() == 0
        assert bench.said[-1] == "Nothing was changed."
        assert bench.installed == 0 and not bench.folder.exists()

    def test_another_tag_is_a_reason(self, bench):
        bench.ready()
        assert bench.setup(torch="cu126", dry_run=True).run() == 0
        assert "this machine needs torch 2.13.0+cu126, installed is cpu" in bench.text
        assert "the environment as it is now" in bench.text

    def test_a_driver_that_is_too_old_stops_before_anything(self, tmp_path, monkeypatch):
        old = Machine((Gpu("RTX 5090", (12, 0)),), (566, 36), "Windows", "AMD64")
        bench = Bench(tmp_path, monkeypatch, old)
        with pytest.raises(SetupError, match="needs 570") as caught:
            bench.setup().run()
        assert caught.value.code == "setup-driver-old" and caught.value.exit_code == 3
        assert bench.installed == 0


def test_an_installed_package_has_nothing_to_set_up(bench, tmp_path):
    work = bench.setup()
    work.environment = Environment(tmp_path, bench.folder)
    for run in (work.run, work.fix):
        with pytest.raises(SetupError) as caught:
            run()
        assert caught.value.code == "setup-no-checkout"
    assert bench.installed == 0


class TestUndo:
    def spoil(self, environment: Environment) -> None:
        package = environment.site_packages / "torch"
        (package / "version.py").unlink()
        (package / "version.py").write_text("__version__ = '9'\n")  # as pip does: a new file
        (package / "half.py").write_text("")
        (environment.folder / "setup.log").write_text("a new log")
        environment.drop_stamp()

    @pytest.mark.parametrize(
        "error", [SetupError("setup-network", "No net.", "f"), KeyboardInterrupt()]
    )
    def test_a_failed_change_leaves_the_environment_as_it_was(self, bench, error):
        environment = bench.ready()
        before = tree(environment.folder)

        def work(environment: Environment) -> None:
            self.spoil(environment)
            assert tree(environment.folder) != before
            raise error

        bench.work = work
        with pytest.raises(type(error)) as caught:
            bench.setup(torch="cu126").run()
        assert tree(environment.folder) == before
        assert not environment.outdated() or "TURBODIFFUSION_TORCH" in environment.outdated()
        assert not beside(environment.folder).exists()
        assert "as it was" in bench.said[-1]
        assert (environment.folder / "setup.log").read_text() == "a new log"  # the fix names it
        if isinstance(error, SetupError):
            assert caught.value.message == "No net. (Undone.)"

    def test_a_result_that_is_worse_is_undone(self, bench):
        environment = bench.ready()
        before = tree(environment.folder)
        bench.work = self.spoil
        bench.verdicts = [FINE, BROKEN]
        assert bench.setup(torch="cu126").run() == 3
        assert tree(environment.folder) == before
        assert "worse than before" in bench.text and "torch is broken." in bench.text

    def test_a_result_that_is_no_worse_is_kept(self, bench):
        environment = bench.ready()
        bench.work = self.spoil
        bench.verdicts = [BROKEN, BROKEN]
        assert bench.setup(torch="cu126").run() == 3
        assert (environment.site_packages / "torch" / "half.py").exists()
        assert not beside(environment.folder).exists()

    def test_success_keeps_the_change_and_drops_the_copy(self, bench):
        environment = bench.ready()
        bench.work = self.spoil
        assert bench.setup(torch="cu126").run() == 0
        assert (environment.site_packages / "torch" / "half.py").exists()
        assert not beside(environment.folder).exists()

    def test_an_interrupted_change_is_put_back_by_the_next_run(self, bench):
        environment = bench.ready()
        before = tree(environment.folder)
        setup.Snapshot(environment.folder)  # and then the process is killed
        self.spoil(environment)
        seen = []
        bench.work = lambda environment: seen.append(tree(environment.folder))
        assert bench.setup(torch="cu126").run() == 0
        assert seen == [before]

    def test_a_second_run_waits_for_the_whole_change(self, bench):
        bench.ready()
        free = []

        def work(environment: Environment) -> None:
            with open(environment.lock_file, "a+b") as stream:
                free.append(_try_lock(stream))
            with environment.locked():  # as the installation itself does
                pass

        bench.work = work
        assert bench.setup(torch="cu126").run() == 0
        assert free == [False]

    def test_a_folder_of_somebody_else_is_refused(self, bench):
        bench.folder.mkdir()
        (bench.folder / "thesis.txt").write_text("years of work")
        with pytest.raises(SetupError) as caught:
            bench.setup().run()
        assert caught.value.code == "setup-folder-taken"
        assert bench.installed == 0 and (bench.folder / "thesis.txt").exists()


class TestFix:
    def test_only_failed_checks_run_again(self, bench):
        bench.ready()
        bench.verdicts = [BROKEN, BROKEN, FINE]
        assert bench.setup().fix() == 0
        assert bench.checks[0] == tuple(setup.PROBES)
        assert bench.checks[1:] == [("P05",), ("P05",)]
        assert bench.installed == 1
        assert "apt install gcc" in bench.text  # for the user to do

    def test_one_check_by_name(self, bench):
        bench.ready()
        bench.verdicts = [FINE]
        assert bench.setup().fix(("P08",)) == 0
        assert bench.checks == [("P08",)] and bench.installed == 0
        assert "Nothing is left" in bench.text

    def test_dry_run_only_tells(self, bench):
        bench.ready()
        bench.verdicts = [BROKEN]
        assert bench.setup(dry_run=True).fix() == 0
        assert "P05 torch is broken." in bench.text and bench.installed == 0

    def test_without_an_environment_it_is_a_set_up(self, bench):
        assert bench.setup().fix() == 0
        assert bench.installed == 1

    @pytest.mark.parametrize(
        ("probe", "facts", "names"),
        [
            ("P05", Facts(torch=Torch("2.13.0", "cpu")), ()),
            ("P05", Facts(torch=Torch("2.13.0", "cu130", imported=False)), ("torch",)),
            ("P11", Facts(torch=Torch("2.13.0", "cu130", smoke="wrong")), ("torch",)),
            ("P08", Facts(triton=Triton((("triton", "3.5"),))), ("triton",)),
            ("P27", Facts(), ("av",)),
            (
                "P19",
                Facts(packages=(Package("numpy", "2", "broken"), Package("av", "1"))),
                ("numpy",),
            ),
        ],
    )
    def test_what_is_written_anew(self, probe, facts, names):
        assert forgotten([Finding(probe, "blocker", "x")], facts) == names

    def test_a_broken_package_is_forgotten_before_the_installation(self, bench):
        bench.ready()
        bench.facts = Facts(torch=Torch("2.13.0", "cpu", imported=False))
        bench.verdicts = [BROKEN, BROKEN, FINE]
        seen = []
        bench.work = lambda environment: seen.append(environment.distributions())
        assert bench.setup().fix() == 0
        assert seen == [[]]


class TestClean:
    def test_only_after_asking_and_only_what_is_ours(self, bench, tmp_path, monkeypatch):
        environment = bench.ready()
        kernels, models = tmp_path / "kernels", tmp_path / "checkpoints"
        for folder in (kernels, models):
            folder.mkdir()
            (folder / "file").write_text("x")
        monkeypatch.setenv("TRITON_CACHE_DIR", str(kernels))
        before = tree(environment.folder)
        bench.answer = False
        assert clean.run(bench.setup(clean=True)) == 0
        assert tree(environment.folder) == before and kernels.exists()
        assert bench.said[-1] == "Nothing was changed."
        bench.answer = True
        bench.work = lambda environment: make_ready(environment)
        assert clean.run(bench.setup(clean=True)) == 0
        assert not kernels.exists() and models.exists()
        assert not (environment.site_packages / "torch").exists()
        assert bench.asked == ["Remove these and start afresh?"] * 2

    def test_a_failed_fresh_start_brings_the_old_one_back(self, bench):
        environment = bench.ready()
        before = tree(environment.folder)

        def work(environment: Environment) -> None:
            assert not environment.folder.exists()
            raise SetupError("setup-network", "No net.", "f")

        bench.work = work
        with pytest.raises(SetupError):
            clean.run(bench.setup(clean=True))
        assert tree(environment.folder) == before

    def test_dry_run(self, bench, tmp_path, monkeypatch):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
        (tmp_path / "kernels").mkdir()
        bench.ready()
        assert clean.run(bench.setup(clean=True, dry_run=True)) == 0
        assert "Removed: compiled kernels" in bench.text and (tmp_path / "kernels").exists()


class TestCommand:
    @pytest.fixture(autouse=True)
    def variables(self, monkeypatch):
        monkeypatch.setenv("TURBODIFFUSION_TORCH", "")  # --torch sets it for the run

    def test_dry_run(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(install, "ensure", lambda *_, **__: pytest.fail("installed"))
        assert main(["setup", "--dry-run", "--venv", str(tmp_path / "v"), "--torch", "cu126"]) == 0
        assert "torch 2.13.0+cu126" in capsys.readouterr().out

    def test_unknown_tag(self, capsys):
        assert main(["setup", "--torch", "cu118"]) == 3
        assert "--torch is 'cu118'; it may be cpu, cu126" in capsys.readouterr().err

    def test_unknown_check(self, capsys):
        assert main(["setup", "--fix", "P99"]) == 2
        assert "doctor-probe-unknown" in capsys.readouterr().err

    def test_two_things_at_once(self, capsys):
        assert main(["setup", "--wsl", "--docker"]) == 2
        assert "one at a time" in capsys.readouterr().err

    def test_without_a_terminal_only_yes_answers(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(install, "ensure", lambda *_, **__: pytest.fail("installed"))
        monkeypatch.setattr(gpu, "read_machine", lambda: Machine())
        assert main(["setup", "--venv", str(tmp_path / "v")]) == 0
        assert "--yes does" in capsys.readouterr().out
