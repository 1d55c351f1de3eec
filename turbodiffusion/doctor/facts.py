"""A machine as plain values: what the probes judge, real or simulated.

Every field has the value of a healthy machine's absence ("", 0, ()), so that a test names only
what matters. Sizes are bytes; versions are tuples of integers or the text the source gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from turbodiffusion.bootstrap.gpu import selected
from turbodiffusion.bootstrap.tags import Gpu, Machine

GB = 1_000_000_000


@dataclass(frozen=True)
class Platform:
    """The system. ``distribution`` is the ``ID`` of os-release; ``nvidia_hardware`` counts NVIDIA
    display devices on the PCI bus, which Linux tells without a driver."""

    system: str = "Linux"
    release: str = ""
    arch: str = "x86_64"
    distribution: str = "ubuntu"
    libc: str = "glibc 2.35"
    wsl: bool = False
    wsl_gpu: bool = False  # /dev/dxg
    wsl_library: bool = False  # /usr/lib/wsl/lib/libcuda.so.1
    container: str = ""  # docker, podman, kubernetes, lxc
    nvidia_devices: bool = False  # /dev/nvidiactl or /dev/nvidia0
    nvidia_hardware: int = 0


@dataclass(frozen=True)
class Python:
    """The interpreter that is judged. ``kind``: venv, conda, system, store or embedded."""

    version: tuple[int, ...] = (3, 12, 3)
    bits: int = 64
    executable: str = ""
    kind: str = "venv"
    headers: bool = True  # Python.h
    libraries: bool = True  # Windows: the folder ``libs``
    free_threaded: bool = False
    environment: str = ""  # folder of the environment, "" outside one
    ours: bool = True  # made by turbo.py
    outdated: str = ""  # why turbo.py would repair it


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver. ``init`` is what cuInit returned, None where it was not called."""

    library: bool = False
    error: str = ""
    init: int | None = None
    cuda: int = 0  # 1000·major + 10·minor
    version: tuple[int, ...] = ()
    module: tuple[int, ...] = ()  # of the loaded Linux kernel module


@dataclass(frozen=True)
class GpuFacts:
    """One GPU as the driver describes it."""

    name: str
    capability: tuple[int, int]
    uuid: str = ""
    total: int = 0
    free: int = 0
    compute_mode: str = "Default"
    mig: bool = False
    model: str = ""  # Windows: WDDM, TCC or MCDM
    link: str = ""  # PCI Express, current and largest, such as "4x16 of 5x16"


@dataclass(frozen=True)
class Torch:
    """torch. The first four fields come from its files, the others from importing it in a child;
    ``imported`` is None where that was not tried or took too long."""

    version: str = ""  # 2.13.0, without the tag
    tag: str = ""  # cpu, cu130, …
    wants_triton: str = ""  # the release its metadata requires
    origin: str = ""
    imported: bool | None = None
    error: str = ""
    seconds: float = 0.0
    architectures: tuple[str, ...] = ()  # sm_90, compute_90, …
    cuda: str = ""
    cudnn: int = 0
    gpus: int = 0
    smoke: str = ""  # "" not run, "ok", or what went wrong on the GPU
    shared_memory: int = 0  # bytes of a block, opt-in


@dataclass(frozen=True)
class Triton:
    """Triton. ``distributions`` are (name, version) pairs that provide its module."""

    distributions: tuple[tuple[str, str], ...] = ()
    origin: str = ""  # the file that ``import triton`` would load
    shadowed: bool = False  # that file lies outside the packages
    imported: bool | None = None
    error: str = ""
    smoke: str = ""
    seconds: float = 0.0
    assemblers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compiler:
    """What Triton's launcher is built with on Linux."""

    variable: str = ""  # CC
    variable_works: bool = True
    found: str = "gcc"
    bundled: bool = False  # TinyCC inside triton-windows


@dataclass(frozen=True)
class Folder:
    """A folder that is written to. ``free`` is of its disk; ``network`` names the file system."""

    what: str
    path: str
    free: int
    writable: bool = True
    network: str = ""


@dataclass(frozen=True)
class Memory:
    """Memory of the computer; ``limit`` is a container's own, 0 without one."""

    total: int = 64 * GB
    available: int = 60 * GB
    swap: int = 0
    limit: int = 0


@dataclass(frozen=True)
class Package:
    """An installed package; ``error`` is what importing it said, or ""."""

    name: str
    version: str
    error: str = ""


@dataclass(frozen=True)
class Windows:
    """Facts that only Windows has. ``runtime`` is the file version of vcruntime140_1.dll."""

    runtime: tuple[int, ...] = (14, 44)
    stale_runtime: str = ""  # an older copy beside python.exe
    long_paths: bool = True
    policy: str = "RemoteSigned"


@dataclass(frozen=True)
class Operator:
    """The form of an operator that runs on a device, and the sentence that says why."""

    device: str
    operator: str
    backend: str
    reason: str


@dataclass(frozen=True)
class Facts:
    """Everything the probes know about a machine."""

    platform: Platform = Platform()
    python: Python = Python()
    driver: Driver = Driver()
    gpus: tuple[GpuFacts, ...] = ()
    torch: Torch = Torch()
    triton: Triton = Triton()
    compiler: Compiler = Compiler()
    memory: Memory = Memory()
    windows: Windows | None = None
    folders: tuple[Folder, ...] = ()
    packages: tuple[Package, ...] = ()
    missing: tuple[str, ...] = ()  # required packages that are not installed
    variables: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)  # nvcc, Visual Studio, conda → path
    files: tuple[tuple[str, str, str], ...] = ()  # damaged checkpoints: path, sentence, fix
    operators: tuple[Operator, ...] = ()
    network: str = ""  # "" not asked, "ok", or what failed
    video: str = ""  # "" not tried, "ok", or what failed
    shell: str = "bash"  # or powershell
    launcher: str = "turbodiffusion"  # how the user starts our commands
    root: str = ""  # the checkout
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def machine(self) -> Machine:
        """The same for the rule that chooses torch, with the GPUs that are not hidden."""
        gpus = tuple(Gpu(gpu.name, gpu.capability, gpu.uuid) for gpu in self.gpus)
        visible = self.variables.get("CUDA_VISIBLE_DEVICES")
        kept = selected(gpus, visible, self.variables.get("CUDA_DEVICE_ORDER", ""))
        return Machine(kept, self.driver.version, self.platform.system, self.platform.arch)

    @property
    def visible(self) -> tuple[GpuFacts, ...]:
        """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves."""
        kept = {(gpu.name, gpu.uuid) for gpu in self.machine.gpus}
        return tuple(gpu for gpu in self.gpus if (gpu.name, gpu.uuid) in kept)
