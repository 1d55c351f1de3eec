"""Everything to do on a GPU that is lent for a few minutes, in one command.

    python benchmarks/gpu_session.py --out results --seconds 480 --golden ../shared/golden

Steps run one after the other as child processes, each with a time limit and a log of its own in
``--logs``; one that fails or takes too long does not stop the next. Unused time goes to later
steps. The summary comes last and is in ``--out`` too, as ``summary.json``, beside ``session.log``,
which is all logs in one, and the results of the steps.

    check    every benchmark row at small awkward shapes, against bounds
    tests    the operator tests marked gpu, where pytest is installed
    golden   networks and SLA against the golden vectors, Triton forced
    mini     the embedded model, once with each form of the operators, judged
    tune     launch candidates of every kernel
    bench    the table of operators, and whole forward passes
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRITON = {"TURBODIFFUSION_BACKEND": "triton"}
TAIL = 12  # lines of a log that failed, shown in the summary


@dataclass(frozen=True)
class Step:
    """A child process. ``weight`` is its share of the session's time."""

    name: str
    weight: float
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    obstacle: str = ""


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    verdict: str
    seconds: float
    log: str
    tail: list[str] = field(default_factory=list)


def steps(args: argparse.Namespace) -> list[Step]:
    """The steps in order, for the time that the session has."""
    python, device = sys.executable, args.device
    small = ["--quick"] if args.quick else []
    check = (
        "import sys, torch; from turbodiffusion.bench.check import check; "
        f"sys.exit(check(torch.device({device!r}), lambda line: print(line, flush=True)) > 0)"
    )
    marker = "gpu" if device.startswith("cuda") else "not gpu and not slow"
    tests = [python, "-m", "pytest", "-q", "-m", marker, "--maxfail=30", *args.tests]
    pytest = "" if importlib.util.find_spec("pytest") else "pytest is not installed"
    judge = [
        python, "-m", "turbodiffusion", "mini", "judge", "--size", "micro", "--rows", "teacher",
        "--samples", str(args.samples), "--device", device,
    ]  # fmt: skip
    forced = TRITON if device.startswith("cuda") else {}
    golden = [python, "benchmarks/golden_device.py", device, str(args.golden)]
    missing = "" if args.golden.is_dir() else f"there is no folder {args.golden}"
    tune = [
        python, "benchmarks/tune_ops.py", "--device", device, "--out", str(args.out / "tune.json"),
        "--seconds", f"{args.seconds * WEIGHTS['tune'] / TUNED:.0f}", "--shapes", *args.tuned,
        "--blocks", "128x64", "64x128",
    ]  # fmt: skip
    bench = [
        python, "-m", "turbodiffusion", "bench", "ops", "--device", device, *small,
        "--json", str(args.out / "ops.json"), "--markdown", str(args.out / "ops.md"),
        "--seconds", str(args.row_seconds),
    ]  # fmt: skip
    found = [
        Step("check", WEIGHTS["check"], [python, "-c", check], forced),
        Step("tests", WEIGHTS["tests"], tests, {}, pytest),
        Step("golden", WEIGHTS["golden"], golden, forced, missing),
        *(
            Step(f"mini-{form}", WEIGHTS["mini"], judge, {"TURBODIFFUSION_BACKEND": form})
            for form in ("portable", "triton", "naive")
            if forced or form != "triton"
        ),
        Step("tune", WEIGHTS["tune"], tune),
        Step("bench", WEIGHTS["bench"], bench),
    ]
    return [s for s in found if s.name.split("-")[0] in args.only]


WEIGHTS = {"check": 0.1, "tests": 0.15, "golden": 0.05, "mini": 0.05, "tune": 0.25, "bench": 0.3}
"""Shares of the session's time; ``mini`` once for each of three forms."""
TUNED = 5  # operators that share the time of tuning


def run(step: Step, limit: float, folder: Path) -> Outcome:
    """Run one step for at most ``limit`` seconds; its whole process group ends with it."""
    log = folder / f"{step.name}.log"
    if step.obstacle:
        return Outcome(step.name, f"skipped: {step.obstacle}", 0.0, "")
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **step.environment}
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
        )  # fmt: skip
        try:
            code = child.wait(limit)
            verdict = "ok" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            _end(child)
            verdict = f"stopped after {limit:.0f} s"
    lines = log.read_text("utf-8", errors="replace").splitlines()
    tail = [] if verdict == "ok" else lines[-TAIL:]
    return Outcome(step.name, verdict, time.monotonic() - begin, log.name, tail)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Interrupt a step, so that it can still print, then end it and what it started."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            if os.name == "posix":
                os.killpg(child.pid, number)
            else:
                child.terminate()
            child.wait(3)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


def session(planned: list[Step], seconds: float, logs: Path, folder: Path) -> list[Outcome]:
    """All steps in turn. A step may use its share of the time that is left, by weight."""
    end = time.monotonic() + seconds
    outcomes = []
    for i, step in enumerate(planned):
        left = max(0.0, end - time.monotonic())
        limit = left * step.weight / sum(s.weight for s in planned[i:])
        print(f"{step.name}: at most {limit:.0f} s", flush=True)
        outcome = run(step, limit, logs)
        outcomes.append(outcome)
        print(f"{step.name}: {outcome.verdict}, {outcome.seconds:.0f} s", flush=True)
        summary = json.dumps([asdict(o) for o in outcomes], indent=1, ensure_ascii=False)
        (folder / "summary.json").write_text(summary, "utf-8")
        if outcome.log:
            with (folder / "session.log").open("a", encoding="utf-8") as file:
                file.write(f"==== {step.name}: {outcome.verdict}, {outcome.seconds:.0f} s\n")
                file.write((logs / outcome.log).read_text("utf-8", errors="replace"))
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = list(WEIGHTS)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for results")
    parser.add_argument("--logs", type=Path, help="folder for logs (default: logs in --out)")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all steps together")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STEP")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="bench one shape only")
    parser.add_argument("--row-seconds", type=float, default=0.5, help="for each benchmark row")
    parser.add_argument("--samples", type=int, default=16, help="videos the judge sees, a row")
    parser.add_argument("--tuned", nargs="+", default=["1.3b-480p"], metavar="SHAPE")
    parser.add_argument("--tests", nargs="+", default=["tests/ops"], metavar="PATH")
    default = os.environ.get("TURBODIFFUSION_GOLDEN", str(ROOT.parent / "shared" / "golden"))
    parser.add_argument("--golden", type=Path, default=Path(default))
    args = parser.parse_args(argv)
    args.out, args.golden = args.out.resolve(), args.golden.resolve()
    logs = (args.logs or args.out / "logs").resolve()
    for folder in (args.out, logs):
        folder.mkdir(parents=True, exist_ok=True)

    outcomes = session(steps(args), args.seconds, logs, args.out)
    print("\nsummary")
    for o in outcomes:
        print(f"  {o.name:<14} {o.seconds:6.0f} s  {o.verdict}")
        for line in o.tail:
            print(f"      {line}")
    return 0 if all(o.verdict == "ok" or o.verdict.startswith("skipped") for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
