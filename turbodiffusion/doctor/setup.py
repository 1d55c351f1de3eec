"""``turbodiffusion setup``: choose torch, install, try it by running, undo what failed.

The steps themselves are those of every first start (:mod:`turbodiffusion.bootstrap.install`). This
adds a plan that is shown before anything happens, a copy of the environment until the new one has
proved itself, and repairs that touch only what a check complained about.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from turbodiffusion.bootstrap import gpu, install, repair, sizes, tags
from turbodiffusion.bootstrap.environment import Environment, base_python
from turbodiffusion.bootstrap.tags import Build, Machine
from turbodiffusion.doctor import readings, rules, shell, show
from turbodiffusion.doctor.facts import Facts
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.probes import PROBES
from turbodiffusion.doctor.readings.interpreter import ROOT
from turbodiffusion.doctor.undo import Aside, Snapshot, beside, recover
from turbodiffusion.doctor.verdict import Verdict, judge
from turbodiffusion.errors import SetupError, TurboDiffusionError, UsageError

CHECKS = ("P17", "P05", "P06", "P07", "P08", "P11", "P19", "P27")
"""The probes whose answer depends on what is installed."""

VARIABLE = "TURBODIFFUSION_TORCH"

Say = Callable[[str], None]
Agree = Callable[[str], bool]
Check = Callable[[Environment, Sequence[str]], tuple[Facts, Verdict]]


@dataclass(frozen=True)
class Options:
    """What the user asked for; see ``turbodiffusion setup --help``."""

    venv: str = ""
    torch: str = ""
    dry_run: bool = False
    clean: bool = False


def check(environment: Environment, probes: Sequence[str]) -> tuple[Facts, Verdict]:
    """Doctor's answer for an environment, of these probes."""
    needs = {need for number in probes for need in PROBES[number].needs}
    facts = readings.read(needs, environment=environment)
    return facts, judge(facts, probes)


class Setup:
    """One run of the command. ``say`` prints, ``agree`` asks, ``check`` judges the result."""

    def __init__(self, options: Options, say: Say, agree: Agree, check: Check = check) -> None:
        self.options = options
        self.say = say
        self.agree = agree
        self.check = check
        self.environment = Environment(ROOT, options.venv or None)

    def run(self) -> int:
        """Make the environment, or bring it to what this machine needs; returns the exit code."""
        self._require_checkout()
        self._refuse_inside()
        machine, build = self._choose()
        reason = self._other_build(build) or self.environment.outdated()
        if self.options.clean and self.environment.folder.exists():
            reason = "a fresh start was asked for"
        for line in plan(self.environment, machine, build, reason):
            self.say(line)
        if self.options.dry_run:
            return 0
        if reason and not self.agree("Go on?"):
            self.say("Nothing was changed.")
            return 0
        return self._change(reason, CHECKS, ()) if reason else self._report(CHECKS)

    def fix(self, only: Sequence[str] = ()) -> int:
        """Repair what the checks complain about, then run those checks again."""
        self._require_checkout()
        self._refuse_inside()
        if not self.environment.alive():
            self.say(f"There is no environment in {self.environment.folder} yet.")
            return self.run()
        probes = tuple(only) or tuple(PROBES)
        facts, verdict = self.check(self.environment, probes)
        todo = [f for f in verdict.problems if f.repairable]
        for finding in verdict.problems:
            for line in show.problem(finding) if finding not in todo else ():
                self.say(line)
        if not todo:
            self.say("Nothing is left that setup could repair.")
            return verdict.exit_code
        self.say("To repair:")
        for finding in todo:
            self.say(f"  {finding.probe} {finding.found}")
        if self.options.dry_run:
            return 0
        if not self.agree("Go on?"):
            self.say("Nothing was changed.")
            return 0
        again = tuple(dict.fromkeys(f.probe for f in todo))
        return self._change(todo[0].found, again, forgotten(todo, facts))

    def _choose(self) -> tuple[Machine, Build]:
        """The build by flag, by variable, or by the machine."""
        if self.options.torch:
            os.environ[VARIABLE] = self.options.torch
        machine = gpu.read_machine()
        asked = os.environ.get(VARIABLE)
        return machine, tags.parse(asked) if asked else tags.choose(machine)

    def _other_build(self, build: Build) -> str:
        stamp = self.environment.read_stamp()
        if stamp and stamp["tag"] != build.tag:
            return f"this machine needs torch {build.exact}, installed is {stamp['tag']}"
        return ""

    def _require_checkout(self) -> None:
        root = self.environment.root
        if not (root / "turbo.py").is_file():
            raise SetupError(
                "setup-no-checkout",
                f"There is no turbo.py in {root}: the package was installed by pip.",
                "`turbodiffusion doctor` gives the pip commands; or start turbo.py of a checkout.",
            )

    def _refuse_inside(self) -> None:
        """Windows cannot replace files of a running Python."""
        if os.name == "nt" and Path(sys.prefix) == self.environment.folder:
            raise UsageError(
                "setup-inside",
                "This Python is the one of the environment that is to be changed.",
                "Leave the environment (deactivate) and run: py turbo.py setup",
            )

    def _change(self, reason: str, probes: Sequence[str], forget: Sequence[str]) -> int:
        """Install with a way back, and keep the result only if it is no worse."""
        with self.environment.locked():
            return self._change_locked(reason, probes, forget)

    def _change_locked(self, reason: str, probes: Sequence[str], forget: Sequence[str]) -> int:
        folder = self.environment.folder
        if beside(folder).exists() and self.environment.outdated() and recover(folder):
            self.say("An earlier change was interrupted; the environment before it is back.")
        install.check_folder(self.environment)
        before = self._blockers(probes) if self.environment.alive() else None
        kept = self._keep()
        try:
            for name in forget:
                forget_package(self.environment, name)
            install.ensure(self.environment, because=reason)
            facts, verdict = self.check(self.environment, probes)
        except BaseException as error:
            self._undo(kept, error)
            raise
        worse = {f.probe for f in verdict.problems if f.level == "blocker"} - (before or set())
        if kept and worse and before is not None:
            kept.restore()
            self.say("The result was worse than before, so the environment is as it was:")
            for finding in verdict.problems:
                self.say("\n".join(show.problem(finding)))
            return 3
        if kept:
            kept.discard()
        return self._tell(facts, verdict)

    def _keep(self) -> Snapshot | None:
        folder = self.environment.folder
        if not self.environment.alive():
            return None
        return Aside(folder) if self.options.clean else Snapshot(folder)

    def _blockers(self, probes: Sequence[str]) -> set[str]:
        _, verdict = self.check(self.environment, probes)
        return {f.probe for f in verdict.problems if f.level == "blocker"}

    def _undo(self, kept: Snapshot | None, error: BaseException) -> None:
        if kept is None:
            return
        kept.restore()
        self.say("The change failed, so the environment is as it was.")
        if isinstance(error, TurboDiffusionError):
            error.message = f"{error.message} (Undone.)"

    def _report(self, probes: Sequence[str]) -> int:
        return self._tell(*self.check(self.environment, probes))

    def _tell(self, facts: Facts, verdict: Verdict) -> int:
        """The result of the checks, and how to start from now on."""
        for finding in verdict.problems:
            self.say("\n".join(show.problem(finding)))
        self.say(show.summary(facts, verdict))
        if self.options.venv:
            folder = str(self.environment.folder)
            line = shell.assign(facts, "TURBODIFFUSION_VENV", folder)
            self.say(f"Before other commands: {line}")
        return verdict.exit_code


