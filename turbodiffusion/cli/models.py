"""``turbodiffusion models``: the known models, their size, and whether they are on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turbodiffusion.models.cards import CARDS, ModelCard
from turbodiffusion.weights import places
from turbodiffusion.weights.catalogue import BASE_FILES
from turbodiffusion.weights.download import needed
from turbodiffusion.weights.find import COMPANIONS, default_name
from turbodiffusion.weights.spec import dit_spec, spec_bytes, text_spec, vae_spec

if TYPE_CHECKING:
    from turbodiffusion.weights.verify import Verdict


def add_parser(subparsers: Any) -> None:
    """Add the command to the main parser."""
    parser = subparsers.add_parser(
        "models",
        help="list the known models and where their files are",
        description="Sizes are computed from the network's shapes. 'memory' is the weights of the "
        "DiT (one expert at a time) with the VAE in bf16; the text encoder runs before them.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every file that is here and compare its sha256 with the published one",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one row for every card."""
    if args.verify:
        return verify(args.json)
    tables = [row(one) for one in CARDS.values()]
    if args.json:
        print(json.dumps(tables, indent=2))
        return 0
    print(
        f"{'model':<28}{'task':<6}{'parameters':>12}{'layout':>8}{'disk':>10}{'memory':>10}  files"
    )
    for table in tables:
        for layout in table["layouts"]:
            name = f"{table['name']:<28}{table['task']:<6}{_count(table['parameters']):>12}"
            sizes = f"{layout['layout']:>8}{_size(layout['disk']):>10}{_size(layout['memory']):>10}"
            print(f"{name}{sizes}  {', '.join(layout['files'].values()) or 'not here'}")
    released = [t for t in tables if not t["embedded"]]
    if released:
        print("\nshared by the released models")
        for role, remote in BASE_FILES.items():
            where = released[0]["companions"][role] or "not here"
            print(f"{remote.name:<44}{_size(remote.bytes):>10}  {where}")
    print(f"\nused when no model is named: {default_name()}")
    return 0


def verify(as_json: bool) -> int:
    """Check every released file that is here; 1 if one is damaged."""
    from turbodiffusion.weights.verify import check

    verdicts: dict[Path, Verdict] = {}
    for one in CARDS.values():
        for quantised in (False, True):
            for item in needed(one, quantised) if not one.embedded else ():
                if item.here is not None and item.here not in verdicts:
                    verdicts[item.here] = check(item.remote, item.here)
                    if not as_json:
                        show_verdict(verdicts[item.here])
    if as_json:
        print(json.dumps([vars(v) | {"path": str(v.path)} for v in verdicts.values()], indent=2))
    elif not verdicts:
        print("No file of a released model is here.")
    return int(any(v.state == "damaged" for v in verdicts.values()))


def show_verdict(verdict: Verdict) -> None:
    """One line; a damaged file says what to do."""
    print(f"{verdict.state:<9} {verdict.path}  {verdict.reason}", flush=True)
    if verdict.state == "damaged":
        print("          delete it, then run `turbodiffusion download` again")
    elif verdict.state == "recorded":
        print(f"          sha256 {verdict.sha256}")


def row(one: ModelCard) -> dict[str, Any]:
    """Everything known about a card, as JSON values (sizes in bytes)."""
    plain = dit_spec(one.dit, sla=not one.embedded)
    vae, text = vae_spec(one.vae, "bfloat16"), text_spec(one.text)
    layouts: list[dict[str, Any]] = []
    for quantized in places.embedded_layouts(one) if one.embedded else (False, True):
        spec = dit_spec(one.dit, True) if quantized else plain
        size = spec_bytes(spec)
        layouts.append(
            {
                "layout": "int8" if quantized else "bf16",
                "disk": size * len(one.experts),
                "memory": size + spec_bytes(vae),
                "files": _files(one, quantized),
            }
        )
    folders = places.search_folders()
    found = {role: places.companion(one, role, folders) for role in COMPANIONS}
    return {
        "name": one.name,
        "task": one.task,
        "embedded": one.embedded,
        "parameters": sum(t.elements for t in plain.values()),
        "experts": len(one.experts),
        "width": one.width,
        "height": one.height,
        "frames": one.frames,
        "text_encoder_memory": spec_bytes(text),
        "layouts": layouts,
        "companions": {role: str(path) if path else None for role, path in found.items()},
        "present": any(len(x["files"]) == len(one.experts) for x in layouts)
        and all(found.values()),
    }


def _files(one: ModelCard, quantized: bool) -> dict[str, str]:
    if one.embedded:
        return {e: str(path) for e, path in places.embedded_dit(one, quantized).items()}
    return {expert: str(path) for expert, path in places.released_dit(one, quantized).items()}


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _count(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"
