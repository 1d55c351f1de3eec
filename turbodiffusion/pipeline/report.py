"""What a run cost: seconds, memory and the GPU's readings, for those who ask with ``--monitor``.

It is asked for because it goes into the file: without it the same settings give the same bytes.
The part in the file ends where the writing of the file begins, that is before decoding; the whole
is in the JSON line of the run.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from turbodiffusion.errors import SetupError
from turbodiffusion.memory.host import peak_ram
from turbodiffusion.memory.monitor import Sampler
from turbodiffusion.memory.nvml import open_reader

if TYPE_CHECKING:
    from turbodiffusion.pipeline.stages import Stages


class RunReport:
    """Watches one run, as a context manager; ``sentence`` says afterwards how the GPU fared."""

    def __init__(self, pipe: Stages) -> None:
        self.sentence = ""
        self._device = pipe.device
        self._sampler: Sampler | None = None
        self._why = ""

    def __enter__(self) -> RunReport:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        try:
            self._sampler = Sampler(open_reader(), _uuid(self._device)).start()
        except SetupError as error:
            self._why = error.message
            warnings.warn(f"--monitor: {error.message} {error.fix}", stacklevel=2)
        return self

    def __exit__(self, *_: object) -> None:
        if self._sampler is not None:
            self.sentence = self._sampler.stop().sentence()

    def so_far(self, seconds: dict[str, float]) -> dict[str, Any]:
        """The report up to now.

        Args:
            seconds: by phase.
        """
        report: dict[str, Any] = {"seconds": dict(seconds), "host_peak": peak_ram()}
        if self._device.type == "cuda":
            report["torch_peak"] = torch.cuda.max_memory_allocated(self._device)
        if self._sampler is not None:
            self._sampler.sample()
            report["gpu"] = self._sampler.summary.as_json()
        else:
            report["no_gpu"] = self._why
        return report


def _uuid(device: torch.device) -> str:
    """NVML's name of a CUDA device, "" if torch does not tell it."""
    if device.type != "cuda":
        return ""
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
