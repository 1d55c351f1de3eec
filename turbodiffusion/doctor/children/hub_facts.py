"""Whether the hub (or the mirror in HF_ENDPOINT) answers a connection: ``hub_facts.py``."""

from __future__ import annotations

import json
import os
import socket
from urllib.parse import urlsplit

LIMIT = 3.0  # seconds


def main() -> dict[str, str]:
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or "")
    target = proxy if proxy.hostname else host
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        with socket.create_connection((target.hostname or "", port), timeout=LIMIT):
            return {"network": "ok"}
    except socket.gaierror:
        return {"network": f"the name {target.hostname} is not known"}
    except OSError as error:
        return {"network": f"{target.hostname}: {error.strerror or error}"}


if __name__ == "__main__":
    print(json.dumps(main()))
