"""Few-step video generation with Wan2.1 and Wan2.2 networks.

Importing this package touches no GPU, no network and no third-party package; the public names
are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["ModelCard", "Pipeline", "TurboDiffusionError", "Video", "__version__", "load"]

_HOME = {
    "load": "turbodiffusion.pipeline",
    "Pipeline": "turbodiffusion.pipeline",
    "Video": "turbodiffusion.media",
    "ModelCard": "turbodiffusion.models.cards",
    "TurboDiffusionError": "turbodiffusion.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
