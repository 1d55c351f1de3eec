"""What is installed, read from files: nothing is imported here."""

from __future__ import annotations

import re
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from turbodiffusion.doctor.facts import Package, Torch, Triton
from turbodiffusion.doctor.readings.interpreter import Target

MODULES = {
    "numpy": "numpy",
    "av": "av",
    "safetensors": "safetensors",
    "flash-attn": "flash_attn",
    "xformers": "xformers",
    "sageattention": "sageattention",
    "spas-sage-attn": "spas_sage_attn",
    "bitsandbytes": "bitsandbytes",
    "torchvision": "torchvision",
}
"""Distributions that are imported in a child when they are installed."""

LISTED = (*MODULES, "transformers", "tokenizers", "pynvml", "nvidia-ml-py")


def distributions(target: Target) -> dict[str, metadata.Distribution]:
    """Name → installed distribution; the first on the search path wins, as for imports."""
    found: dict[str, metadata.Distribution] = {}
    for one in metadata.distributions(path=[str(p) for p in target.folders]):
        found.setdefault(normal(one.name or ""), one)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _one(target: Target, name: str) -> metadata.Distribution | None:
    path = [str(p) for p in target.folders]
    return next(iter(metadata.distributions(name=name, path=path)), None)


def read_torch(target: Target) -> Torch:
    """Version, tag and the Triton that torch's metadata asks for."""
    one = _one(target, "torch")
    if one is None:
        return Torch()
    version, _, tag = one.version.partition("+")
    folder = Path(str(one.locate_file("torch")))
    try:
        text = (folder / "version.py").read_text("utf-8")
        full = re.search(r"__version__ = ['\"]([^'\"]+)", text)
        tag = tag or (full[1].partition("+")[2] if full else "")
    except (OSError, UnicodeDecodeError):
        return Torch(version, tag or "cpu", origin=str(folder), imported=False, error=_HALF)
    wanted = ""
    for line in one.requires or ():
        if found := re.match(r"triton\s*[=~]=\s*([\d.]+)", line):
            wanted = found[1]
    return Torch(version, tag or "cpu", wanted, str(folder))


_HALF = "its files are incomplete (no version.py)."


def read_triton(target: Target) -> Triton:
    """Which distributions provide the module, and the file that an import would load."""
    names = ("triton", "triton-windows", "pytorch-triton")
    there = ((name, _one(target, name)) for name in names)
    found = tuple((name, one.version) for name, one in there if one is not None)
    spec = PathFinder.find_spec("triton", [str(p) for p in target.folders])
    places = [*(spec.submodule_search_locations or ())] if spec else []
    origin = (spec.origin if spec and spec.origin else "") or (places[0] if places else "")
    homes = {str(one.locate_file("triton")) for name in names if (one := _one(target, name))}
    shadowed = bool(found and origin) and not any(origin.startswith(home) for home in homes)
    return Triton(found, origin, shadowed)


def read_foreign(target: Target) -> tuple[Package, ...]:
    """Packages that are imported to see whether they work, and some that are only named."""
    found = ((name, _one(target, name)) for name in LISTED)
    return tuple(Package(name, one.version) for name, one in found if one is not None)


def missing(target: Target) -> tuple[str, ...]:
    """Required packages that are not installed; empty where torch is not there either."""
    path = target.root / "requirements" / "runtime.txt"
    if _one(target, "torch") is None or not path.is_file():
        return ()
    lines = path.read_text("utf-8").splitlines()
    names = [found[0] for line in lines if (found := re.match(r"[A-Za-z][\w.-]*", line))]
    return tuple(name for name in names if _one(target, name) is None)
