"""The probes in the order a person would ask: each a pure function from facts to findings.

``PROBES`` maps the number to its title, the function, and the child processes whose answers it
reads (``torch``, ``triton``, ``packages``, ``network``, ``video``); a probe without any belongs to
the first stage, which imports nothing. P22 (does the checkpoint fit the request) is answered by
the planner of ``generate``, where a request exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from turbodiffusion.doctor.facts import Facts
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.probes import fit, gpu, machine, storage, torch, triton


@dataclass(frozen=True)
class Probe:
    """A probe: its title and rule, and the children it waits for."""

    title: str
    judge: Callable[[Facts], list[Finding]]
    needs: tuple[str, ...] = ()


PROBES = {
    "P17": Probe("Python", machine.python),
    "P01": Probe("platform", machine.platform),
    "P24": Probe("container", machine.container),
    "P02": Probe("driver library", gpu.driver_library),
    "P03": Probe("driver version", gpu.driver_version),
    "P04": Probe("GPUs", gpu.gpus),
    "P07": Probe("driver and CUDA", fit.driver_for_cuda),
    "P05": Probe("torch", torch.build, ("torch",)),
    "P06": Probe("code for the GPU", torch.architecture, ("torch",)),
    "P08": Probe("Triton", triton.distribution, ("triton",)),
    "P09": Probe("C compiler", triton.compiler),
    "P10": Probe("Python headers", triton.headers),
    "P23": Probe("Windows", machine.windows),
    "P11": Probe("smoke kernel", torch.smoke, ("torch", "triton")),
    "P12": Probe("shared memory", fit.shared_memory, ("torch",)),
    "P26": Probe("cuDNN", torch.cudnn, ("torch",)),
    "P13": Probe("cache folders", storage.caches),
    "P14": Probe("disk", storage.disk),
    "P15": Probe("memory", storage.memory),
    "P16": Probe("GPU memory", fit.video_memory),
    "P18": Probe("variables", machine.variables),
    "P19": Probe("other packages", torch.foreign, ("packages",)),
    "P20": Probe("network", machine.network, ("network",)),
    "P21": Probe("checkpoint files", storage.files),
    "P27": Probe("video writer", storage.video, ("video",)),
    "P25": Probe("build tools", machine.build_tools),
}
