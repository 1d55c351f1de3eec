"""Which form of every operator a run on this machine would choose: ``operator_facts.py ROOT``."""

from __future__ import annotations

import json
import sys


def main(root: str) -> dict[str, list[list[str]]]:
    """``[device, operator, form, reason]`` for every operator, on the first GPU or the CPU."""
    sys.path.insert(0, root)
    import torch

    from turbodiffusion.errors import TurboDiffusionError
    from turbodiffusion.ops import backend

    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        report = backend.report(device)
    except TurboDiffusionError as error:
        return {"operators": [[str(device), "every", "none", error.message]]}
    rows = [[str(device), name, choice.backend, choice.reason] for name, choice in report]
    return {"operators": rows}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
