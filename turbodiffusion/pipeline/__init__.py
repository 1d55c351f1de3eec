"""Text and image to video: the only room that puts networks, sampler, weights and files together."""

from __future__ import annotations

from turbodiffusion.pipeline.load import load
from turbodiffusion.pipeline.pipeline import Pipeline
from turbodiffusion.pipeline.request import Request, resolve

__all__ = ["Pipeline", "Request", "load", "resolve"]
