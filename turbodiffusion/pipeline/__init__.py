"""Text and image to video: the one room that joins networks, sampler, weights and files."""

from __future__ import annotations

from turbodiffusion.pipeline.load import load
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.pipeline.request import Request, resolve

__all__ = ["Pipeline", "Request", "load", "resolve"]
