"""Reading the real machine: what programs print, what files say, and how long it may take."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from turbodiffusion.bootstrap.environment import Environment, base_python
from turbodiffusion.doctor import readings
from turbodiffusion.doctor.child import Child, run_all
from turbodiffusion.doctor.facts import Driver, GpuFacts
from turbodiffusion.doctor.readings import graphics, interpreter, packages, storage, system
from turbodiffusion.doctor.readings.interpreter import ROOT, Target

LINE = (
    "NVIDIA GeForce RTX 5090, GPU-1, 12.0, 591.74, 32607, 30000, Default, [N/A], WDDM, 4, 16, 5, 16"
)
SLICED = (
    "NVIDIA H100 80GB HBM3, GPU-2, 9.0, 580.65.06, 81559, 81000, Default, Enabled, [N/A], "
    "[N/A], [N/A], [N/A], [N/A]"
)


class TestGraphics:
    def test_windows_line(self):
        gpus, driver = graphics.parse(LINE)
        assert driver == (591, 74)
        assert gpus == (
            GpuFacts(
                "NVIDIA GeForce RTX 5090",
                (12, 0),
                "GPU-1",
                32607 * 2**20,
                30000 * 2**20,
                "Default",
                False,
                "WDDM",
                "4x16 of 5x16",
            ),
        )

    def test_fields_that_are_not_told(self):
        (gpu,), driver = graphics.parse(SLICED)
        assert (gpu.mig, gpu.model, gpu.link, driver) == (True, "", "", (580, 65, 6))

    @pytest.mark.parametrize(
        "text", ["", "No devices were found", "NVIDIA-SMI has failed.", LINE[:40]]
    )
    def test_no_answer(self, text):
        assert graphics.parse(text) == ((), ())

    def test_the_library_serves_where_nvidia_smi_is_missing(self):
        counted = (GpuFacts("NVIDIA L4", (8, 9), total=24),)
        driver = Driver(True, "", 0, 12080, module=(570, 86, 15))
        gpus, known = graphics.combine(((), ()), (driver, counted))
        assert gpus == counted and known.version == (570, 86, 15)
        gpus, known = graphics.combine(((), ()), (Driver(True, "", 0, 12080), counted))
        assert known.version == (570,)

    def test_nvidia_smi_wins(self):
        known = graphics.parse(LINE)
        gpus, driver = graphics.combine(
            known, (Driver(True, "", 0, 13010), (GpuFacts("x", (1, 1)),))
        )
        assert gpus == known[0] and driver.version == (591, 74)


def fake_site(folder: Path, name: str, version: str, *requires: str) -> Path:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    return info


@pytest.fixture
def target(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    return Target(Path(sys.executable), (site,), ROOT, Environment(ROOT, tmp_path / "v"), False)


class TestPackages:
    def put_torch(self, target: Target, version: str, full: str) -> None:
        site = target.folders[0]
        fake_site(site, "torch", version, 'triton==3.7.1; platform_system == "Linux"')
        (site / "torch").mkdir()
        (site / "torch" / "version.py").write_text(f"__version__ = '{full}'\n")

    @pytest.mark.parametrize(
        ("version", "full", "expected"),
        [
            ("2.13.0+cu130", "2.13.0+cu130", ("2.13.0", "cu130")),
            ("2.13.0", "2.13.0+cu130", ("2.13.0", "cu130")),  # the default index on Linux
            ("2.13.0", "2.13.0+cpu", ("2.13.0", "cpu")),  # the default index on Windows
            ("2.13.0", "2.13.0", ("2.13.0", "cpu")),
            (
                "2.12.0.dev20260408+cu128",
                "2.12.0.dev20260408+cu128",
                ("2.12.0.dev20260408", "cu128"),
            ),
        ],
    )
    def test_torch(self, target, version, full, expected):
        self.put_torch(target, version, full)
        found = packages.read_torch(target)
        assert (found.version, found.tag) == expected
        assert found.wants_triton == "3.7.1" and found.imported is None

    def test_no_torch(self, target):
        assert packages.read_torch(target).version == ""
        assert packages.missing(target) == ()

    def test_half_a_torch(self, target):
        fake_site(target.folders[0], "torch", "2.13.0+cu130")
        found = packages.read_torch(target)
        assert found.imported is False and "incomplete" in found.error

    def test_missing_packages_are_named(self, target):
        self.put_torch(target, "2.13.0", "2.13.0")
        fake_site(target.folders[0], "numpy", "2.4.6")
        found = packages.missing(target)
        assert "av" in found and "safetensors" in found
        assert "numpy" not in found and "torch" not in found

    def test_triton_where_it_belongs(self, target):
        fake_site(target.folders[0], "triton-windows", "3.7.1.post27")
        (target.folders[0] / "triton").mkdir()
        (target.folders[0] / "triton" / "__init__.py").touch()
        found = packages.read_triton(target)
        assert found.distributions == (("triton-windows", "3.7.1.post27"),)
        assert not found.shadowed

    def test_triton_behind_a_folder_of_that_name(self, target, tmp_path):
        fake_site(target.folders[0], "triton", "3.7.1")
        (target.folders[0] / "triton").mkdir()
        (target.folders[0] / "triton" / "__init__.py").touch()
        (tmp_path / "work" / "triton").mkdir(parents=True)
        (tmp_path / "work" / "triton" / "__init__.py").touch()
        both = Target(
            target.python, (tmp_path / "work", *target.folders), ROOT, target.environment, False
        )
        found = packages.read_triton(both)
        assert found.shadowed and str(tmp_path / "work") in found.origin


class TestStorage:
    def test_a_folder_that_does_not_exist_yet(self, tmp_path):
        found = storage.read_folder("models", tmp_path / "a" / "b")
        assert found.free > 0 and found.writable and found.path.endswith("b")

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/home/u/x", ""),
            ("/mnt/share/models", "nfs4"),
            ("/mnt/c/turbo", "9p"),
            ("/mnt/shared", ""),
        ],
    )
    def test_network_disks(self, tmp_path, path, kind):
        mounts = tmp_path / "mounts"
        rows = ["/dev/sda1 / ext4 rw", "srv:/x /mnt/share nfs4 rw", "C: /mnt/c 9p rw"]
        mounts.write_text("\n".join(rows))
        assert storage.network_system(path, str(mounts)) == kind

    @pytest.mark.parametrize(
        ("name", "text", "limit"),
        [
            ("memory.max", "8589934592\n", 8589934592),
            ("memory.max", "max\n", 0),
            ("memory/memory.limit_in_bytes", "4294967296\n", 4294967296),
        ],
    )
    def test_limit_of_a_container(self, tmp_path, name, text, limit):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        assert storage.cgroup_limit(str(tmp_path)) == limit

    def test_damaged_checkpoints(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TURBODIFFUSION_MODELS", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        whole = len(header).to_bytes(8, "little") + header + bytes(8)
        (tmp_path / "whole.safetensors").write_bytes(whole)
        (tmp_path / "cut.safetensors").write_bytes(whole[:-3])
        (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>Sign in</title>")
        (tmp_path / "pointer.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\n"
        )
        with zipfile.ZipFile(tmp_path / "whole.pth", "w") as file:
            file.writestr("archive/data.pkl", bytes(4000))
        (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-100])
        found = {Path(path).name for path, _, _ in storage.damaged_files()}
        assert found == {"cut.safetensors", "cut.pth", "page.pth", "pointer.safetensors"}


class TestSystem:
    def test_hardware_on_the_bus(self, tmp_path):
        for number, (vendor, kind) in enumerate(
            [
                ("0x10de", "0x030000"),
                ("0x10de", "0x040300"),
                ("0x8086", "0x030000"),
                ("0x10de", "0x030200"),
            ]
        ):
            device = tmp_path / str(number)
            device.mkdir()
            (device / "vendor").write_text(f"{vendor}\n")
            (device / "class").write_text(f"{kind}\n")
        assert system._nvidia_hardware(tmp_path) == 2
        assert system._nvidia_hardware(tmp_path / "nowhere") == 0

    @pytest.mark.parametrize(
        ("prefix", "base", "files", "kind"),
        [
            ("/v", "/usr", (), "venv"),
            ("/usr", "/usr", (), "system"),
            ("/opt/c", "/opt/c", ("conda-meta/",), "conda"),
            ("C:\\emb", "C:\\emb", ("python312._pth",), "embedded"),
            (
                "C:\\Program Files\\WindowsApps\\Python.3.12",
                "C:\\Program Files\\WindowsApps\\P",
                (),
                "store",
            ),
        ],
    )
    def test_kinds_of_python(self, tmp_path, prefix, base, files, kind):
        for name in files:
            (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
        assert interpreter.kind(prefix, base, tmp_path) == kind

    @pytest.mark.parametrize(
        ("folder", "expected"), [(".", "turbo.py"), ("elsewhere", "'{}/a b/turbo.py'")]
    )
    def test_how_the_command_was_started(self, tmp_path, monkeypatch, folder, expected):
        (tmp_path / "a b").mkdir()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / ("a b" if folder == "." else folder))
        monkeypatch.setattr(sys, "argv", [str(tmp_path / "a b" / "turbo.py"), "doctor"])
        assert system.launcher().endswith(" " + expected.format(tmp_path))
        monkeypatch.setattr(sys, "argv", ["/x/bin/turbodiffusion", "doctor"])
        assert system.launcher() == "turbodiffusion"


FIRST_STAGE = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
from turbodiffusion.doctor import readings
from turbodiffusion.doctor.child import Child, run_all
from turbodiffusion.doctor.verdict import judge
facts = readings.read(())
verdict = judge(facts)
spent = time.perf_counter() - start
files = {m: getattr(sys.modules[m], "__file__", "") or "" for m in set(sys.modules) - before}
own = [name for name, path in files.items() if "site-packages" in path]
print(spent, len(verdict.findings), own)
"""


