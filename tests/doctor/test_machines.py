"""What doctor says about machines that are not here: the verdict, every problem, every fix.

The first is the machine that the original plan of this project was written for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.doctor.machines import container, folders, gpu, linux, torch, windows, wsl
from turbodiffusion.doctor.facts import (
    GB,
    Compiler,
    Driver,
    Facts,
    Memory,
    Package,
    Platform,
    Python,
    Triton,
)
from turbodiffusion.doctor.facts import Windows as WindowsFacts
from turbodiffusion.doctor.verdict import judge

PLAN_TORCH = "2.12.0.dev20260408+cu128"
PLAN = windows("RTX 5090", "591.74", PLAN_TORCH)
READY, WARN, BLOCKED = "ready", "ready with warnings", "blocked"
PAGE = "https://www.nvidia.com/drivers"
SETUP = "turbodiffusion setup"
EMBEDDED = 'turbodiffusion generate "a red circle moving right on a black background"'
FULL_PYTHON = "winget install --exact --id Python.Python.3.12"
UBUNTU_DRIVER = "sudo ubuntu-drivers install && sudo reboot"
MIG = (gpu("H100", mig=True),)
BUSY = (gpu("RTX 4090", free=2 * 2**30),)
OWN = Python(
    executable="/opt/my env/bin/python", environment="/opt/my env", kind="venv", ours=False
)
LIMIT_8 = Memory(64 * GB, 7 * GB, 0, 8 * GB)
READ_ONLY = replace(folders()[3], writable=False)
STALE = "C:\\turbo\\.venv\\Scripts\\vcruntime140.dll"
STUB = Driver(True, "", 34, 0, (), ())
COMPAT = Driver(True, "", 804, 0, (535, 183, 1), (535, 183, 1))
MIXED = Driver(True, "", 803, 0, (580, 65, 6), (575, 51, 3))

ABI = "ImportError: numpy was compiled for another Python"

Row = tuple[str, Facts, str, str, list[str]]

MACHINES: list[Row] = [
    # name, facts, verdict, problems as "probe:level", commands in order
    ("the plan's machine: 5090, 591.74, Windows, dev torch cu128", PLAN, READY, "", []),
    (
        "the plan's machine without Triton",
        replace(PLAN, triton=Triton(), compiler=Compiler(found="")),
        WARN,
        "P08:major",
        [f"{SETUP} --fix P08"],
    ),
    (
        "the plan's own choice: torch cu126 for a 5090",
        windows("RTX 5090", "591.74", "2.13.0+cu126"),
        BLOCKED,
        "P06:blocker",
        [f"{SETUP} --fix P06"],
    ),
    (
        "V100, driver 580, default torch",
        linux("V100", "580.65.06", "2.13.0+cu130"),
        BLOCKED,
        "P06:blocker",
        [f"{SETUP} --fix P06"],
    ),
    ("V100, driver 580, torch cu126", linux("V100", "580.65.06", "2.13.0+cu126"), READY, "", []),
    (
        "5090, driver 566, Windows",
        windows("RTX 5090", "566.36", "2.13.0+cu126"),
        BLOCKED,
        "P07:blocker",
        [f"Start-Process {PAGE}"],
    ),
    (
        "5090, driver 565, Ubuntu, no torch",
        linux("RTX 5090", "565.57.01", ""),
        BLOCKED,
        "P07:blocker P05:blocker",
        [UBUNTU_DRIVER, SETUP],
    ),
    ("RTX 2080", linux("RTX 2080"), READY, "", []),
    ("T4 in the cloud", linux("T4", "535.183.01", "2.13.0+cu126"), READY, "", []),
    ("GTX 1080", linux("GTX 1080", build="2.13.0+cu126"), READY, "", []),
    ("RTX 3060", linux("RTX 3060"), READY, "", []),
    ("RTX 4090 on Windows", windows("RTX 4090", build="2.13.0+cu130"), READY, "", []),
    ("H100 in MIG slices", linux("H100", gpus=MIG), READY, "", []),
    (
        "GB10",
        linux("GB10", "580.95.05", "2.13.0+cu132", platform=Platform(arch="aarch64")),
        READY,
        "",
        [],
    ),
    (
        "GB10 with torch cu126",
        linux("GB10", "580.95.05", "2.13.0+cu126", platform=Platform(arch="aarch64")),
        BLOCKED,
        "P06:blocker",
        [f"{SETUP} --fix P06"],
    ),
    ("B200, driver 570, torch cu128", linux("B200", "570.86.15", "2.11.0+cu128"), READY, "", []),
    (
        "B200, driver 570, torch cu130",
        linux("B200", "570.86.15", "2.13.0+cu130"),
        BLOCKED,
        "P07:blocker",
        [f"{SETUP} --fix P07"],
    ),
    (
        "B300, driver 570",
        linux("B300", "570.86.15", "2.11.0+cu128"),
        BLOCKED,
        "P07:blocker",
        [UBUNTU_DRIVER],
    ),
    (
        "A100, driver 470",
        linux("A100", "470.256.02", "2.13.0+cu126"),
        BLOCKED,
        "P07:blocker",
        [UBUNTU_DRIVER],
    ),
    (
        "H100, driver 550, default torch",
        linux("H100", "550.54.14", "2.13.0+cu130"),
        BLOCKED,
        "P07:blocker",
        [f"{SETUP} --fix P07"],
    ),
    (
        "K80, older than any build",
        linux("K80", "470.256.02", "2.13.0+cpu"),
        WARN,
        "P04:major",
        [EMBEDDED],
    ),
    (
        "Jetson Orin, embedded",
        linux("Orin", "540.4.0", "2.13.0+cpu", platform=Platform(arch="aarch64")),
        WARN,
        "P04:major",
        [EMBEDDED],
    ),
    (
        "WSL without the library",
        wsl("", build="2.13.0+cpu"),
        WARN,
        "P02:major",
        [f"powershell.exe Start-Process {PAGE}"],
    ),
    ("WSL with a 5090", wsl("RTX 5090"), READY, "", []),
    (
        "WSL with half of 16 GB",
        wsl("RTX 4090", memory=Memory(8 * GB, 7 * GB)),
        WARN,
        "P15:major",
        [
            r"printf '[wsl2]\nmemory=24GB\n' >> "
            '"$(wslpath "$(cmd.exe /c echo %USERPROFILE% | tr -d "\\r")")/.wslconfig"'
            " && wsl.exe --shutdown"
        ],
    ),
    (
        "container without a GPU",
        container(build="2.13.0+cpu"),
        WARN,
        "P02:major",
        ["docker run --rm --gpus all -it IMAGE"],
    ),
    (
        "container on a computer with two GPUs, started without",
        container(platform=Platform(container="podman", nvidia_hardware=2)),
        BLOCKED,
        "P02:blocker",
        ["podman run --rm --device nvidia.com/gpu=all -it IMAGE"],
    ),
    (
        "container with devices but no library",
        container(platform=Platform(container="docker", nvidia_devices=True, nvidia_hardware=1)),
        BLOCKED,
        "P24:blocker P02:blocker",
        [
            "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
            "docker run --rm --gpus all -it IMAGE",
        ],
    ),
    ("container with a GPU", container("A100"), READY, "", []),
    (
        "container with a GPU, no compiler",
        container("A100", compiler=Compiler(found="")),
        WARN,
        "P09:major",
        ["apt install -y gcc libc6-dev"],
    ),
    (
        "container limited to 8 GB",
        container("A100", memory=LIMIT_8),
        WARN,
        "P15:major",
        ["docker run --rm --gpus all --memory 32g -it IMAGE"],
    ),
    (
        "CPU torch on Windows",
        windows("RTX 4090", build="2.13.0+cpu"),
        BLOCKED,
        "P05:blocker",
        [f"{SETUP} --fix P05"],
    ),
    (
        "CPU torch in somebody's own environment",
        linux("RTX 4090", build="2.13.0+cpu", python=OWN),
        BLOCKED,
        "P05:blocker",
        [
            "'/opt/my env/bin/python' -m pip install torch==2.13.0+cu130 "
            "--index-url https://download.pytorch.org/whl/cu130"
        ],
    ),
    (
        "Triton of another torch",
        linux("RTX 4090", triton=Triton((("triton", "3.5.1"),))),
        WARN,
        "P08:major",
        [f"{SETUP} --fix P08"],
    ),
    (
        "triton-windows of another torch",
        windows("RTX 4090", triton=Triton((("triton-windows", "3.5.1.post24"),))),
        WARN,
        "P08:major",
        [f"{SETUP} --fix P08"],
    ),
    (
        "plain triton on Windows",
        windows("RTX 4090", triton=Triton((("triton", "3.7.1"),))),
        WARN,
        "P08:major",
        [f"{SETUP} --fix P08"],
    ),
    (
        "a folder named triton",
        linux(
            "RTX 4090",
            triton=Triton((("triton", "3.7.1"),), "/home/u/my work/triton", shadowed=True),
        ),
        WARN,
        "P08:major",
        ["mv '/home/u/my work/triton' '/home/u/my work/triton.renamed'"],
    ),
    (
        "embeddable Python",
        windows("RTX 5090", build="", python=Python(kind="embedded", headers=False)),
        BLOCKED,
        "P17:blocker P05:blocker",
        [FULL_PYTHON, SETUP],
    ),
    (
        "Python 3.9",
        linux("RTX 4090", build="", python=Python((3, 9, 18))),
        BLOCKED,
        "P17:blocker P05:blocker",
        ["sudo apt install -y python3.12 python3.12-venv", SETUP],
    ),
    (
        "32-bit Python on Windows",
        windows("RTX 4090", build="", python=Python(bits=32)),
        BLOCKED,
        "P17:blocker P05:blocker",
        [FULL_PYTHON, SETUP],
    ),
    (
        "Python without headers on Fedora",
        linux(
            "RTX 4090",
            python=Python(headers=False),
            platform=Platform(distribution="fedora"),
        ),
        WARN,
        "P10:major",
        ["sudo dnf install -y python3.12-devel"],
    ),
    (
        "no room for anything",
        linux("RTX 4090", folders=folders(0.3 * GB)),
        BLOCKED,
        "P14:blocker P14:blocker P14:blocker",
        [
            "du -xh --max-depth=2 /home/u/turbo/.venv | sort -h | tail",
            "du -xh --max-depth=2 /home/u/turbo/checkpoints | sort -h | tail",
            "du -xh --max-depth=2 /tmp | sort -h | tail",
        ],
    ),
    (
        "no room for a model",
        linux("RTX 4090", folders=folders(models=5 * GB)),
        WARN,
        "P14:major",
        ["du -xh --max-depth=2 /home/u/turbo/checkpoints | sort -h | tail"],
    ),
    (
        "no room for a first start",
        linux("RTX 4090", build="", folders=folders(environment=4 * GB)),
        BLOCKED,
        "P05:blocker P14:blocker",
        [SETUP, "du -xh --max-depth=2 /home/u/turbo/.venv | sort -h | tail"],
    ),
    (
        "4090 beside 5090",
        linux("RTX 4090, RTX 5090", build="2.13.0+cu132"),
        READY,
        "",
        [],
    ),
    (
        "GTX 1080 beside 4090",
        linux("GTX 1080, RTX 4090"),
        WARN,
        "P04:minor",
        ["export CUDA_VISIBLE_DEVICES=GPU-RTX-4090"],
    ),
    (
        "GTX 1080 beside 5090 on Windows",
        windows("RTX 5090, GTX 1080"),
        WARN,
        "P04:minor",
        ["$env:CUDA_VISIBLE_DEVICES = 'GPU-RTX-5090'"],
    ),
    (
        "a V100 chosen beside a 5090",
        linux(
            "V100, RTX 5090",
            build="2.13.0+cu126",
            variables={"CUDA_VISIBLE_DEVICES": "GPU-V100"},
        ),
        READY,
        "",
        [],
    ),
    (
        "a 5090 chosen beside a GTX 1080, by number",
        linux(
            "GTX 1080, RTX 5090",
            build="2.13.0+cu132",
            variables={"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        ),
        READY,
        "",
        [],
    ),
    ("laptop without a GPU", linux(build="2.13.0+cpu"), WARN, "P04:major", [EMBEDDED]),
    (
        "Windows without a GPU, not set up",
        windows(build=""),
        BLOCKED,
        "P05:blocker P04:major",
        [SETUP, EMBEDDED],
    ),
    (
        "Mac",
        linux(build="2.13.0+cpu", platform=Platform("Darwin", "25", "arm64", "", "")),
        WARN,
        "P04:major",
        [EMBEDDED],
    ),
    (
        "GPU without a driver on Debian",
        linux(build="2.13.0+cpu", platform=Platform(distribution="debian", nvidia_hardware=1)),
        BLOCKED,
        "P02:blocker",
        ["sudo apt install nvidia-driver && sudo reboot"],
    ),
    (
        "driver updated, not restarted",
        replace(linux("RTX 4090"), gpus=(), driver=MIXED),
        BLOCKED,
        "P02:blocker P03:blocker",
        ["sudo reboot"],
    ),
    (
        "stub library on the path",
        replace(linux("RTX 4090"), gpus=(), driver=STUB),
        BLOCKED,
        "P02:blocker",
        ["unset LD_LIBRARY_PATH"],
    ),
    (
        "compatibility library in a container",
        replace(container("A100"), gpus=(), driver=COMPAT),
        BLOCKED,
        "P02:blocker",
        ["unset LD_LIBRARY_PATH"],
    ),
    (
        "every GPU hidden",
        linux("RTX 4090", variables={"CUDA_VISIBLE_DEVICES": ""}),
        BLOCKED,
        "P04:blocker",
        ["unset CUDA_VISIBLE_DEVICES"],
    ),
    (
        "compute mode Prohibited",
        linux("A100", gpus=(gpu("A100", compute_mode="Prohibited"),)),
        BLOCKED,
        "P04:blocker",
        ["sudo nvidia-smi -c 0"],
    ),
    (
        "kernels' cache that belongs to root",
        linux("RTX 4090", folders=(*folders()[:3], READ_ONLY, folders()[4])),
        WARN,
        "P13:major",
        ['export TRITON_CACHE_DIR="$HOME/turbo"'],
    ),
    ("others use the GPU", linux("RTX 4090", gpus=BUSY), WARN, "P16:minor", ["nvidia-smi"]),
    (
        "2 GB laptop GPU",
        linux("MX150", build="2.13.0+cu126"),
        WARN,
        "P16:major",
        ["turbodiffusion plan"],
    ),
    (
        "torch 2.10 with its old cuDNN",
        linux(
            "H100", torch=torch("2.10.0+cu128", cudnn=91002), triton=Triton((("triton", "3.6.0"),))
        ),
        WARN,
        "P26:major",
        [f"{SETUP} --fix P26"],
    ),
    (
        "torch 2.7 from the plan",
        linux("RTX 4090", build="2.7.0+cu126", triton=Triton((("triton", "3.3.0"),))),
        BLOCKED,
        "P05:blocker",
        [f"{SETUP} --fix P05"],
    ),
    (
        "torch fails to import on Windows",
        windows(
            "RTX 4090",
            torch=torch("2.13.0+cu130", imported=False, error="OSError: [WinError 126] c10.dll"),
        ),
        BLOCKED,
        "P05:blocker",
        [f"{SETUP} --fix P05"],
    ),
    (
        "numpy of another Python, which torch and the video writer repeat",
        linux(
            "RTX 4090",
            torch=torch("2.13.0+cu130", imported=False, error=ABI),
            packages=(
                Package("numpy", "2.4.6", ABI),
                Package("flash-attn", "2.8", "ImportError: x"),
            ),
            video=ABI,
        ),
        BLOCKED,
        "P19:blocker",
        [f"{SETUP} --fix P19"],
    ),
    (
        "old Visual C++ runtime, and an older one beside Python",
        windows("RTX 4090", windows=WindowsFacts(runtime=(14, 29), stale_runtime=STALE)),
        WARN,
        "P23:major P23:major",
        [
            "winget install --exact --id Microsoft.VCRedist.2015+.x64",
            f"Rename-Item {STALE} {STALE}.old",
        ],
    ),
    (
        "interpreter mode and CC left on",
        linux(
            "RTX 4090",
            variables={"TRITON_INTERPRET": "1", "CC": "/old/gcc"},
            compiler=Compiler("/old/gcc", False, "gcc"),
        ),
        WARN,
        "P09:major P18:minor",
        ["unset CC", "unset TRITON_INTERPRET"],
    ),
    (
        "Alpine",
        linux(build="", platform=Platform(distribution="alpine", libc="musl")),
        BLOCKED,
        "P01:blocker P05:blocker P04:major",
        ["docker run --rm --gpus all -it python:3.12-slim bash", SETUP, EMBEDDED],
    ),
]


@pytest.mark.parametrize(
    ("facts", "word", "problems", "commands"),
    [row[1:] for row in MACHINES],
    ids=[row[0] for row in MACHINES],
)
def test_verdict_and_fixes(facts: Facts, word: str, problems: str, commands: list[str]):
    verdict = judge(facts)
    assert " ".join(f"{f.probe}:{f.level}" for f in verdict.problems) == problems
    assert verdict.word == word
    assert verdict.fixes == commands
    assert verdict.exit_code == (3 if word == BLOCKED else 0)


def test_there_are_enough_machines():
    assert len({row[0] for row in MACHINES}) == len(MACHINES) >= 30
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text("utf-8")
    assert f"{len(MACHINES)} of them" in page


def test_the_plans_machine_misses_no_tool():
    """Neither nvcc nor Visual Studio, Conda or flash-attn is called missing, with or without."""
    for tools in ({}, {"nvcc": "C:\\CUDA\\bin\\nvcc.exe", "Conda": "C:\\conda\\conda.exe"}):
        verdict = judge(replace(PLAN, tools=tools))
        about = [f for f in verdict.findings if "nvcc" in f.found or "Visual Studio" in f.found]
        assert [(f.probe, f.level) for f in about] == [("P25", "info")]
        assert about[0].found.startswith("Not needed: nvcc, Visual Studio, Conda, flash-attn.")
        assert verdict.word == READY


def test_a_gpu_of_capability_7_5_is_told_that_it_runs_the_portable_form():
    notes = [f for f in judge(linux("RTX 2080")).findings if f.probe == "P04"]
    assert [f.level for f in notes] == ["info"]
    assert "portable form" in notes[0].found and "capability 7.5" in notes[0].found


@pytest.mark.parametrize("facts", [row[1] for row in MACHINES], ids=[row[0] for row in MACHINES])
def test_every_problem_has_words_and_no_probe_fails(facts: Facts):
    for finding in judge(facts).findings:
        assert "The probe itself failed" not in finding.found
        assert finding.found.endswith((".", ")", "!")) or ":" in finding.found
        if finding.problem:
            assert finding.fix or finding.command or finding.wanted
        assert "\n" not in finding.command


def test_commands_are_in_the_users_own_shell():
    for _, facts, *_ in MACHINES:
        for command in judge(facts).fixes:
            if facts.shell == "powershell":
                assert not command.startswith(("export ", "unset ", "sudo "))
            else:
                assert "$env:" not in command and "Remove-Item" not in command