def plan(environment: Environment, machine: Machine, build: Build, reason: str) -> list[str]:
    """What set-up would do, in the order it would do it. Pure: nothing is started."""
    lines = [f"Environment: {environment.folder}"]
    driver = rules.driver(machine.driver)
    for one in machine.gpus:
        capability = ".".join(map(str, one.capability))
        lines.append(f"GPU: {one.name}, capability {capability}, driver {driver}")
    lines += [f"Note: {note}" for note in build.notes]
    if not reason:
        return [*lines, f"Nothing to install: torch {build.exact} and all packages are in place."]
    torch, packages = sizes.of_torch(machine, build), sizes.of_packages(machine, ())
    steps = [
        f"{'keep' if environment.alive() else 'make'} the folder, with {base_python()}",
        f"torch {build.exact} from the PyTorch wheel index, tag {build.tag}: {torch.text} "
        f"({torch.disk_text} on disk)",
        f"the packages of requirements/lock.txt with torch held in place: {packages.text}",
        f"checks {', '.join(CHECKS)} by running them",
    ]
    if machine.system == "Windows" and build.tag != "cpu":
        steps.insert(2, f"triton-windows {build.triton_windows}")
    if environment.alive():
        steps.append("if anything fails or gets worse, the environment as it is now")
    lines.append(f"Because: {reason}")
    return [*lines, *(f"  {number}. {step}" for number, step in enumerate(steps, 1))]


def forgotten(findings: Sequence[Finding], facts: Facts) -> tuple[str, ...]:
    """Packages that have to be written anew although their version is right."""
    names = []
    probes = {f.probe for f in findings}
    broken = facts.torch.imported is False or facts.torch.smoke not in ("", "ok")
    if probes & {"P05", "P11"} and broken:
        names.append("torch")
    if "P08" in probes:
        names += [name for name, _ in facts.triton.distributions]
    if "P27" in probes:
        names.append("av")
    if "P19" in probes:
        names += [package.name for package in facts.packages if package.error]
    return tuple(dict.fromkeys(names))


def forget_package(environment: Environment, name: str) -> None:
    """Let pip believe that a package is not installed, so that it writes all of it."""
    wanted = name.replace("-", "_").lower()
    for info in environment.site_packages.glob("*.dist-info"):
        if info.name.partition("-")[0].lower() == wanted:
            repair.forget(info)


def clean_places(environment: Environment) -> list[tuple[str, Path]]:
    """What ``--clean`` removes beside the environment: things that are made again by themselves."""
    home = Path.home()
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    inductor = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or "")
    places = [("compiled kernels", triton)]
    if str(inductor) != ".":
        places.append(("torch.compile's cache", inductor))
    copy = beside(environment.folder)
    return [(what, path) for what, path in (*places, ("an older copy", copy)) if path.is_dir()]


def require_tag(tag: str) -> str:
    """The tag, if it is one that can be asked for."""
    if tag and tag not in tags.KNOWN:
        raise SetupError(
            "setup-torch-tag",
            f"--torch is {tag!r}; it may be {', '.join(tags.KNOWN)}.",
            "Leave it out to let the machine decide.",
        )
    return tag
