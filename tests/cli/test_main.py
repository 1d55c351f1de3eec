"""The command itself: help, version, unknown words, and how fast they come."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import turbodiffusion
from turbodiffusion.cli.main import COMMANDS, build_parser, main
from turbodiffusion.errors import TurboDiffusionError, UsageError, out_of_memory, run_guarded

ROOT = Path(__file__).resolve().parents[2]


def child(*words: str) -> tuple[str, float]:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "turbodiffusion", *words], cwd=ROOT, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    spent = time.perf_counter() - start
    assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    return done.stdout, spent


@pytest.mark.parametrize("words", [["--version"], ["--help"], [], ["generate", "--help"]], ids=str)
def test_quick_without_torch(words):
    tries = [child(*words) for _ in range(3)]
    assert min(spent for _, spent in tries) < 0.3
    out = tries[0][0]
    if words == ["--version"]:
        assert out.strip() == f"turbodiffusion {turbodiffusion.__version__}"
    elif words[:1] != ["generate"]:
        assert all(name in out for name in COMMANDS)


def test_every_command_has_a_parser_and_runs():
    from importlib import import_module

    parser = build_parser()
    assert parser.parse_args(["generate", "x"]).command == "generate"
    for name in COMMANDS:
        assert callable(import_module(f"turbodiffusion.cli.{name}").run)


@pytest.mark.parametrize(("chosen", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_between_operations_unless_told_otherwise(chosen, expected, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main([]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["animate"])
    assert caught.value.code == 2 and "generate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a-b", "m", "f"), 2),
        (TurboDiffusionError("a-b", "m", "f"), 1),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 4),
        (ValueError("can't allocate memory"), 1),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), 4),
    ],
    ids=repr,
)
def test_exit_codes(error, code, capsys):
    def run():
        raise error

    assert run_guarded(run) == code
    err = capsys.readouterr().err
    if isinstance(error, TurboDiffusionError):
        assert err == "error [a-b]: m\n  fix: f\n"


def test_gpu_out_of_memory():
    kind = type("OutOfMemoryError", (RuntimeError,), {})
    known = out_of_memory(kind("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"))
    assert known is not None and known.message.startswith("The GPU ran out of memory: CUDA out")
    assert out_of_memory(RuntimeError("shape mismatch")) is None
