"""The catalogue against itself and against the package's source."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from turbodiffusion.doctor.catalogue import CATEGORIES, FAILURES, OWN, entry
from turbodiffusion.doctor.catalogue.entry import Entry, Near
from turbodiffusion.doctor.explain_match import letters, searches
from turbodiffusion.errors import UsageError

EVERY = (*FAILURES, *OWN)
COMMANDS = [
    pytest.param(shell, fix.command(shell), id=f"{one.id}-{number}-{shell}")
    for one in EVERY
    for number, fix in enumerate(one.fixes, 1)
    for shell in ("bash", "powershell")
    if fix.command(shell)
]


def test_all_reference_failures_are_there():
    assert len(FAILURES) == 104
    assert len({one.id.lower() for one in EVERY}) == len(EVERY)
    assert all(CATEGORIES.values())
    assert not any(one.own for one in FAILURES) and all(one.own for one in OWN)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.id)
def test_an_entry_is_complete(one: Entry):
    assert one.title.endswith(".") and "\n" not in one.title and len(one.title) <= 90
    assert one.fixes and one.rank in (1, 2, 3)
    assert all(fix.says.rstrip().endswith((".", ":")) for fix in one.fixes)
    if one.own:
        return
    assert one.cause.endswith((".", "!", "`."))
    assert one.patterns or one.exact
    assert one.seen, f"{one.id} has no sample: add the text as it appears to `seen`"
    assert set(one.platforms.split()) <= {"linux", "windows", "wsl", "docker"}
    assert all(re.fullmatch(r"P(0[1-9]|1\d|2[0-7])", probe) for probe in one.probes.split())
    assert one.relation in "NPR"
    assert one.stage in ("install", "import", "first-kernel", "model-load", "run", "download")


@pytest.mark.parametrize("search", searches(), ids=lambda search: search.entry.id)
def test_patterns_have_letters_to_look_for_and_limits(search):
    assert all(len(needle) >= 4 for needle in search.needles)
    for pattern in (search.first, search.then):
        if pattern is None:
            continue
        bare = re.sub(r"\\.|\[[^]]*\]", "x", pattern.pattern)
        assert not re.search(r"[*+]|\{\d*,\}", bare), "a repetition needs a limit such as {0,200}"
        assert "  " not in pattern.pattern and r"\s" not in pattern.pattern


def test_letters():
    assert letters(r"CUDA out of memory\. Tried (?P<n>\d{1,3} GiB)") == "cuda out of memory. tried "
    assert letters(r"nvidia-smis?: x") == "nvidia-smi"
    assert letters(r"(a|b) key\(s\) in[xyz]") == " key(s) in"
    assert letters(r"version [`'](?P<n>GLIBC)_\d{1,3}' not found") == "' not found"
    with pytest.raises(ValueError, match="two patterns"):
        letters("one|two")


@pytest.mark.parametrize(("shell", "command"), COMMANDS)
def test_a_command_is_of_its_shell(shell: str, command: str):
    assert "\n" not in command and command == command.strip()
    if shell == "powershell":
        foreign = r"&&|\bexport |\bunset |\bsudo |\$\(echo|rm -rf|/dev/null|2>&1|\bsource "
    else:
        foreign = r"\$env:|Remove-Item|Get-Command|winget|Start-Process|Set-\w+ |\.exe\b"
    assert not re.search(foreign, command), f"{command!r} is not {shell}"


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_can_read_every_bash_command():
    script = "\n".join(case.values[1] for case in COMMANDS if case.values[0] == "bash")
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_powershell_quotes_are_closed():
    for case in COMMANDS:
        shell, command = case.values
        if shell == "powershell":
            assert command.count("'") % 2 == 0 and command.count('"') % 2 == 0, command


def test_an_entry_is_found_in_any_case_and_a_near_miss_is_named():
    assert entry("disk-FULL").id == "DISK-FULL"
    with pytest.raises(UsageError, match="DRIVER-TOO-OLD") as caught:
        entry("driver-to-old")
    assert caught.value.code == "errors-unknown"
    with pytest.raises(UsageError, match="lists all"):
        entry("zzzzqqqq")


def test_references_between_entries_lead_somewhere():
    known = {one.id for one in EVERY}
    for one in FAILURES:
        texts = [one.cause, *(fix.says for fix in one.fixes)]
        for text in texts:
            for name in re.findall(r"\b[A-Z0-9]{3,}(?:-[A-Z0-9]+)+\b", text):
                assert name in known or name == "NVIDIA-SMI", f"{one.id} names {name}"


def test_near_says_what_it_looks_for():
    assert str(Near("a", "b", 9)) == "a … b"
