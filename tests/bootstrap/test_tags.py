"""The build of torch for every kind of machine: the rule as a table."""

from __future__ import annotations

import pytest

from turbodiffusion.bootstrap import tags
from turbodiffusion.bootstrap.tags import Gpu, Machine, choose, default_index, parse
from turbodiffusion.errors import SetupError


def machine(capabilities: str, driver: str, system: str = "Linux", arch: str = "x86_64") -> Machine:
    gpus = tuple(
        Gpu(f"GPU {word}", (int(word.split(".")[0]), int(word.split(".")[1])))
        for word in capabilities.split()
    )
    return Machine(gpus, tuple(int(part) for part in driver.split(".") if part), system, arch)


MACHINES = [
    # name, capabilities, driver, system, arch, torch, tag
    ("laptop without a GPU", "", "", "Linux", "x86_64", "2.13.0", "cpu"),
    ("Windows without a GPU", "", "", "Windows", "AMD64", "2.13.0", "cpu"),
    ("Mac", "", "", "Darwin", "arm64", "2.13.0", "cpu"),
    ("arm server without a GPU", "", "", "Linux", "aarch64", "2.13.0", "cpu"),
    ("driver but no GPU listed", "", "580.65.06", "Linux", "x86_64", "2.13.0", "cpu"),
    ("GTX 1080, new driver", "6.1", "580.65.06", "Linux", "x86_64", "2.13.0", "cu126"),
    ("P100", "6.0", "550.54.14", "Linux", "x86_64", "2.13.0", "cu126"),
    ("V100", "7.0", "535.54.03", "Linux", "x86_64", "2.13.0", "cu126"),
    ("GTX 980", "5.2", "525.60.13", "Linux", "x86_64", "2.13.0", "cu126"),
    ("K80, older than any build", "3.7", "470.256", "Linux", "x86_64", "2.13.0", "cpu"),
    ("T4", "7.5", "535.183.01", "Linux", "x86_64", "2.13.0", "cu126"),
    ("T4, new driver", "7.5", "580.65.06", "Linux", "x86_64", "2.13.0", "cu130"),
    ("A100 at the floor", "8.0", "525.60.13", "Linux", "x86_64", "2.13.0", "cu126"),
    ("RTX 3060", "8.6", "560.28.03", "Linux", "x86_64", "2.13.0", "cu126"),
    ("RTX 3090 on Windows at the floor", "8.6", "528.33", "Windows", "AMD64", "2.13.0", "cu126"),
    ("RTX 4090", "8.9", "580.65.06", "Linux", "x86_64", "2.13.0", "cu130"),
    ("RTX 4090 on Windows", "8.9", "591.74", "Windows", "AMD64", "2.13.0", "cu130"),
    ("H100, driver just below 580", "9.0", "579.99", "Linux", "x86_64", "2.13.0", "cu126"),
    ("GH200", "9.0", "565.57.01", "Linux", "aarch64", "2.13.0", "cu126"),
    ("B200", "10.0", "580.65.06", "Linux", "x86_64", "2.13.0", "cu132"),
    ("B200 at driver 570", "10.0", "570.86.15", "Linux", "x86_64", "2.11.0", "cu128"),
    ("GB200 at driver 575", "10.0", "575.51.03", "Linux", "aarch64", "2.13.0", "cu129"),
    ("B300 at driver 575", "10.3", "575.51.03", "Linux", "x86_64", "2.13.0", "cu129"),
    ("RTX 5090", "12.0", "580.65.06", "Linux", "x86_64", "2.13.0", "cu132"),
    ("RTX 5090 at its launch driver", "12.0", "570.86.15", "Linux", "x86_64", "2.11.0", "cu128"),
    ("RTX 5090 on Windows, launch driver", "12.0", "572.16", "Windows", "AMD64", "2.11.0", "cu128"),
    ("DGX Spark", "12.1", "580.95.05", "Linux", "aarch64", "2.13.0", "cu132"),
    ("Thor", "11.0", "580.00", "Linux", "aarch64", "2.13.0", "cu132"),
    ("Jetson Orin, embedded", "8.7", "540.4.0", "Linux", "aarch64", "2.13.0", "cpu"),
    ("T4G, no arm build", "7.5", "580.65.06", "Linux", "aarch64", "2.13.0", "cpu"),
    ("RTX 4090 beside 5090", "8.9 12.0", "580.65.06", "Linux", "x86_64", "2.13.0", "cu132"),
    ("GTX 1060 beside 4070", "6.1 8.9", "580.65.06", "Linux", "x86_64", "2.13.0", "cu130"),
    ("P40 beside 5090", "6.1 12.0", "570.86.15", "Linux", "x86_64", "2.11.0", "cu128"),
    ("two V100", "7.0 7.0", "550.54.14", "Linux", "x86_64", "2.13.0", "cu126"),
]


