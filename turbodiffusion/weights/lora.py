"""LoRA files: changes to a network, found by name; :mod:`.adapted` adds them.

A change is a product of two thin matrices, ``weight += strength · (alpha/rank) · up · down``, or a
plain difference. Writers name both in many ways; all of them are a module of the network, in the
released or diffusers' words, and an ending (:data:`ENDINGS`). Where no alpha is stored, it is the
rank. LyCORIS' other kinds of change (Kronecker and Hadamard products) are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turbodiffusion.errors import UsageError, WeightsError
from turbodiffusion.weights.check import some
from turbodiffusion.weights.detect import lora_dialect
from turbodiffusion.weights.header import Header, read_header
from turbodiffusion.weights.layouts import DIFFUSERS_DIT, INFIX, translate
from turbodiffusion.weights.spec import Spec
from turbodiffusion.weights.stream import read_elements

# (pattern of an ending, what the tensor is)
ENDINGS: tuple[tuple[str, str], ...] = (
    (r"\.lora_(down|A)(\.\w+)?(\.weight)?", "down"),
    (r"\.lora_(up|B)(\.\w+)?\.bias", "up_bias"),
    (r"\.lora_(up|B)(\.\w+)?(\.weight)?", "up"),
    (r"(_lora|\.lora|\.lora_linear_layer)\.down\.weight", "down"),
    (r"(_lora|\.lora|\.lora_linear_layer)\.up\.weight", "up"),
    (r"\.alpha", "alpha"),
    (r"\.diff", "weight"),
    (r"\.diff_b", "bias"),
    (r"\.diff_m", "modulation"),
)
_ENDING = re.compile("(?P<module>.+?)(?:" + "|".join(
    f"(?P<n{n}>{pattern})" for n, (pattern, _) in enumerate(ENDINGS)
) + ")")  # fmt: skip
_REFUSED = re.compile(r"\.(lokr_|hada_|oft_|boft_|glora_|lora_mid|dora_scale|lora_magnitude)")
_PREFIXES = (
    "model.diffusion_model.", "diffusion_model.", "base_model.model.", "pipe.dit.",
    "transformer_2.", "transformer.", "model.", "net.", "module.",
)  # fmt: skip
_UNDERSCORED = re.compile(r"lora_(unet|transformer)__?")
_SECOND = re.compile(r"^transformer_2\.")
_PEFT = "lora_adapter_metadata"  # diffusers' key for the adapter's settings


@dataclass(frozen=True)
class Change:
    """What is added to one tensor: ``scale · up · down``, or ``scale · up`` where there is no
    ``down``. Both are keys of the file."""

    up: str
    down: str = ""
    scale: float = 1.0


@dataclass
class LoRA:
    """The changes of one file to one network.

    ``changes`` are by released tensor name; ``unmatched`` are keys of the file that change nothing
    here, with the reason.
    """

    header: Header
    dialect: str
    changes: dict[str, list[Change]] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)
    ranks: set[int] = field(default_factory=set)

    def line(self, strength: float) -> str:
        """For people: what is used, and what is not."""
        ranks = f", rank {', '.join(map(str, sorted(self.ranks)))}" if self.ranks else ""
        return (
            f"lora     {self.header.path.name}: {len(self.changes)} tensors changed "
            f"({self.dialect} naming{ranks}, strength {strength:g})"
        )

    def leftovers(self) -> list[str]:
        """Keys that change nothing, counted and named by reason."""
        reasons: dict[str, list[str]] = {}
        for key, reason in self.unmatched.items():
            reasons.setdefault(reason, []).append(key)
        return [f"{len(keys)} ({why}): {some(tuple(keys))}" for why, keys in reasons.items()]


def open_lora(path: str | Path, network: Spec, expert: str = "") -> LoRA:
    """Find out which tensors of ``network`` a LoRA file changes.

    Args:
        network: released names and shapes.
        expert: ``high`` or ``low`` where the network is one of two; only files that hold changes
            for both ask for it.

    Raises:
        WeightsError: it is no LoRA, of a kind that is not supported, or changes nothing here.
        UsageError: it holds changes for two experts, and which one the network is, is unknown.
    """
    header = read_header(path)
    dialect = lora_dialect(header.tensors)
    refused = tuple(key for key in header.tensors if _REFUSED.search(key))
    if refused or not dialect:
        what = f"changes a network in a way that is not supported ({some(refused)})"
        raise WeightsError(
            "lora-kind",
            f"{header.path} {what if refused else 'is no LoRA'}.",
            "Use a LoRA of plain low-rank products (lora_A and lora_B, or lora_down and lora_up).",
        )
    lora = LoRA(header, dialect)
    names, alphas = _module_names(network), _Alphas(header, expert)
    for module, parts in _modules(header, expert, lora.unmatched).items():
        bare = _bare(module)
        _assign(lora, parts, names.get(bare, ""), bare, network, alphas)
    if not lora.changes:
        raise WeightsError(
            "lora-nothing",
            f"Nothing in {header.path} fits the network: {'; '.join(lora.leftovers())}.",
            "Use a LoRA that was trained on this model; `turbodiffusion inspect` shows the sizes.",
        )
    return lora


def _modules(header: Header, expert: str, unmatched: dict[str, str]) -> dict[str, dict[str, str]]:
    """Module as the file names it → part → key, for the expert in question."""
    second = {key for key in header.tensors if _SECOND.match(key)}
    chosen = set(header.tensors)
    if second and second != chosen:
        if expert not in ("high", "low"):
            raise UsageError(
                "lora-expert",
                f"{header.path} holds changes for the high- and the low-noise expert.",
                "Let the name of the base file say which one it is: ….high.pth or ….low.pth.",
            )
        chosen = second if expert == "low" else chosen - second
    modules: dict[str, dict[str, str]] = {}
    for key in header.tensors:
        found = _ENDING.fullmatch(key)
        if key not in chosen:
            unmatched[key] = "for the other expert"
        elif found is None:
            unmatched[key] = "no part of a change"
        else:
            part = next(p for n, (_, p) in enumerate(ENDINGS) if found[f"n{n}"])
            modules.setdefault(found["module"], {})[part] = key
    return modules


def _bare(module: str) -> str:
    """A module's name without what trainers put before it."""
    module = module.replace(INFIX, "")
    if underscored := _UNDERSCORED.match(module):
        return module[underscored.end() :]
    stripped = next((module[len(p) :] for p in _PREFIXES if module.startswith(p)), module)
    return stripped if stripped == module else _bare(stripped)


