"""Do the pins resolve for every Python and system? Prints a table; needs the package index.

For each Python 3.10–3.13 on Linux, Windows and macOS, pip resolves ``runtime.txt`` and
``test.txt`` under ``lock.txt`` as that machine would (wheels only, nothing is installed), and the
default index is asked for the torch releases that the set-up may choose. torch itself stays out
of the resolution, since pip would download gigabytes to read its requirements; those of torch
2.13.0 are listed below instead.

    python benchmarks/check_pins.py            check lock.txt
    python benchmarks/check_pins.py --write    resolve without it and write it anew

pip evaluates environment markers for the machine it runs on, whatever ``--platform`` says, so
that they are set by hand before pip starts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from turbodiffusion.bootstrap.tags import (  # noqa: E402 - the checkout need not be installed
    CU128_TORCH,
    OLD_DRIVER_TORCH,
    TESTED_TORCH,
    TRITON_WINDOWS,
)

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SYSTEMS = {
    "Linux x86-64": (
        {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
        {"platform_machine": "x86_64"},
        ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64"),
    ),
    "Windows x86-64": (
        {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
        {"platform_machine": "AMD64"},
        ("win_amd64",),
    ),
    "macOS arm64": (
        {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
        {"platform_machine": "arm64"},
        ("macosx_14_0_arm64", "macosx_11_0_arm64"),
    ),
}
TORCH_NEEDS = (
    *("filelock", "typing-extensions>=4.10.0", "setuptools>=77.0.3,<82", "sympy>=1.13.3"),
    *("networkx>=2.5.1", "jinja2", "fsspec>=0.8.5"),
)
HEAD = """\
# Every package that runtime.txt and test.txt lead to, except torch and its CUDA libraries (their
# build depends on the machine, see turbodiffusion/bootstrap/tags.py). Used as a constraint file.
# Written by `python benchmarks/check_pins.py --write`; checked by the same command without it.
"""
PATCHED_PIP = """
import json, sys
import pip._vendor.packaging.markers as markers
from pip._internal.cli.main import main
here, target = markers.default_environment, json.loads(sys.argv[1])
markers.default_environment = lambda: {**here(), **target}
sys.exit(main(sys.argv[2:]))
"""


def pip(python: str, system: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """pip as if it ran on ``system`` under ``python``."""
    names, machine, platforms = SYSTEMS[system]
    version = {"python_version": python, "python_full_version": f"{python}.13"}
    target = json.dumps({**names, **machine, **version})
    options = ["--python-version", python, "--only-binary=:all:"]
    for platform in platforms:
        options += ["--platform", platform]
    return subprocess.run(
        [sys.executable, "-c", PATCHED_PIP, target, *command, *options],
        capture_output=True,
        encoding="utf-8",
    )


def resolve(
    python: str, system: str, locked: bool, refused: tuple[str, ...] = ()
) -> dict[str, str]:
    """Name → version of everything that would be installed beside torch.

    Args:
        python: such as ``3.12``.
        system: a key of ``SYSTEMS``.
        locked: whether ``lock.txt`` constrains the result; otherwise releases that do not allow
            this Python are left out, one after the other (some indexes do not tell pip).
        refused: the requirements that leave them out.

    Raises:
        RuntimeError: with pip's last line, or the package that refuses this Python.
    """
    wanted = [*refused]
    for name in ("runtime.txt", "test.txt"):
        lines = (ROOT / "requirements" / name).read_text("utf-8").splitlines()
        wanted += [line for line in lines if line and not line.startswith(("#", "torch", "triton"))]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = ["install", "--quiet", "--dry-run", "--ignore-installed", "--target", folder]
        command += ["--report", str(report), *wanted, *TORCH_NEEDS]
        if locked:
            command += ["-c", str(ROOT / "requirements" / "lock.txt")]
        done = pip(python, system, command)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise RuntimeError((errors or [done.stderr])[-1][:300])
        installs = json.loads(report.read_text("utf-8"))["install"]
    for item in installs:  # an index without this field lets unsuitable releases through
        metadata = item["metadata"]
        if not allows(metadata.get("requires_python", ""), python):
            name, version = metadata["name"], metadata["version"]
            if locked:
                raise RuntimeError(f"{name} {version} does not allow Python {python}")
            return resolve(python, system, locked, (*refused, f"{name}!={version}"))
    return {
        re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): item["metadata"]["version"]
        for item in installs
    }


def allows(specifier: str, python: str) -> bool:
    from pip._vendor.packaging.specifiers import SpecifierSet

    return f"{python}.13" in SpecifierSet(specifier)


def offered(package: str, python: str, system: str) -> set[str]:
    """Versions of ``package`` with a wheel for that machine on the default index."""
    done = pip(python, system, ["index", "versions", package])
    found = re.search(r"Available versions: (.+)", done.stdout)
    return set(found[1].split(", ")) if found else set()


def check_row(python: str, system: str) -> tuple[str, str]:
    """The two cells of a table row: the pins, and the torch releases of the default index."""
    try:
        pins = f"{len(resolve(python, system, locked=True))} packages"
    except RuntimeError as error:
        pins = f"FAILS: {error}"
    there = offered("torch", python, system)
    wanted = {TESTED_TORCH, CU128_TORCH, OLD_DRIVER_TORCH}
    text = ", ".join(sorted(wanted & there, reverse=True)) or "none"
    if TESTED_TORCH not in there:
        text = f"FAILS: {TESTED_TORCH} is missing"
    if system.startswith("Windows"):
        triton = offered("triton-windows", python, system)
        missing = set(TRITON_WINDOWS.values()) - triton
        text += f"; triton-windows {'FAILS: ' + str(missing) if missing else 'for each'}"
    return pins, text


def lock_lines(found: dict[tuple[str, str], dict[str, str]]) -> list[str]:
    """One line per package and version, with the Pythons it is for."""
    versions: dict[str, dict[str, set[str]]] = {}
    for (python, _), packages in found.items():
        for name, version in packages.items():
            versions.setdefault(name, {}).setdefault(version, set()).add(python)
    lines = []
    for name, pythons in sorted(versions.items()):
        for version, those in sorted(pythons.items(), key=lambda item: min(item[1])):
            lines.append(f"{name}=={version}{marker(those)}")
    return lines


def marker(pythons: set[str]) -> str:
    """The shortest marker for ``pythons``, empty for all of them."""
    chosen = [python in pythons for python in PYTHONS]
    if all(chosen):
        return ""
    first = chosen.index(True)
    if all(chosen[first:]):
        return f' ; python_version >= "{PYTHONS[first]}"'
    return " ; " + " or ".join(f'python_version == "{p}"' for p in PYTHONS if p in pythons)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="resolve freely and write lock.txt")
    machines = [(python, system) for system in SYSTEMS for python in PYTHONS]
    if parser.parse_args().write:
        found = {machine: resolve(*machine, locked=False) for machine in machines}
        text = HEAD + "\n".join(lock_lines(found)) + "\n"
        (ROOT / "requirements" / "lock.txt").write_text(text, "utf-8")
        print(f"wrote {text.count('==')} pins")
        return 0
    print("| system | Python | pins (with tests) | torch on the default index |")
    print("|---|---|---|---|")
    failed = False
    for python, system in machines:
        pins, torch = check_row(python, system)
        failed |= "FAILS" in pins + torch
        print(f"| {system} | {python} | {pins} | {torch} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
