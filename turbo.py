"""The only set-up there is: ``python turbo.py generate "a red circle moving right"``.

The first start makes a private environment in ``.venv`` beside this file, installs torch for
this machine's GPU (or the CPU build) and the pinned dependencies, and then runs the command.
Every later start goes straight to the command. Needs Python 3.10 to 3.13, 64 bit, nothing else.

This file stays valid for Python 2.7 and every 3.x, so that an old interpreter prints a sentence
instead of a syntax error. What it starts is in ``turbodiffusion/bootstrap``.
"""

import os
import sys

OLDEST, NEWEST = (3, 10), (3, 13)


def complaint(version, bits, executable, find):
    """What is wrong with this interpreter, as (sentence, fix), or None.

    ``version`` is (major, minor, micro), ``find`` looks a program up on the search path.
    """
    wanted = "64-bit Python 3.10, 3.11, 3.12 or 3.13"
    name = "%s is Python %d.%d.%d" % ((executable,) + tuple(version[:3]))
    if OLDEST <= tuple(version[:2]) <= NEWEST and bits == 64:
        return None
    if bits != 64:
        name += " (%d bit)" % bits
    for minor in (12, 11, 13, 10):
        program = find("python3.%d" % minor)
        if program and program != executable:
            return (
                "turbodiffusion needs a %s; %s." % (wanted, name),
                'Run it with the one found on this machine: "%s" turbo.py' % program,
            )
    return (
        "turbodiffusion needs a %s; %s." % (wanted, name),
        "Install Python 3.12 (64 bit) from python.org or a package manager and use that.",
    )


def find_program(name):
    """Full path of a program on PATH, or None (``shutil.which`` is missing before 3.3)."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        for suffix in ("", ".exe"):
            path = os.path.join(folder, name + suffix)
            if folder and os.path.isfile(path) and os.access(path, os.X_OK):
                return path
    return None


def start():
    bits = 64 if sys.maxsize > 2**32 else 32
    found = complaint(sys.version_info, bits, sys.executable, find_program)
    if found:
        sys.stderr.write("error [setup-python]: %s\n  fix: %s\n" % found)
        return 3
    root = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, root)
    from turbodiffusion.bootstrap.main import main

    return main(sys.argv[1:], root)


if __name__ == "__main__":
    sys.exit(start())
