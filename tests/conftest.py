"""Switches the interpreter on before anything imports Triton, which decides at its import."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torch") is not None:  # the bootstrap is tested without it, too
    from tests.ops import interpreter

    interpreter.switch_on()
