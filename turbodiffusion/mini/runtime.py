"""The process a stage runs in: its device, its rank, and what it records about itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import turbodiffusion
from turbodiffusion.mini.recipe import Stage, as_json
from turbodiffusion.mini.state import StageClock


@dataclass(frozen=True)
class Worker:
    """One process of a stage. ``dtype`` is the precision of the live module."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1
    compile: bool = False

    @classmethod
    def start(cls, device: str | None = None, compile: bool | None = None) -> Worker:
        """Join the process group that ``torchrun`` announces, if any, and choose the device.

        A GPU computes in bf16, a CPU in float32, where networks this small are no slower and
        keep gradients exact. Only the teacher is compiled, on a GPU or when asked.
        """
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        target = torch.device(name)
        if target.type == "cuda" and target.index is None:
            target = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if target.type == "cuda":
            torch.cuda.set_device(target)
            torch.backends.cudnn.benchmark = True  # few shapes, many steps
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if target.type == "cuda" else "gloo")
        on_gpu = target.type == "cuda"
        dtype = torch.bfloat16 if on_gpu else torch.float32
        return cls(target, dtype, rank, world, on_gpu if compile is None else compile)

    def agree(self, stop: bool) -> bool:
        """True in every process as soon as one wants to stop; clocks differ between them."""
        if self.world == 1:
            return stop
        flag = torch.tensor(float(stop), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def wait_for_all(self) -> None:
        """Return when every process has come this far."""
        if self.world > 1:
            dist.barrier()

    def report(self, stage: Stage, clock: StageClock, **more: Any) -> dict[str, Any]:
        """Recipe, cost and machine of a finished stage, as plain values."""
        return {
            "complete": True,
            "recipe": as_json(stage),
            "steps": clock.step,
            "seconds": round(clock.elapsed, 1),
            "processes": self.world,
            **machine(self.device),
            **more,
        }

    def leave(self) -> None:
        """Leave the process group, if there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement ran on, as plain values."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": turbodiffusion.__version__,
    }


def compile_modules(modules: Iterable[nn.Module], worker: Worker) -> None:
    """``torch.compile`` each module in place, where the worker asks for it.

    Repeated blocks share what the compiler made of the first, so that depth costs no time. What it
    cannot compile runs as it is written, with the compiler's own warning.
    """
    if worker.compile:
        from turbodiffusion.train import compiled

        compiled.compile_modules(modules)


CUDNN_TOKENS = 2048
"""From this length on cuDNN's attention is tried first, see :func:`attention_kernels`."""


def attention_kernels(worker: Worker, tokens: int) -> AbstractContextManager[Any]:
    """The kernels that PyTorch's attention may use in here, in order of speed with gradients.

    On an H100, forward and backward at 4 heads of 64, 147,456 tokens in all: 2304 tokens a clip
    take 3.0 ms with cuDNN and 4.6 ms with flash attention, 768 tokens 6.4 and 2.0 ms.
    """
    if worker.device.type != "cuda":
        return nullcontext()
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    if tokens >= CUDNN_TOKENS:
        order[:2] = order[1::-1]
    return sdpa_kernel(order, set_priority=True)
