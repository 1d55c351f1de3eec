"""Plain values into settings dataclasses and back, each value checked against its field's type."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from turbodiffusion.errors import UsageError

Settings = TypeVar("Settings")


def refused(name: str, value: Any, allowed: str, example: str) -> UsageError:
    """The error of a value that is out of range; ``example`` is one that is not."""
    return UsageError(
        "train-setting", f"{name} must be {allowed}, not {value!r}.", f"Use --set {example}."
    )


def plain(value: Any, annotation: Any) -> Any:
    """A settings dataclass as a dict; those of a field that can be of several kinds name theirs."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    hints = get_type_hints(type(value))
    found = {one.name: plain(getattr(value, one.name), hints[one.name]) for one in fields(value)}
    several = len(_kinds(annotation)) > 1
    return {"kind": type(value).__name__, **found} if several else found


def _kinds(annotation: Any) -> dict[str, type]:
    """The dataclasses that a setting can be, by name."""
    options = get_args(annotation) or (annotation,)
    return {one.__name__: one for one in options if isinstance(one, type) and is_dataclass(one)}


def changed(settings: Settings, values: Mapping[str, Any], prefix: str = "") -> Settings:
    """A copy of a settings dataclass with ``values``, nested ones inside.

    Raises:
        UsageError: an unknown name, or a value of another type.
    """
    assert is_dataclass(settings) and not isinstance(settings, type)
    return replace(settings, **_values(type(settings), values, prefix, vars(settings)))


def _values(
    kind: type, values: Mapping[str, Any], prefix: str, current: Mapping[str, Any]
) -> dict[str, Any]:
    """``values`` for the fields of the dataclass ``kind``, each as its type asks."""
    hints = get_type_hints(kind)
    names = [one.name for one in fields(kind)]
    for name in values:
        if name not in names:
            near = get_close_matches(name, names, 1) or names
            raise UsageError(
                "train-setting-unknown",
                f"There is no setting {prefix}{name}; there are {', '.join(names)}.",
                f"Perhaps {prefix}{near[0]} was meant.",
            )
    return {
        name: _value(value, hints[name], f"{prefix}{name}", current.get(name))
        for name, value in values.items()
    }


def _value(value: Any, annotation: Any, name: str, current: Any) -> Any:
    """A value for one field: a dataclass from an object or a name, or anything :func:`_typed`."""
    kinds = _kinds(annotation)
    if isinstance(value, str) and value in kinds:
        value = {"kind": value}
    if not isinstance(value, Mapping):
        return _typed(value, annotation, name)
    inner = {key: one for key, one in value.items() if key != "kind"}
    same = is_dataclass(current) and value.get("kind") in (None, type(current).__name__)
    if same:
        return changed(current, inner, f"{name}.")
    if not kinds:
        return _typed(value, annotation, name)
    chosen = value.get("kind", next(iter(kinds)) if len(kinds) == 1 else None)
    if chosen not in kinds:
        raise refused(f"{name}.kind", chosen, f"one of {', '.join(kinds)}",
                       f"{name}={next(iter(kinds))}")  # fmt: skip
    given = _values(kinds[chosen], inner, f"{name}.", {})
    for one in fields(kinds[chosen]):
        if one.name not in given and one.default is MISSING and one.default_factory is MISSING:
            raise UsageError(
                "train-setting",
                f"{chosen} as {name} needs a value for {one.name}.",
                f"Give {name}.{one.name} as well.",
            )
    return kinds[chosen](**given)


def _typed(value: Any, kind: Any, name: str) -> Any:
    """``value`` as ``kind``: a plain type, a choice of words, a tuple, or one of several."""
    options = get_args(kind)
    if get_origin(kind) is Literal:
        if value in options:
            return value
        raise refused(name, value, f"one of {', '.join(map(str, options))}", f"{name}={options[0]}")
    if get_origin(kind) is types.UnionType:
        for one in options:
            if one is type(None):
                if value is None:
                    return None
                continue
            try:
                return _typed(value, one, name)
            except UsageError:
                continue
    elif get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        inner = options[0]
        if options[-1] is Ellipsis or len(value) == len(options):
            return tuple(_typed(one, inner, name) for one in value)
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif kind is str and not isinstance(value, (dict, list)):
        return str(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    shown = kind.__name__ if isinstance(kind, type) else str(kind)
    raise UsageError(
        "train-setting", f"{name} must be of type {shown}, not {value!r}.", "Correct the value."
    )
