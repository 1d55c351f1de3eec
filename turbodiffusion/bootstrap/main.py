"""The words after ``python turbo.py`` and what each of them starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from turbodiffusion.bootstrap.environment import Environment
from turbodiffusion.errors import SetupError, TurboDiffusionError

HELP = """\
turbodiffusion: a video from a prompt, with nothing to compile.

  python turbo.py generate "a red circle moving right on a black background"
  python turbo.py test

The first start installs what is needed into .venv beside turbo.py and says how large it is.

  python turbo.py COMMAND --help   the options of a command; a wrong COMMAND lists them all
  python turbo.py doctor           what is wrong with this machine, and the command against it
  python turbo.py setup            make or repair .venv; --dry-run only says how
  python turbo.py where            everything this program has put on the machine
  python turbo.py uninstall        remove it

TURBODIFFUSION_VENV moves the environment; TURBODIFFUSION_TORCH (cpu, cu126, cu130, …) chooses
the build of torch instead of letting the GPU and driver decide.
"""

NEVER_INSTALL = ("doctor", "errors", "bugreport")
"""They run with whatever Python started them while there is no environment."""


def main(arguments: Sequence[str], root: str) -> int:
    """Run one ``turbo.py`` command; returns the exit status. Errors are printed, not raised."""
    for stream in (sys.stdout, sys.stderr):  # a console without these letters gets replacements
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _dispatch(list(arguments), Environment(root))
    except TurboDiffusionError as error:
        print(f"error [{error.code}]: {error.message}\n  fix: {error.fix}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nStopped. The next start goes on from here.", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str], environment: Environment) -> int:
    command = arguments[0] if arguments else "help"
    if command in ("help", "-h", "--help"):
        print(HELP, end="")
        return 0
    if command in ("where", "uninstall"):
        from turbodiffusion.bootstrap import places

        return places.run(command, arguments[1:], environment)
    extras = ["test"] if command == "test" else []
    if command == "setup":  # changes the environment, so it does not run inside it
        return _command_line(arguments, environment.outdated() or "set-up itself needs nothing")
    if reason := environment.outdated(extras):
        if command in NEVER_INSTALL:
            return _command_line(arguments, reason)
        from turbodiffusion.bootstrap import install

        install.ensure(environment, extras)
    if command == "test":
        os.chdir(environment.root)
        return _become(environment.python, ["-m", "pytest", *arguments[1:]])
    if _inside(environment):
        return _command_line(arguments)
    return _become(environment.python, [str(environment.root / "turbo.py"), *arguments])


def _inside(environment: Environment) -> bool:
    """Whether this interpreter is already the environment's own."""
    try:
        return os.path.samefile(sys.prefix, environment.folder)
    except OSError:
        return False


def _command_line(arguments: list[str], unprepared: str = "") -> int:
    """The package's own command line, in this process.

    Args:
        arguments: command and options.
        unprepared: why the environment is not ready, for commands that run without one.
    """
    try:
        from turbodiffusion.cli.main import main as command_line

        return command_line(arguments)
    except ModuleNotFoundError as error:
        if not unprepared:
            raise
        raise SetupError(
            "setup-incomplete",
            f"This needs the module {error.name}, which is not installed yet ({unprepared}).",
            "Any other command installs it, for example: python turbo.py models",
        ) from error


def _become(python: Path, arguments: list[str]) -> int:
    """Go on as ``python`` with ``arguments``: the same process where the system can do that."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = [str(python), *arguments]
    if os.name != "nt":
        os.execv(command[0], command)
    import signal
    import subprocess

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child, which cleans up
    status = subprocess.call(command)
    return 130 if status == 0xC000013A else status
