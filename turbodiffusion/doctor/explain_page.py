"""The catalogue as text for the terminal and as the page ``docs/errors.md``."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue import CATEGORIES, FAILURES, OWN, OWN_CATEGORIES
from turbodiffusion.doctor.catalogue.entry import Entry, Fix

RELATIONS = {
    "N": "only in other packages: turbodiffusion compiles and links nothing",
    "P": "`turbodiffusion doctor` finds it beforehand",
    "R": "met in a run",
}


def fix_lines(fixes: tuple[Fix, ...], shell: str = "") -> list[str]:
    """Numbered remedies with their commands, each on a line of its own for copying."""
    lines = []
    for number, fix in enumerate(fixes, 1):
        place = f"{fix.where}: " if fix.where else ""
        lines.append(f"  fix {number}: {place}{fix.says}")
        if shell or fix.bash == fix.powershell:
            lines += [f"    {fix.command(shell)}"] * bool(fix.command(shell))
            continue
        lines += [f"    bash:       {fix.bash}"] * bool(fix.bash)
        lines += [f"    PowerShell: {fix.powershell}"] * bool(fix.powershell)
    return lines


def entry_text(one: Entry) -> str:
    """One entry for the terminal."""
    lines = [f"[{one.id}] {one.title}"]
    if one.seen:
        lines.append(f"  looks like: {' '.join(one.seen[0].split())}")
    if one.cause:
        lines.append(f"  cause: {one.cause}")
    lines += fix_lines(one.fixes)
    if not one.own:
        lines.append(f"  {one.severity}, {RELATIONS[one.relation].replace('`', '')}")
    return "\n".join(lines)


def list_text() -> str:
    """All entries for the terminal, a line each."""
    width = max(len(one.id) for one in (*FAILURES, *OWN)) + 2
    lines = ["Failures of other software"]
    for name, entries in CATEGORIES.items():
        lines += ["", f"{name}:"]
        lines += [f"  {one.id:<{width}}{one.title}" for one in entries]
    lines += ["", "Errors of our own commands"]
    for name, entries in OWN_CATEGORIES.items():
        lines += ["", f"{name}:"]
        lines += [f"  {one.id:<{width}}{one.title}" for one in entries]
    lines += ["", "turbodiffusion errors ID explains one of them."]
    return "\n".join(lines)


def page() -> str:
    """The whole of ``docs/errors.md``."""
    lines = [
        "# Errors",
        "",
        "<!-- Written by `python docs/write_errors.py` from turbodiffusion/doctor/catalogue. -->",
        "",
        f"{len(FAILURES)} failures of other software and {len(OWN)} errors of our own commands. "
        "The same entries are shown by",
        "",
        "```console",
        "$ turbodiffusion errors CUDA-OOM            # one entry",
        "$ turbodiffusion doctor --explain build.log # the cause in a log; - reads a pasted one",
        "```",
        "",
        "Both also run as `python turbo.py …` before anything is installed. How bad a failure is: "
        "**blocker** (nothing runs), **major** (a feature is lost or slow), **minor** (an "
        "inconvenience) or **info** (harmless).",
        "",
        "## Failures of other software",
        "",
        *(_index(name, entries) for name, entries in CATEGORIES.items()),
        "",
    ]
    for name, entries in CATEGORIES.items():
        lines += [f"## {name[0].upper()}{name[1:]}", ""]
        for one in entries:
            lines += _section(one)
    lines += [
        "## Errors of our own commands",
        "",
        "They are printed as `error [code]: what is wrong`, followed by a fix for the very case. "
        "This is what they mean in general.",
        "",
    ]
    for name, entries in OWN_CATEGORIES.items():
        lines += [
            f"### {name[0].upper()}{name[1:]}",
            "",
            "| code | meaning | fix |",
            "|---|---|---|",
        ]
        lines += [_row(one) for one in entries]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _index(name: str, entries: tuple[Entry, ...]) -> str:
    links = ", ".join(f"[{one.id}](#{one.id})" for one in entries)
    return f"- {name}: {links}"


def _section(one: Entry) -> list[str]:
    lines = [f'### <a id="{one.id}"></a>{one.id}', "", f"**{one.title}** {one.cause}", ""]
    lines += ["```text", *one.seen[0].split("\n"), "```", ""]
    for number, fix in enumerate(one.fixes, 1):
        lines += [f"{number}. {_fix(fix)}"]
    platforms = ", ".join(one.platforms.split())
    about = f"{one.severity}; {one.stage}; {platforms}; {RELATIONS[one.relation]}"
    if one.probes:
        about += f" ({', '.join(one.probes.split())})"
    return [*lines, "", f"*{about}*", ""]


def _fix(fix: Fix) -> str:
    text = f"{fix.where}: {fix.says}" if fix.where else fix.says
    if fix.bash == fix.powershell:
        return f"{text} {_code(fix.bash)}".rstrip()
    if fix.bash and fix.powershell:
        return f"{text} bash {_code(fix.bash)}, PowerShell {_code(fix.powershell)}"
    if fix.where == "WSL" and fix.powershell:
        return f"{text} In PowerShell {_code(fix.powershell)}"
    return f"{text} {_code(fix.bash or fix.powershell)}"


def _code(command: str) -> str:
    """A command as Markdown code; one with backticks needs two around it."""
    if not command:
        return ""
    return f"`` {command} ``" if "`" in command else f"`{command}`"


def _row(one: Entry) -> str:
    meaning = f"{one.title} {one.cause}".strip()
    fixes = " ".join(_fix(fix) for fix in one.fixes)
    cells = [f'<a id="{one.id}"></a>`{one.id}`', meaning, fixes]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