@pytest.mark.parametrize(
    ("capabilities", "driver", "system", "arch", "torch", "tag"),
    [row[1:] for row in MACHINES],
    ids=[row[0] for row in MACHINES],
)
def test_choice(capabilities, driver, system, arch, torch, tag):
    build = choose(machine(capabilities, driver, system, arch))
    assert (build.torch, build.tag) == (torch, tag)
    assert build.exact == f"{torch}+{tag}"


TOO_OLD = [
    ("RTX 5090 below 570", "12.0", "565.77", "Linux", "x86_64", "570"),
    ("RTX 4090 below 525", "8.9", "525.59", "Linux", "x86_64", "525.60.13"),
    ("RTX 3080 on Windows", "8.6", "527.41", "Windows", "AMD64", "528.33"),
    ("V100", "7.0", "450.80.02", "Linux", "x86_64", "525.60.13"),
    ("B300 at 570", "10.3", "570.86.15", "Linux", "x86_64", "575"),
    ("DGX Spark at 570", "12.1", "570.86.15", "Linux", "aarch64", "575"),
    ("Thor at 575", "11.0", "575.51.03", "Linux", "aarch64", "580"),
]


@pytest.mark.parametrize(
    ("capabilities", "driver", "system", "arch", "wanted"),
    [row[1:] for row in TOO_OLD],
    ids=[row[0] for row in TOO_OLD],
)
def test_driver_too_old(capabilities, driver, system, arch, wanted):
    with pytest.raises(SetupError) as caught:
        choose(machine(capabilities, driver, system, arch))
    assert caught.value.code == "setup-driver-old"
    assert f"needs {wanted} or newer" in caught.value.message
    assert "Update the NVIDIA driver" in caught.value.fix


def test_cpu_is_said_to_be_impractical():
    assert "impractical on a CPU" in choose(machine("", "")).notes[0]


def test_an_ignored_gpu_is_named():
    notes = choose(machine("6.1 8.9", "580.65.06")).notes
    assert any("GPU 6.1" in note for note in notes)


DEFAULTS = [
    ("no GPU, Linux", machine("", ""), "2.13.0", "cu130"),
    ("no GPU, Windows", machine("", "", "Windows"), "2.13.0", "cpu"),
    ("GPU, Windows", machine("8.9", "591.74", "Windows"), "2.13.0", "cpu"),
    ("new driver", machine("12.0", "580.65.06"), "2.13.0", "cu130"),
    ("older driver", machine("8.9", "550.54.14"), "2.10.0", "cu128"),
    ("old GPU", machine("7.0", "550.54.14"), "2.10.0", "cu128"),
]


@pytest.mark.parametrize(
    ("of", "torch", "tag"), [row[1:] for row in DEFAULTS], ids=[row[0] for row in DEFAULTS]
)
def test_default_index(of, torch, tag):
    build = default_index(choose(of), of)
    assert (build.torch, build.tag) == (torch, tag)


def test_default_index_says_what_is_lost():
    windows = machine("8.9", "591.74", "Windows")
    assert "GPU stays unused" in default_index(choose(windows), windows).notes[0]
    volta = machine("7.0", "580.65.06")
    assert "no code for GPU 7.0" in default_index(choose(volta), volta).notes[0]


def test_asked_for_tag():
    assert parse("cpu").exact == "2.13.0+cpu"
    assert parse("cu128").exact == "2.11.0+cu128"
    with pytest.raises(SetupError, match=r"cu118.*cpu, cu126"):
        parse("cu118")


def test_triton_windows_follows_torch():
    builds = [choose(machine("12.0", driver, "Windows")) for driver in ("572.16", "591.74")]
    assert [build.triton_windows for build in builds] == ["3.6.0.post26", "3.7.1.post27"]
    for torch in (tags.TESTED_TORCH, tags.CU128_TORCH, tags.OLD_DRIVER_TORCH):
        assert torch.rpartition(".")[0] in tags.TRITON_WINDOWS
