"""A module that answers like ``pynvml`` for two GPUs that do what a test tells them."""

from __future__ import annotations

from types import SimpleNamespace


class NVMLError(Exception):
    pass


class FakeNvml:
    """GPU 0 tells everything; GPU 1 is a laptop part that does not know most of it."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1

    def __init__(self, driver: bool = True) -> None:
        self.driver, self.open = driver, 0
        self.used = 4 * 2**30
        self.watts, self.joules, self.megahertz, self.mask, self.load = 300.0, 1000.0, 2000, 0, 90

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return "NVIDIA GeForce RTX 5090" if handle == 0 else b"NVIDIA GeForce RTX 3050 Laptop GPU"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}aaa"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=self.used, total=32 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return self._only(handle, SimpleNamespace(gpu=self.load, memory=40))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._only(handle, round(self.watts * 1000))

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return self._only(handle, 575_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self._only(handle, round(self.joules * 1000))

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61 + handle

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        return self._only(handle, self.megahertz)

    def nvmlDeviceGetMaxClockInfo(self, handle: int, clock: int) -> int:
        return self._only(handle, 3090)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self._only(handle, self.mask)

    def _only(self, handle, value):
        if handle:
            raise NVMLError("Not Supported")
        return value
