"""Tiny models for whole runs."""

from tests.pipeline.fixtures import model_folder, models

__all__ = ["model_folder", "models"]
