"""P08–P10: Triton, and what it needs to build its small launcher."""

from __future__ import annotations

from turbodiffusion.doctor import rules, shell
from turbodiffusion.doctor.facts import Facts
from turbodiffusion.doctor.findings import Finding
from turbodiffusion.doctor.rules import numbers

UNUSED = "Triton has nothing to do here (P04, P05)."


def distribution(facts: Facts) -> list[Finding]:
    """P08: the right distribution, of the release that belongs to torch, found where it lies."""
    if not rules.wants_triton(facts):
        return [Finding("P08", "skip", UNUSED)]
    windows = facts.platform.system == "Windows"
    wanted_name = "triton-windows" if windows else "triton"
    release = rules.triton_release(facts)
    there = dict(facts.triton.distributions)
    if windows and "triton" in there:
        found = "The package triton is installed, which has no Windows files."
        return [_install(facts, found, wanted_name, release, "TRITON-MISSING")]
    if wanted_name not in there:
        found = f"{wanted_name} is not installed: every operator runs its portable form."
        return [_install(facts, found, wanted_name, release, "TRITON-MISSING")]
    if facts.triton.shadowed:
        return [
            Finding(
                "P08",
                "major",
                f"`import triton` loads {facts.triton.origin} instead of the package.",
                "No file or folder named triton on the search path.",
                "Rename that file or folder.",
                _rename(facts, facts.triton.origin),
                "TRITON-SHADOWED",
            )
        ]
    version = there[wanted_name]
    if release and numbers(version)[:2] != numbers(release)[:2]:
        found = f"{wanted_name} is {version}; torch {facts.torch.version} belongs to {release}."
        return [_install(facts, found, wanted_name, release, "TRITON-TORCH-MISMATCH")]
    if facts.triton.imported is False:
        found = f"{wanted_name} {version} cannot be imported: {facts.triton.error}"
        cause = "TRITON-LIBTRITON-DLL" if windows else ""
        return [_install(facts, found, wanted_name, release or version, cause)]
    ptxas = f", ptxas {', '.join(facts.triton.assemblers)}" if facts.triton.assemblers else ""
    return [Finding("P08", "ok", f"{wanted_name} {version}{ptxas}.")]


def _rename(facts: Facts, path: str) -> str:
    mover = "Rename-Item" if facts.shell == "powershell" else "mv"
    return shell.line([mover, path, path + ".renamed"], facts.shell)


def _install(facts: Facts, found: str, name: str, release: str, cause: str) -> Finding:
    wanted = f"{name}=={release}" if release else name
    command = shell.pip(facts, "install", "--force-reinstall", "--no-deps", wanted)
    if facts.python.ours:
        command = shell.ours(facts, "setup --fix P08")
    return Finding(
        "P08", "major", found, f"{wanted}.", "Install it.", command, cause, repairable=True
    )


def compiler(facts: Facts) -> list[Finding]:
    """P09: a C compiler for Triton's launcher on Linux; on Windows TinyCC comes along."""
    if not rules.wants_triton(facts):
        return [Finding("P09", "skip", UNUSED)]
    one = facts.compiler
    if one.variable and not one.variable_works:
        return [
            Finding(
                "P09",
                "major",
                f"CC is {one.variable!r}, which is no program.",
                "Unset, or the path of a C compiler.",
                "Remove the variable.",
                shell.unset(facts, "CC"),
                "TRITON-NO-C-COMPILER",
            )
        ]
    if facts.platform.system == "Windows":
        return [Finding("P09", "ok", "triton-windows brings its own compiler.")]
    if not (one.found or one.variable):
        return [
            Finding(
                "P09",
                "major",
                "There is no C compiler, so Triton cannot build its launcher.",
                "gcc or clang.",
                "Install gcc.",
                shell.install(facts, "gcc libc6-dev", "gcc glibc-devel", "gcc"),
                "TRITON-NO-C-COMPILER",
            )
        ]
    return [Finding("P09", "ok", f"C compiler: {one.variable or one.found}.")]


def headers(facts: Facts) -> list[Finding]:
    """P10: Python.h, which the launcher includes; on Windows also the folder ``libs``."""
    if not rules.wants_triton(facts):
        return [Finding("P10", "skip", UNUSED)]
    windows = facts.platform.system == "Windows"
    if facts.python.headers and (facts.python.libraries or not windows):
        return [Finding("P10", "ok", "Python's headers are there.")]
    minor = ".".join(map(str, facts.python.version[:2]))
    dev = shell.install(facts, f"python{minor}-dev", f"python{minor}-devel", "python")
    return [
        Finding(
            "P10",
            "major",
            "This Python comes without its headers"
            + (" or the folder libs." if windows else " (Python.h)."),
            "A full Python.",
            "Install Python with headers." if windows else "Install the headers.",
            shell.install_python(facts) if windows else dev,
            "PYTHON-HEADERS-MISSING",
        )
    ]