def test_first_stage_is_short_and_imports_nothing_of_others():
    """Tried until it is quick enough, since other work may hold up one or the other start."""
    tries: list[float] = []
    while len(tries) < 10 and min(tries, default=1.0) >= 0.5:
        done = subprocess.run(
            [base_python(), "-c", FIRST_STAGE], cwd=ROOT, capture_output=True, text=True, check=True
        )
        spent, count, own = done.stdout.split(maxsplit=2)
        assert own.strip() == "[]" and int(count) >= 26
        tries.append(float(spent))
    assert min(tries) < 0.5


def test_the_whole_stays_below_ten_seconds():
    facts = readings.read()
    assert 0 < facts.seconds["first"] < facts.seconds["all"] < 10
    assert facts.network and facts.video in ("ok", "")  # an unfinished child leaves it unknown


def test_what_the_children_tell_about_this_machine():
    """With time enough, since other work may hold them up."""
    answers = run_all(
        sys.executable,
        {
            "torch": Child("torch_facts", limit=120.0),
            "operators": Child("operator_facts", (str(ROOT),), limit=120.0),
            "video": Child("video_facts", (str(ROOT),), limit=120.0),
        },
    )
    assert answers["video"] == {"video": "ok"}
    assert {"cuda", "cudnn", "architectures", "smoke", "seconds"} <= answers["torch"].keys()
    assert answers["torch"]["smoke"] in ("", "ok")
    rows = {row[1]: row for row in answers["operators"]["operators"]}
    assert rows.keys() >= {"attention", "linear", "norm", "rope", "sla"}
    assert all(reason.endswith(".") for *_, reason in rows.values())
