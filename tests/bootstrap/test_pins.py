"""The requirement files fit together: every range has a pin inside it, for every Python."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import check_pins
from tests.bootstrap.checkout import ROOT
from turbodiffusion.bootstrap import tags


def read(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(python: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pin in read("lock.txt"):
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            name = canonicalize_name(pin.name)
            assert name not in found, f"two pins of {name} for Python {python}"
            found[name] = str(pin.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("python", check_pins.PYTHONS)
def test_every_range_has_its_pin(python):
    locked = pins(python)
    for requirement in [*read("runtime.txt"), *read("test.txt")]:
        if requirement.name not in ("torch", "triton"):  # torch decides which Triton it wants
            assert locked[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("release", [tags.TESTED_TORCH, tags.CU128_TORCH, tags.OLD_DRIVER_TORCH])
def test_torch_range_holds_every_release_chosen(release):
    [torch] = [item for item in read("runtime.txt") if item.name == "torch"]
    assert release in torch.specifier
    assert "2.9.1" not in torch.specifier and "2.15.0" not in torch.specifier


def test_torch_itself_is_not_locked():
    assert not {"torch", "triton"} & set(pins("3.12"))


def test_what_torch_needs_is_what_it_declares():
    """The list that stands in for torch in ``check_pins``; its setuptools bound is of 2.11."""
    if not importlib.metadata.version("torch").startswith(tags.TESTED_TORCH):
        pytest.skip("another torch is installed")
    declared = [Requirement(text) for text in importlib.metadata.requires("torch") or []]
    plain = {item.name: item for item in declared if item.marker is None}
    listed = {Requirement(text).name: Requirement(text) for text in check_pins.TORCH_NEEDS}
    assert plain.keys() == listed.keys()
    for python in check_pins.PYTHONS:
        for name, item in plain.items():
            assert pins(python)[canonicalize_name(name)] in item.specifier


def test_marker():
    assert check_pins.marker({"3.10", "3.11", "3.12", "3.13"}) == ""
    assert check_pins.marker({"3.12", "3.13"}) == ' ; python_version >= "3.12"'
    odd = ' ; python_version == "3.10" or python_version == "3.12"'
    assert check_pins.marker({"3.12", "3.10"}) == odd


def test_every_pin_is_exact():
    assert all(re.fullmatch(r"==[\w.]+", str(item.specifier)) for item in read("lock.txt"))
