"""What the GPUs are doing, read from NVML: the driver's own library.

Two ways lead there: the package ``nvidia-ml-py`` (module ``pynvml``), and the program
``nvidia-smi``, which every driver brings but which takes a tenth of a second a reading and knows no
energy counter. Whatever a GPU does not tell (common on GeForce, under WSL and on GB10) is None.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from turbodiffusion.errors import SetupError

REASONS = {
    0x1: "idle",
    0x2: "clocks set by the user",
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
    0x100: "display clock",
}
"""Bits of NVML's clock event reasons: why a GPU is not at its highest clock."""

HARMLESS = {"idle", "clocks set by the user", "display clock"}

SMI_PLACES = ("/usr/lib/wsl/lib/nvidia-smi", r"C:\Windows\System32\nvidia-smi.exe")
SMI_FIELDS = (
    "index", "name", "uuid", "memory.used", "memory.total", "utilization.gpu",
    "utilization.memory", "power.draw", "power.limit", "temperature.gpu", "clocks.sm",
    "clocks.max.sm", "clocks_event_reasons.active",
)  # fmt: skip
TIMEOUT = 15.0  # seconds; a driver without persistence mode takes up to ten


@dataclass(frozen=True)
class Reading:
    """One GPU at one moment: bytes, percent, watts, degrees Celsius, MHz, joules since boot."""

    index: int
    name: str
    uuid: str = ""
    memory_used: int | None = None
    memory_total: int | None = None
    busy: int | None = None
    memory_busy: int | None = None
    power: float | None = None
    power_limit: float | None = None
    temperature: int | None = None
    clock: int | None = None
    clock_limit: int | None = None
    energy: float | None = None
    reasons: tuple[str, ...] = ()


class Reader(Protocol):
    """A way to NVML."""

    source: str

    def read(self) -> list[Reading]:
        """All GPUs now, in PCI order."""

    def close(self) -> None:
        """Let go of the driver."""


def open_reader() -> Reader:
    """The package if it is there, else nvidia-smi.

    Raises:
        SetupError: no NVIDIA driver, or one that does not answer.
    """
    try:
        import pynvml
    except ImportError:
        return SmiReader(_smi())
    return NvmlReader(pynvml)


def decode_reasons(mask: int) -> tuple[str, ...]:
    """The set bits as words."""
    return tuple(word for bit, word in REASONS.items() if mask & bit)


class NvmlReader:
    """Through ``nvidia-ml-py``."""

    source = "nvidia-ml-py"

    def __init__(self, library: ModuleType | Any) -> None:
        self._nvml = library
        try:
            library.nvmlInit()
            count = library.nvmlDeviceGetCount()
            self._handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except library.NVMLError as error:
            raise SetupError(
                "monitor-no-driver",
                f"NVML does not answer: {error}.",
                "Install or repair the NVIDIA driver; `turbodiffusion doctor` says more.",
            ) from error
        self._names = [_text(library.nvmlDeviceGetName(h)) for h in self._handles]

    def read(self) -> list[Reading]:
        return [self._one(i, handle) for i, handle in enumerate(self._handles)]

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _one(self, index: int, handle: Any) -> Reading:
        n = self._nvml
        memory = self._ask(n.nvmlDeviceGetMemoryInfo, handle)
        load = self._ask(n.nvmlDeviceGetUtilizationRates, handle)
        power = self._ask(n.nvmlDeviceGetPowerUsage, handle)
        limit = self._ask(n.nvmlDeviceGetEnforcedPowerLimit, handle)
        energy = self._ask(n.nvmlDeviceGetTotalEnergyConsumption, handle)
        # Renamed from "throttle" to "event" in 2023; older packages know the old name only.
        why = getattr(n, "nvmlDeviceGetCurrentClocksEventReasons", None)
        mask = self._ask(why or n.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return Reading(
            index,
            self._names[index],
            _text(self._ask(n.nvmlDeviceGetUUID, handle) or ""),
            memory.used if memory else None,
            memory.total if memory else None,
            load.gpu if load else None,
            load.memory if load else None,
            power / 1000 if power is not None else None,
            limit / 1000 if limit is not None else None,
            self._ask(n.nvmlDeviceGetTemperature, handle, n.NVML_TEMPERATURE_GPU),
            self._ask(n.nvmlDeviceGetClockInfo, handle, n.NVML_CLOCK_SM),
            self._ask(n.nvmlDeviceGetMaxClockInfo, handle, n.NVML_CLOCK_SM),
            energy / 1000 if energy is not None else None,
            decode_reasons(mask or 0),
        )

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError:  # not supported here
            return None


class SmiReader:
    """Through the program ``nvidia-smi``."""

    source = "nvidia-smi"

    def __init__(self, program: str) -> None:
        self._program = program
        self.read()

    def read(self) -> list[Reading]:
        command = [
            self._program, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=TIMEOUT, check=False,
            )  # fmt: skip
            failed = done.stdout.strip() or done.stderr.strip() if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            failed = str(error)
        if failed:
            raise SetupError(
                "monitor-no-driver",
                f"nvidia-smi does not answer: {failed.splitlines()[0]}.",
                "Install or repair the NVIDIA driver; `turbodiffusion doctor` says more.",
            )
        return parse_smi(done.stdout)

    def close(self) -> None:
        pass


def parse_smi(text: str) -> list[Reading]:
    """Readings from nvidia-smi's table in the order of ``SMI_FIELDS``."""
    out = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != len(SMI_FIELDS):
            continue
        v = [_number(field) for field in row]
        mask = int(row[12], 16) if row[12].startswith("0x") else 0
        out.append(
            Reading(
                int(v[0] or 0), row[1], row[2], _mib(v[3]), _mib(v[4]), _whole(v[5]), _whole(v[6]),
                v[7], v[8], _whole(v[9]), _whole(v[10]), _whole(v[11]), None, decode_reasons(mask),
            )
        )  # fmt: skip
    return out


def _smi() -> str:
    program = shutil.which("nvidia-smi") or next((p for p in SMI_PLACES if os.path.isfile(p)), None)
    if program is None:
        raise SetupError(
            "monitor-no-nvml",
            "There is neither the package nvidia-ml-py nor the program nvidia-smi: GPUs are read "
            "through NVML, a part of the NVIDIA driver.",
            "With an NVIDIA GPU, install its driver and then `pip install nvidia-ml-py`. Other "
            "machines have nothing to monitor.",
        )
    return program


def _number(field: str) -> float | None:
    try:
        return float(field)
    except ValueError:  # [N/A], [Not Supported]
        return None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _mib(value: float | None) -> int | None:
    return None if value is None else round(value * 2**20)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
