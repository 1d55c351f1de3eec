"""``turbodiffusion doctor``: is this machine ready, and if not, which command puts it right."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "doctor",
        help="check this machine and print the command for whatever is wrong",
        description="Checks this machine in 26 steps and prints what is wrong, each with one "
        "command. Exit code 0 when ready, also with warnings, 3 when something blocks.",
    )
    parser.add_argument("--only", action="append", metavar="ID", default=[],
                        help="one check, such as P05 or torch; may be repeated")  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="also what is fine")
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="run every operator in every form this machine offers and compare the numbers",
    )
    parser.add_argument("--speed", action="store_true", help="measure the machine's ceilings")
    parser.add_argument("--explain", metavar="FILE", help="find the cause in a log; - reads stdin")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the machine, judge it, print."""
    if args.explain:
        return _explain(args.explain, args.json)
    from turbodiffusion.doctor import readings, show, verdict
    from turbodiffusion.doctor.probes import PROBES

    only = verdict.wanted(args.only)
    needs = {need for number in only or PROBES for need in PROBES[number].needs}
    quiet = args.json or not sys.stderr.isatty()
    facts = readings.read(needs, None if quiet else lambda text: print(text, file=sys.stderr))
    found = verdict.judge(facts, only)
    more = _measure(args, facts.torch.version, str(facts.python.executable), facts.root)
    code = max(found.exit_code, 3 if any(m.failed for m in more) else 0)
    if args.json:
        table = found.as_json(facts)
        table["exit_code"] = code
        print(json.dumps({**table, **{m.name: m.body for m in more}}, indent=2))
        return code
    print(show.report(facts, found, verbose=args.verbose or bool(only)))
    for one in more:
        print(f"\n{one.text()}")
    return code


def _measure(args: argparse.Namespace, torch: str, python: str, root: str) -> list[Any]:
    from turbodiffusion.doctor import measure

    wanted = [name for name in ("kernels", "speed") if getattr(args, name)]
    if wanted and not torch:
        from turbodiffusion.errors import SetupError

        raise SetupError(
            "setup-incomplete",
            "Comparing kernels needs torch, which is not installed yet.",
            "Install it first: turbodiffusion setup",
        )
    return [measure.run(name, python, root) for name in wanted]


def _explain(source: str, as_json: bool) -> int:
    """Hand a log to the catalogue; the report is its own."""
    from turbodiffusion.doctor.explain import explain_source

    found = explain_source(source)
    print(json.dumps(found.as_json(), indent=2) if as_json else found.render())
    return 0
