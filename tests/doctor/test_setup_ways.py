"""The other ways to an environment: Docker, WSL, and the entry scripts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.doctor.machines import linux, wsl
from turbodiffusion.bootstrap.tags import KNOWN, Gpu, Machine
from turbodiffusion.cli.main import build_parser
from turbodiffusion.doctor import docker
from turbodiffusion.doctor.facts import Compiler, Memory
from turbodiffusion.doctor.wsl import STEPS, guide

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = ["FROM", "RUN", "WORKDIR", "COPY", "ENV", "VOLUME", "ENTRYPOINT", "CMD"]


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


class TestDocker:
    @pytest.fixture
    def parts(self):
        return instructions(docker.dockerfile("cu130"))

    def test_it_is_made_of_known_instructions_and_begins_with_an_image(self, parts):
        assert parts[0] == ("FROM", "python:3.12-slim")
        assert {name for name, _ in parts} <= set(INSTRUCTIONS)
        assert [name for name, _ in parts].count("ENTRYPOINT") == 1

    def test_lists_are_json(self, parts):
        for name, value in parts:
            if name in ("ENTRYPOINT", "CMD", "VOLUME"):
                assert all(isinstance(word, str) for word in json.loads(value))

    def test_everything_that_is_copied_exists_and_is_sent_along(self, parts):
        kept = [line[1:] for line in docker.IGNORE.splitlines() if line.startswith("!")]
        for name, value in parts:
            if name == "COPY":
                for source in value.split()[:-1]:
                    assert (ROOT / source).exists() and source in kept

    def test_its_set_up_is_a_command_that_exists(self, parts):
        runs = [value for name, value in parts if name == "RUN" and "turbo.py" in value]
        words = shlex.split(runs[0].partition("&&")[0])
        assert words[:2] == ["python", "turbo.py"]
        args = build_parser("setup").parse_args(words[2:])
        assert (args.command, args.torch, args.yes) == ("setup", "cu130", True)

    def test_environment_names_the_tag_and_the_driver_parts(self, parts):
        variables = dict(
            word.split("=", 1) for name, value in parts if name == "ENV" for word in value.split()
        )
        assert variables["TURBODIFFUSION_TORCH"] == "cu130"
        assert set(variables["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}
        volumes = json.loads(next(value for name, value in parts if name == "VOLUME"))
        folders = [v for k, v in variables.items() if v.startswith("/")]
        assert folders and all(any(f.startswith(v) for v in volumes) for f in folders)

    def test_the_environment_is_not_below_a_volume(self, parts):
        """What is written below a volume while building is lost."""
        volumes = json.loads(next(value for name, value in parts if name == "VOLUME"))
        assert not any("/turbodiffusion/.venv".startswith(v + "/") for v in volumes)

    @pytest.mark.parametrize(
        ("asked", "machine", "tag"),
        [
            ("cu126", Machine(), "cu126"),
            ("", Machine(), "cu130"),
            ("", Machine((Gpu("V100", (7, 0)),), (580,)), "cu126"),
            ("", Machine((Gpu("5090", (12, 0)),), (580,)), "cu132"),
            ("", Machine((Gpu("5090", (12, 0)),), (566,)), "cu130"),
        ],
    )
    def test_tag(self, asked, machine, tag):
        assert docker.choose_tag(asked, machine) == tag
        assert tag in KNOWN

    def test_files_are_written_once_and_others_are_kept(self, tmp_path):
        said: list[str] = []

        def run(dry: bool = False, yes: bool = False) -> None:
            said.clear()
            docker.run("cu126", tmp_path, dry, lambda _: yes, said.append, tmp_path)

        run(dry=True)
        assert not (tmp_path / "Dockerfile").exists() and "FROM python" in said[0]
        run()
        assert (tmp_path / "Dockerfile").read_text() == docker.dockerfile("cu126")
        assert "docker run --rm --gpus all" in said[-1] and "Neither was run" in said[-1]
        run()
        assert "up to date" in said[0]
        (tmp_path / "Dockerfile").write_text("FROM mine\n")
        run()
        assert (tmp_path / "Dockerfile").read_text() == "FROM mine\n"
        run(yes=True)
        assert (tmp_path / "Dockerfile").read_text() == docker.dockerfile("cu126")


class TestWsl:
    def test_outside_every_step_has_a_command_and_a_check(self):
        lines = guide(linux())
        assert len(lines) == 3 * len(STEPS)
        assert not any(". done" in line for line in lines)

    def test_inside_what_is_there_is_ticked_off(self):
        lines = guide(wsl("RTX 5090"))
        assert [line.partition(".")[0] for line in lines if ". done" in line] == list("12345678")

    def test_inside_without_the_library(self):
        facts = replace(
            wsl("", build=""),
            memory=Memory(8 * 10**9),
            compiler=Compiler(found=""),
            root="/mnt/c/t",
        )
        open_steps = [line for line in guide(facts) if re.match(r"\d\. (?!done)", line)]
        assert [line[0] for line in open_steps] == list("345678")


class TestEntryScripts:
    @pytest.mark.skipif(os.name == "nt", reason="a POSIX shell script")
    def test_the_shell_script_only_calls_turbo_py(self, tmp_path):
        folder = tmp_path / "a b"
        folder.mkdir()
        shutil.copy(ROOT / "turbo.sh", folder)
        (folder / "turbo.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)")
        done = subprocess.run(
            [str(folder / "turbo.sh"), "generate", "a red circle"], capture_output=True, text=True
        )
        assert (done.stdout, done.returncode) == ("['generate', 'a red circle']\n", 7)

    @pytest.mark.skipif(os.name == "nt", reason="a POSIX shell script")
    def test_without_a_python_it_says_what_to_do(self, tmp_path):
        (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
        done = subprocess.run(
            ["/bin/sh", str(ROOT / "turbo.sh"), "doctor"],
            capture_output=True,
            text=True,
            env={"PATH": str(tmp_path)},
        )
        assert done.returncode == 3 and "error [setup-python]" in done.stderr

    def test_the_powershell_script_only_calls_turbo_py(self):
        """Read, not run: each call is Python with a question about its version, or turbo.py."""
        text = (ROOT / "turbo.ps1").read_text()
        calls = [line.strip() for line in text.splitlines() if line.strip().startswith("& ")]
        assert calls == ["& $program @which -c $test 2>$null", "& $program @which $door @args"]
        assert "Join-Path $PSScriptRoot 'turbo.py'" in text
        assert text.count("{") == text.count("}") and text.count("(") == text.count(")")
        assert text.isascii()  # Windows PowerShell reads scripts in the system's code page
