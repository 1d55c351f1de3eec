"""Reading the GPUs: the text of nvidia-smi, the driver library, and what to do without them."""

from __future__ import annotations

import os
import sys

import pytest

from turbodiffusion.bootstrap import gpu
from turbodiffusion.bootstrap.gpu import driver_behind, parse_smi, read_machine, selected
from turbodiffusion.bootstrap.tags import Gpu

TWO = "NVIDIA A100-SXM4-40GB, GPU-aaa, 8.0, 535.183.01\nTesla T4, GPU-bbb, 7.5, 535.183.01\n"


def test_parse_smi():
    gpus, driver = parse_smi(TWO)
    assert gpus == (
        Gpu("NVIDIA A100-SXM4-40GB", (8, 0), "GPU-aaa"),
        Gpu("Tesla T4", (7, 5), "GPU-bbb"),
    )
    assert driver == (535, 183, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        "Tesla K80, GPU-a, [N/A], 470.256\n",
        'Field "compute_cap" is not a valid field to query.\n',
    ],
)
def test_parse_smi_refuses(text):
    assert parse_smi(text) is None


@pytest.mark.parametrize(
    ("visible", "order", "names"),
    [
        (None, "", "ab"),
        ("1", "PCI_BUS_ID", "b"),
        ("1", "", "ab"),  # the order of unequal GPUs is not known
        ("GPU-b", "", "b"),
        ("", "", "ab"),
        ("-1", "", "ab"),
        ("7", "PCI_BUS_ID", "ab"),
        ("MIG-1", "", "ab"),
    ],
)
def test_selected(visible, order, names, monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    gpus = (Gpu("a", (8, 0), "GPU-a1"), Gpu("b", (7, 5), "GPU-b1"))
    assert "".join(g.name for g in selected(gpus, visible)) == names


@pytest.mark.parametrize(
    ("cuda", "driver"), [(13020, 580), (13000, 580), (12090, 570), (12040, 525), (11080, 0)]
)
def test_driver_behind(cuda, driver):
    assert driver_behind(cuda)[0] == driver


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
class TestStandIn:
    """A program called nvidia-smi earlier on the search path."""

    def put(self, folder, monkeypatch, body):
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(gpu.platform, "system", lambda: "Linux")

    def test_read(self, tmp_path, monkeypatch):
        self.put(tmp_path, monkeypatch, 'echo "NVIDIA L4, GPU-1, 8.9, 550.54.14"')
        machine = read_machine()
        assert [g.capability for g in machine.gpus] == [(8, 9)]
        assert machine.driver == (550, 54, 14)

    def test_hanging_driver_is_bounded(self, tmp_path, monkeypatch):
        self.put(tmp_path, monkeypatch, "exec sleep 60")
        monkeypatch.setattr(gpu, "TIMEOUT", 0.3)
        monkeypatch.setattr(gpu, "_from_library", lambda: None)
        assert read_machine().gpus == ()

    def test_library_answers_where_smi_is_too_old(self, tmp_path, monkeypatch):
        self.put(tmp_path, monkeypatch, "exit 6")
        answer = 'print(\'{"gpus": [["Quadro", 7, 5]], "cuda": 12040}\')'
        (tmp_path / "ask.py").write_text(answer)
        monkeypatch.setattr(gpu.libcuda, "__file__", str(tmp_path / "ask.py"))
        monkeypatch.setattr(gpu, "kernel_driver", lambda: ())
        machine = read_machine()
        assert machine.gpus == (Gpu("Quadro", (7, 5)),)
        assert machine.driver == (525, 60, 13)


def test_library_child_prints_json():
    text = gpu.run([sys.executable, "-I", gpu.libcuda.__file__])
    assert text.startswith('{"gpus": [')
