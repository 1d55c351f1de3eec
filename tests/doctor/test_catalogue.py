"""The catalogue against itself and against the package's source."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess

import pytest

from tests.doctor import codes
from turbodiffusion.cli.main import build_parser
from turbodiffusion.doctor.catalogue import CATEGORIES, FAILURES, OWN, entry
from turbodiffusion.doctor.catalogue.entry import Entry, Near
from turbodiffusion.doctor.explain import explain
from turbodiffusion.doctor.explain_match import letters, searches
from turbodiffusion.doctor.explain_page import page
from turbodiffusion.errors import TurboDiffusionError, UsageError, describe

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
    assert len({one.id for one in EVERY}) == len(EVERY)
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
    assert entry("Disk-Full").id == "DISK-FULL" and entry("disk-full").id == "disk-full"
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


RAISED, UNREADABLE = codes.raised()


def test_codes_are_written_out_where_they_are_raised():
    assert not UNREADABLE, f"the first argument must be a plain string: {UNREADABLE}"


def test_every_code_that_is_raised_is_in_the_catalogue():
    known = {one.id for one in OWN}
    missing = {one.code: one for one in RAISED if one.code not in known}
    lines = [
        f'    own("{one.code}", "WHAT IT MEANS.", "WHAT TO DO."),  # {one.place}: {one.message}'
        for one in missing.values()
    ]
    hint = "add to the fitting turbodiffusion/doctor/catalogue/own_*.py, then run "
    hint += "`python docs/write_errors.py`:\n"
    assert not missing, hint + "\n".join(lines)


def test_every_own_entry_is_raised_somewhere():
    unused = {one.id for one in OWN} - {one.code for one in RAISED}
    assert not unused, f"nothing raises {sorted(unused)}: remove the entries"


def test_what_our_commands_print_is_recognised():
    """In both forms, and never hidden by what the words of a message may look like."""
    for one in RAISED:
        error = TurboDiffusionError(one.code, one.message, "fix")
        for text in (f"Traceback …\nturbodiffusion.errors.UsageError: {error}", describe(error)):
            found = explain(text).headline
            assert found and found.entry.id == one.code, f"{one.code} of {one.place}: {text}"


def test_what_the_doctor_refers_to_is_in_the_catalogue():
    known = {one.id for one in EVERY}
    for path in (codes.ROOT / "turbodiffusion" / "doctor").rglob("*.py"):
        if "catalogue" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and codes.name(node.func) == "Finding":
                causes = [k.value for k in node.keywords if k.arg == "cause"] + node.args[6:7]
                for cause in causes:
                    for part in ast.walk(cause):
                        if isinstance(part, ast.Constant) and isinstance(part.value, str):
                            plain = re.fullmatch(r"[A-Z0-9]+(-[A-Z0-9]+)+", part.value)
                            assert not plain or part.value in known, f"{path}: {part.value}"


def test_the_page_is_up_to_date():
    path = codes.ROOT / "docs" / "errors.md"
    assert path.read_text("utf-8") == page(), "run `python docs/write_errors.py`"


def test_the_page_has_an_anchor_for_every_entry():
    text = page()
    for one in EVERY:
        assert text.count(f'<a id="{one.id}"></a>') == 1
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert f'<a id="{target}"></a>' in text
    rows = [line for line in text.split("\n") if line.startswith("| <a id")]
    assert len(rows) == len(OWN)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)


def own_commands() -> set[str]:
    """Our own commands as fixes give them, and as texts name them in backticks."""
    texts = [fix.command(shell) for one in EVERY for fix in one.fixes for shell in ("bash", "")]
    said = [text for one in EVERY for text in (one.cause, *(fix.says for fix in one.fixes))]
    texts += [word for text in said for word in re.findall(r"`([^`]+)`", text)]
    return {text for text in texts if text.startswith(("turbodiffusion ", "python turbo.py "))}


def test_our_own_commands_in_fixes_exist():
    parser = build_parser()
    for command in sorted(own_commands()):
        words = shlex.split(command.replace("python turbo.py", "turbodiffusion"))[1:]
        if words[0] == "uninstall":  # turbo.py's own
            continue
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"{command!r} is no command of ours")
