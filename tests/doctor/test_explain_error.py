"""Exceptions of our own commands pass through the catalogue before they are printed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.doctor.codes import ROOT
from turbodiffusion.doctor import explain_error
from turbodiffusion.doctor.explain_error import recognised, words
from turbodiffusion.errors import (
    CapacityError,
    SetupError,
    UsageError,
    WeightsError,
    run_guarded,
)


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as one:
        return one


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (RuntimeError("No CUDA GPUs are available"), "NO-GPU-VISIBLE", SetupError),
        (AssertionError("Torch not compiled with CUDA enabled"), "TORCH-CPU-BUILD", SetupError),
        (ModuleNotFoundError("No module named 'torch'"), "TORCH-NOT-INSTALLED", SetupError),
        (OSError(28, "No space left on device", "a.mp4"), "DISK-FULL", CapacityError),
        (OSError("[WinError 1455] Die Auslagerungsdatei ist zu klein"), "WIN-PAGEFILE-TOO-SMALL",
         CapacityError),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_a_known_failure_gets_the_headline_the_fixes_and_its_own_words(error, code, kind):
    known = recognised(caught(error))
    assert known is not None and known.code == code and type(known) is kind
    assert str(error) in known.message
    assert f"turbodiffusion errors {code}" in known.fix


def test_unknown_failures_stay_unknown():
    assert recognised(caught(KeyError("blocks.0"))) is None
    assert recognised(caught(ValueError("torch 2.13.0+cpu is here"))) is None, "a sign only"
    assert recognised(caught(UserWarning("The pynvml package is deprecated"))) is None, "harmless"


def test_memory_keeps_its_own_error():
    known = recognised(caught(MemoryError()))
    assert known is not None and known.code == "memory-exhausted"


def test_the_root_of_a_chain_is_the_headline():
    try:
        try:
            raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")
        except OSError:
            raise RuntimeError("0 active drivers ([]). There should only be one.")  # noqa: B904
    except RuntimeError as error:
        known = recognised(error)
    assert known is not None and known.code == "LIBCUDA-NOT-FOUND"
    assert "0 active drivers" in known.message


def test_a_suppressed_context_is_not_searched():
    try:
        try:
            raise RuntimeError("No CUDA GPUs are available")
        except RuntimeError:
            raise KeyError("x") from None
    except KeyError as error:
        assert recognised(error) is None


def test_our_own_source_lines_are_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(explain_error, "_PACKAGE", str(tmp_path))
    path = tmp_path / "ours.py"
    path.write_text('def f():\n    raise KeyError  # "No CUDA GPUs are available"\n')
    space: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    try:
        space["f"]()
    except KeyError as error:
        assert "ours.py" in words(error) and "No CUDA" not in words(error)


def test_an_error_of_ours_that_passes_another_on_gets_its_fixes():
    error = WeightsError(
        "weights-download", "x could not be fetched: 429 Client Error: Too Many Requests", "Again."
    )
    known = recognised(caught(error))
    assert known is not None and known.code == error.code and type(known) is WeightsError
    assert known.message == error.message
    assert known.fix.startswith("Again.\n  or: ") and "hf auth login" in known.fix
    assert error.fix == "Again."


def test_a_specific_error_of_ours_stays_as_it_is():
    error = CapacityError("media-disk-full", "No room (No space left on device).", "Free some.")
    assert recognised(caught(error)) is None
    error.__cause__ = OSError(28, "No space left on device")
    assert recognised(error) is None
    assert recognised(caught(UsageError("prompt-empty", "The prompt is empty.", "Say."))) is None


def fail(error: BaseException, **options: bool) -> int:
    def run() -> int:
        raise error

    return run_guarded(run, recognise=recognised, **options)


def test_printing_and_exit_codes(capsys):
    assert fail(RuntimeError("No CUDA GPUs are available")) == 3
    err = capsys.readouterr().err
    assert err.startswith("error [NO-GPU-VISIBLE]: The driver works, but no GPU is visible. ")
    assert "RuntimeError: No CUDA GPUs are available\n  fix: " in err and "Traceback" not in err
    assert fail(RuntimeError("No CUDA GPUs are available"), debug=True) == 3
    assert "Traceback" in capsys.readouterr().err
    assert fail(KeyError("blocks.0")) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "error [internal-error]" in err and "bugreport" in err


def test_only_remedies_for_this_system_are_shown(monkeypatch):
    error = caught(RuntimeError("Found no NVIDIA driver on your system"))
    monkeypatch.setattr(explain_error, "places", lambda: {"", "Linux"})
    fix = recognised(error).fix
    assert "ubuntu-drivers" in fix and "WSL" not in fix and "Start-Process" not in fix
    monkeypatch.setattr(explain_error, "places", lambda: {"", "Windows"})
    monkeypatch.setattr(explain_error.os, "name", "nt")
    fix = recognised(error).fix
    assert "Start-Process" in fix and "ubuntu-drivers" not in fix


def test_a_long_message_is_shortened():
    error = caught(RuntimeError("No CUDA GPUs are available " + "x" * 5000))
    assert len(recognised(error).message) < 500


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-u", "-m", "turbodiffusion", "errors"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait(30) == 0
    child.stderr.close()
    assert fail(BrokenPipeError(32, "Broken pipe")) == 1, "of something else than stdout"


def test_the_command_uses_the_catalogue():
    """In a child, with a command that meets a failure of other software."""
    script = (
        "import sys; from turbodiffusion.cli import info, main\n"
        "def probe(path): raise RuntimeError('CUDA error: device kernel image is invalid')\n"
        "info.read_settings = probe\n"
        "sys.exit(main.main(['info', 'x.mp4']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.startswith("error [KERNEL-IMAGE-INVALID]: ")
