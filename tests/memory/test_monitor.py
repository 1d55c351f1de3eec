"""Readings and their summary, with a library, a program and a clock that are made up."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.memory.fake_nvml import FakeNvml
from turbodiffusion.errors import SetupError
from turbodiffusion.memory import nvml
from turbodiffusion.memory.monitor import Sampler, Summary
from turbodiffusion.memory.nvml import NvmlReader, Reading, SmiReader, decode_reasons, open_reader

SMI = """\
0, NVIDIA H100 80GB HBM3, GPU-abc, 1024, 81559, 98, 71, 651.23, 700.00, 64, 1755, 1980, 0x0000000000000004
1, NVIDIA GB10, GPU-def, [N/A], [N/A], 3, [N/A], 12.50, [N/A], 41, 208, 3003, 0x0000000000000001
"""  # noqa: E501


def test_everything_a_gpu_tells() -> None:
    fake = FakeNvml()
    reader = NvmlReader(fake)
    one, other = reader.read()
    assert one == Reading(
        0, "NVIDIA GeForce RTX 5090", "GPU-0aaa", 4 * 2**30, 32 * 2**30, 90, 40, 300.0, 575.0, 61,
        2000, 3090, 1000.0, (),
    )  # fmt: skip
    assert other.name == "NVIDIA GeForce RTX 3050 Laptop GPU"
    assert (other.busy, other.power, other.energy, other.clock) == (None, None, None, None)
    assert other.temperature == 62
    reader.close()
    assert fake.open == 0


def test_both_names_of_the_reasons() -> None:
    fake = FakeNvml()
    fake.mask = 0x24
    assert NvmlReader(fake).read()[0].reasons == ("power limit", "software thermal limit")
    fake.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0x81
    assert NvmlReader(fake).read()[0].reasons == ("idle", "power brake")
    assert decode_reasons(0) == ()


def test_a_driver_that_does_not_answer() -> None:
    with pytest.raises(SetupError, match="Driver Not Loaded") as caught:
        NvmlReader(FakeNvml(driver=False))
    assert caught.value.exit_code == 3


def test_the_table_of_nvidia_smi() -> None:
    one, other = nvml.parse_smi(SMI)
    assert one.memory_used == 2**30 and one.power == 651.23 and one.clock_limit == 1980
    assert one.reasons == ("power limit",) and other.reasons == ("idle",)
    assert other.memory_total is None and other.power_limit is None and other.busy == 3
    assert nvml.parse_smi("No devices were found\n") == []


def program(tmp_path: Path, text: str, code: int = 0) -> str:
    path = tmp_path / "nvidia-smi"
    (tmp_path / "out").write_text(text)
    path.write_text(f"#!/bin/sh\ncat {tmp_path / 'out'}\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_nvidia_smi_where_the_package_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(nvml.shutil, "which", lambda name: program(tmp_path, SMI))
    reader = open_reader()
    assert isinstance(reader, SmiReader) and len(reader.read()) == 2
    monkeypatch.setattr(nvml.shutil, "which", lambda name: program(tmp_path, "NVML: failed\n", 9))
    with pytest.raises(SetupError, match="NVML: failed"):
        open_reader()


def test_no_way_at_all(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(nvml.shutil, "which", lambda name: None)
    monkeypatch.setattr(nvml, "SMI_PLACES", ())
    with pytest.raises(SetupError) as caught:
        open_reader()
    assert caught.value.code == "monitor-no-nvml" and "pip install nvidia-ml-py" in caught.value.fix


def reading(**more) -> Reading:
    return Reading(0, "GPU", **more)


def test_summary() -> None:
    summary = Summary()
    summary.add(10.0, reading(memory_used=2**30, power=100.0, busy=0, clock=1000, energy=5.0))
    summary.add(12.0, reading(memory_used=3 * 2**30, power=300.0, busy=90, clock=2000, energy=405.0,
                              reasons=("power limit", "idle"), temperature=70))  # fmt: skip
    summary.add(13.0, reading(memory_used=2**31, power=200.0, busy=30, clock=1500, energy=705.0))
    assert summary.as_json() == {
        "name": "GPU",
        "seconds": 3.0,
        "memory_peak": 3 * 2**30,
        "busy_percent": 40.0,
        "power_mean": 200.0,
        "power_peak": 300.0,
        "energy": 700.0,
        "clock_mean": 1500.0,
        "temperature_peak": 70,
        "slowed": {"power limit": 1.0},
    }
    assert summary.sentence() == (
        "GPU: 3.0 GiB at most, 40 % busy, 200 W, 1500 MHz, 700 J, 1.0 s slowed by power limit"
    )


def test_energy_without_a_counter_is_the_area_under_the_power() -> None:
    summary = Summary()
    for at, power in ((0.0, 100.0), (2.0, 300.0), (3.0, 100.0)):
        summary.add(at, reading(power=power))
    assert summary.energy == 2 * 200 + 1 * 200
    assert Summary().energy is None and Summary().sentence() == ": no readings"


def test_sampler_follows_its_gpu_and_ends() -> None:
    fake = FakeNvml()
    sampler = Sampler(NvmlReader(fake), uuid="0aaa", interval=0.005).start()
    fake.used = 9 * 2**30
    end = time.monotonic() + 5
    while sampler.summary.readings < 4 and time.monotonic() < end:
        time.sleep(0.005)
    fake.used, fake.joules = 2**30, 1500.0
    summary = sampler.stop()
    assert summary.memory_peak == 9 * 2**30 and summary.energy == 500.0
    assert summary.name.endswith("5090") and fake.open == 0 and not sampler._thread.is_alive()


def test_a_gpu_that_stops_answering_does_not_end_the_run() -> None:
    class Broken:
        source = "x"

        def read(self) -> list[Reading]:
            raise SetupError("a-b", "gone", "f")

        def close(self) -> None:
            pass

    assert Sampler(Broken(), interval=0.01).start().stop().readings == 0
