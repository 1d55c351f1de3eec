"""The resolver: what it chooses, what it says, and that it never gives something else."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import torch

from turbodiffusion.errors import SetupError, UsageError
from turbodiffusion.ops import backend, norm
from turbodiffusion.ops.norm import rms_norm

CPU = torch.device("cpu")
FAKE = "turbodiffusion.ops.norm.triton"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(backend, "_choices", {})
    monkeypatch.delenv(backend.VARIABLE, raising=False)


def test_report_names_every_operator_and_explains_itself():
    report = backend.report(CPU)
    assert [name for name, _ in report] == list(backend.OPERATORS)
    for name, choice in report:
        assert choice.backend in ("portable", "naive", "triton")
        assert choice.reason.startswith(name) and choice.reason.endswith(".")
        assert choice.backend in choice.reason and "cpu" in choice.reason


@pytest.mark.parametrize("name", ["naive", "portable"])
def test_the_variable_forces_a_form(monkeypatch, name):
    monkeypatch.setenv(backend.VARIABLE, name)
    for operator, choice in backend.report(CPU):
        assert choice.backend == name and backend.VARIABLE in choice.reason
        assert backend.form(operator, CPU).__name__.endswith(f"{operator}.{name}")


def test_a_forced_form_that_does_not_exist_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, FAKE, None)  # importing it raises ModuleNotFoundError
    monkeypatch.setenv(backend.VARIABLE, "triton")
    with pytest.raises(SetupError, match="no triton form of norm") as caught:
        rms_norm(torch.ones(1, 4), torch.ones(4), 1e-6)
    assert caught.value.code == "ops-backend-missing"


def test_an_unknown_form_or_operator_is_an_error(monkeypatch):
    with pytest.raises(UsageError, match="'conv'"):
        backend.resolve("conv", CPU)
    monkeypatch.setenv(backend.VARIABLE, "cuda")
    with pytest.raises(UsageError, match=r"'cuda'.*naive, portable, triton"):
        backend.resolve("norm", CPU)


def fake_form(obstacle: str | None) -> ModuleType:
    module = ModuleType(FAKE)
    module.obstacle = lambda device: obstacle
    module.rms_norm = lambda x, weight, eps: x + 41
    return module


def test_a_triton_form_is_found_without_touching_callers(monkeypatch):
    fake = fake_form(None)
    monkeypatch.setitem(sys.modules, FAKE, fake)
    monkeypatch.setattr(norm, "triton", fake, raising=False)  # as importing it would
    assert backend.resolve("norm", CPU).backend == "triton"
    assert rms_norm(torch.ones(2), torch.ones(2), 1e-6).tolist() == [42.0, 42.0]


def test_an_obstacle_passes_over_a_form_and_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, FAKE, fake_form("It needs a GPU of capability 7.5."))
    choice = backend.resolve("norm", CPU)
    assert choice.backend == "portable"
    assert "It needs a GPU of capability 7.5." in choice.reason
    monkeypatch.setenv(backend.VARIABLE, "triton")
    with pytest.raises(SetupError, match=r"capability 7\.5"):
        backend.resolve("norm", CPU)


def test_the_choice_is_made_once(monkeypatch):
    first = backend.resolve("norm", CPU)
    monkeypatch.setitem(sys.modules, FAKE, fake_form(None))
    assert backend.resolve("norm", CPU) is first


def test_a_preference_goes_before_speed_and_is_said(monkeypatch):
    fake = fake_form(None)
    monkeypatch.setitem(sys.modules, FAKE, fake)
    sentence = "The plain form was faster here."
    monkeypatch.setitem(backend.PREFERENCES, ("norm", "cpu"), ("portable", sentence))
    choice = backend.resolve("norm", CPU)
    assert choice.backend == "portable" and choice.reason.endswith(sentence)
    monkeypatch.setenv(backend.VARIABLE, "triton")
    assert backend.resolve("norm", CPU).backend == "triton"


def test_dense_attention_prefers_pytorch_on_nvidia_gpus():
    choice = backend.resolve("attention", torch.device("cuda"))
    assert choice.backend == "portable" and "cuDNN" in choice.reason


def test_importing_the_operators_does_not_load_the_tracer():
    """It takes longer than torch itself, at every start."""
    code = "import sys\nfrom turbodiffusion.ops import attention, linear, norm, rope, sla\n"
    code += "print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
