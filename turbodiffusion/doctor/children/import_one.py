"""Import one package and say what it answered: ``import_one.py NAME``."""

from __future__ import annotations

import importlib
import json
import sys


def main(name: str) -> dict[str, str]:
    try:
        importlib.import_module(name)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return {"error": f"{type(error).__name__}: {(lines or [''])[0][:300]}"}
    return {"error": ""}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
