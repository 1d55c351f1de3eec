"""``setup --clean``: the destructive way out, after asking, and never wider than what is ours.

The environment is moved aside, not deleted, until the new one has proved itself. Only caches that
are made again by themselves are removed at once; models, downloads of the hub and packages
outside the environment stay.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from turbodiffusion.doctor.setup import Setup, clean_places


def run(work: Setup) -> int:
    """List, ask, remove, set up anew."""
    places = clean_places(work.environment)
    folder = work.environment.folder
    if work.environment.ours():
        work.say(f"Replaced once the new one works: {folder} ({size(folder) / 1e6:,.0f} MB)")
    for what, path in places:
        work.say(f"Removed: {what} in {path} ({size(path) / 1e6:,.0f} MB)")
    work.say("Kept: models, the hub's downloads, and every package outside this environment.")
    if work.options.dry_run:
        return work.run()
    if not work.agree("Remove these and start afresh?"):
        work.say("Nothing was changed.")
        return 0
    for _, path in places:
        shutil.rmtree(path, ignore_errors=True)
    work.agree = lambda question: True  # asked once
    return work.run()


def size(folder: Path) -> int:
    """Bytes of the files in a folder; links are not followed."""
    files = (p for p in folder.rglob("*") if not p.is_symlink())
    return sum(p.stat().st_size for p in files if p.is_file())
