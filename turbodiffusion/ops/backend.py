"""Decides, once per operator and device, which form of an operator runs, and says why.

Every folder ``ops/<operator>/`` may hold up to three forms of the same functions:

``naive``     the definition in plain float32 PyTorch: slow, obviously right
``portable``  fast PyTorch for any device
``triton``    kernels, compiled when first used

A form is a module with the operator's functions. It is found by its file name, so adding
``triton.py`` to a folder is all that is needed to offer it. A form that runs on some devices only
defines ``obstacle(device) -> str | None``: the sentence that says why it cannot run there.

The fastest form without an obstacle is taken: Triton, unless ``PREFERENCES`` names another for the
operator and the kind of device. ``TURBODIFFUSION_BACKEND=naive|portable|triton``
forces one for every operator; where that form does not exist the run stops with an error, because
a comparison with the wrong form is worse than none.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar, cast

import torch

from turbodiffusion import ops
from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.ops import dual

Backend = Literal["naive", "portable", "triton"]

VARIABLE = "TURBODIFFUSION_BACKEND"
FASTEST_FIRST: tuple[Backend, ...] = ("triton", "portable", "naive")
OPERATORS = ("attention", "linear", "norm", "rope", "sage", "sla", "tangent")

PREFERENCES: dict[tuple[str, str], tuple[Backend, str]] = {
    ("attention", "cuda"): (
        "portable",
        "PyTorch's flash and cuDNN kernels are the fastest dense attention on NVIDIA GPUs.",
    ),
}
"""By operator and kind of device: the form to take before any other, and the sentence why.

Forcing a form with the variable goes before a preference."""

FUSED_BY_COMPILER = ("norm", "rope")
"""Operators that ``torch.compile`` makes one kernel of together with what surrounds them; ready
kernels would only cut its graphs."""

F = TypeVar("F", bound=Callable[..., Any])

_choices: dict[tuple[str, str, str], Choice] = {}


@dataclass(frozen=True)
class Choice:
    """The form of an operator that runs, and the sentence that explains it."""

    backend: Backend
    reason: str


def resolve(operator: str, device: torch.device) -> Choice:
    """Which form of ``operator`` runs on ``device``.

    Raises:
        UsageError: the operator, or the value of ``TURBODIFFUSION_BACKEND``, is unknown.
        SetupError: the forced form does not exist or cannot run on this device.
    """
    forced = os.environ.get(VARIABLE, "").strip().lower()
    key = operator, str(device), forced
    if key not in _choices:
        _choices[key] = _forced(operator, device, forced) if forced else _fastest(operator, device)
    return _choices[key]


def form(operator: str, device: torch.device) -> ModuleType:
    """The module that holds the functions of ``operator`` for ``device``.

    ``torch.compile`` traces through it in one graph, also where nothing was resolved before: the
    name of the form is a constant of the graph, and a module is reached by attributes alone.
    """
    package: ModuleType = getattr(ops, operator)
    name = _resolved_name(operator, device)
    if dual.active() and name == "triton" and operator != "tangent":  # kernels carry no tangents
        return importlib.import_module(f"{package.__name__}.portable")
    if name == "triton" and operator in FUSED_BY_COMPILER and torch.compiler.is_compiling():
        name = "portable"
    return getattr(package, name)


def constant_in_graphs(function: F) -> F:
    """Let ``torch.compile`` call ``function`` once and keep its result, instead of tracing it.

    It sets what ``torch.compiler.assume_constant_result`` sets. That decorator imports torch's
    tracer, which made every start 3.6 s longer, two and a half times the import of torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def _resolved_name(operator: str, device: torch.device) -> str:
    return resolve(operator, device).backend


def report(device: torch.device) -> list[tuple[str, Choice]]:
    """Every operator with the form that runs on ``device`` and the reason."""
    return [(operator, resolve(operator, device)) for operator in OPERATORS]


def available(operator: str, device: torch.device) -> list[Backend]:
    """The forms of ``operator`` that run on ``device``, fastest first, whatever is forced."""
    return [form for form in FASTEST_FIRST if _obstacle(operator, form, device) is None]


def _fastest(operator: str, device: torch.device) -> Choice:
    preferred = PREFERENCES.get((operator, device.type))
    if preferred is not None and _obstacle(operator, preferred[0], device) is None:
        backend, why = preferred
        return Choice(backend, f"{operator} runs its {backend} form on {device}. {why}")
    passed_over: list[str] = []
    for backend in FASTEST_FIRST:
        obstacle = _obstacle(operator, backend, device)
        if obstacle is None:
            why = " ".join(passed_over) or "It is the fastest form there is."
            return Choice(backend, f"{operator} runs its {backend} form on {device}. {why}")
        passed_over.append(obstacle)
    raise AssertionError(f"{operator} has no form that runs on {device}: {passed_over}")


def _forced(operator: str, device: torch.device, backend: str) -> Choice:
    if backend not in FASTEST_FIRST:
        raise UsageError(
            "ops-backend-unknown",
            f"{VARIABLE} is {backend!r}; it can be {', '.join(reversed(FASTEST_FIRST))}.",
            f"Set it to one of these, or unset {VARIABLE} to have the fastest form chosen.",
        )
    obstacle = _obstacle(operator, backend, device)
    if obstacle is not None:
        raise SetupError(
            "ops-backend-missing",
            f"{VARIABLE} forces {backend}, but {operator} cannot run that way on {device}: "
            f"{obstacle}",
            f"Unset {VARIABLE}, or set it to portable.",
        )
    reason = f"{operator} runs its {backend} form on {device} because {VARIABLE} forces it."
    return Choice(cast(Backend, backend), reason)


def _obstacle(operator: str, backend: str, device: torch.device) -> str | None:
    """Why this form cannot run on ``device``, as a sentence; None if it can."""
    if operator not in OPERATORS:
        raise UsageError(
            "ops-operator-unknown",
            f"There is no operator {operator!r}; operators are {', '.join(OPERATORS)}.",
            "Use one of these names.",
        )
    path = f"turbodiffusion.ops.{operator}.{backend}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name == path:
            return f"There is no {backend} form of {operator}."
        return f"Its {backend} form needs {error.name}, which is not installed."
    except ImportError as error:
        return f"Its {backend} form cannot be imported: {error}."
    return module.obstacle(device) if hasattr(module, "obstacle") else None