def _module_names(network: Spec) -> dict[str, str]:
    """Every spelling of a module → its released name."""
    names = {}
    for tensor in network:
        for module in (tensor.rpartition(".")[0], tensor):  # a modulation is named itself
            spellings = [module, translate(module, DIFFUSERS_DIT, back=True) or module]
            for spelling in spellings:
                names[spelling] = names[spelling.replace(".", "_")] = module
    return names


def _assign(
    lora: LoRA, parts: Mapping[str, str], module: str, bare: str, network: Spec, alphas: _Alphas
) -> None:
    """Turn the parts of one module into changes, or say why not."""
    if not module:
        lora.unmatched |= dict.fromkeys(parts.values(), "no such part of this network")
        return
    tensors = lora.header.tensors
    down, up = parts.get("down"), parts.get("up")
    rank = tensors[down].shape[0] if down else 0
    scale = alphas.scale(bare, parts.get("alpha"), rank) if rank else 1.0
    targets: list[tuple[str, Change, tuple[str, ...]]] = []
    if up and down:
        targets.append((f"{module}.weight", Change(up, down, scale), (up, down)))
    for part, factor in (("weight", 1.0), ("bias", 1.0), ("up_bias", scale), ("modulation", 1.0)):
        if key := parts.get(part):
            ending = "bias" if part == "up_bias" else part
            name = module if module.endswith(".modulation") else f"{module}.{ending}"
            targets.append((name, Change(key, scale=factor), (key,)))
    used = {key for *_, keys in targets for key in keys}
    for key in {up, down} - used - {None}:
        lora.unmatched[str(key)] = "half of a product"
    for name, change, keys in targets:
        spec = network.get(name)
        if spec is None:
            reason = "no such part of this network"
        elif math.prod(spec.shape) != _elements(lora.header, change, spec.shape):
            reason = "another shape"
        else:
            lora.changes.setdefault(name, []).append(change)
            lora.ranks |= {rank} if change.down else set()
            continue
        lora.unmatched |= dict.fromkeys(keys, reason)


def _elements(header: Header, change: Change, shape: tuple[int, ...]) -> int:
    """Elements of a change; −1 if its matrices do not fit each other or its rows the tensor's."""
    up = header.tensors[change.up]
    if not change.down:
        return up.elements
    down = header.tensors[change.down]
    rank = down.shape[0]
    if not rank or up.elements != shape[0] * rank:
        return -1
    return shape[0] * (down.elements // rank)


class _Alphas:
    """The alphas of a file: beside the matrices, in its metadata, or in PEFT's file beside it."""

    def __init__(self, header: Header, expert: str) -> None:
        self.header = header
        self.settings: dict[str, Any] = {}
        beside = header.path.parent / "adapter_config.json"
        if text := header.metadata.get(_PEFT):
            # "transformer.lora_alpha": the prefix tells the networks of a pipeline apart.
            packed = _object(text)
            second = {key: value for key, value in packed.items() if _SECOND.match(key)}
            first = {key: value for key, value in packed.items() if key not in second}
            chosen = second if second and (expert == "low" or not first) else first
            self.settings = {key.rpartition(".")[2]: value for key, value in chosen.items()}
        elif header.path.is_file() and beside.is_file():
            self.settings = _object(beside.read_text("utf-8"))

    def scale(self, module: str, key: str | None, rank: int) -> float:
        if key is not None:
            return float(read_elements(self.header, key, 0, 1)) / rank
        patterns = self.settings.get("alpha_pattern") or {}
        fitting = (v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module))
        alpha = next(fitting, self.settings.get("lora_alpha") or rank)
        return float(alpha) / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
