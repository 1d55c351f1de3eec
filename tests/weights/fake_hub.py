"""A Hugging Face hub on the loopback interface, with the faults that downloads meet.

It knows the part of the real one's interface that downloading needs: ``HEAD`` and ``GET`` of
``/OWNER/NAME/resolve/main/PATH``, with the redirect of large files to another address, ranges, the
headers that carry commit, size and hash, and the tree listing. A fault is used up by one request.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" * 6 + "abcd"
PIECE = 1 << 14


@dataclass
class Fault:
    """What one request meets.

    ``status``: this answer instead of the file. ``after``: bytes before the connection breaks, or
    with ``stall`` goes silent, or with ``call`` that function runs. ``wrong``: other bytes.
    ``no_range``: the range is ignored, as some proxies do.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None
    stall: float = 0.0
    call: Callable[[], Any] | None = None
    wrong: bool = False
    no_range: bool = False


@dataclass
class Request:
    method: str
    path: str
    start: int
    sent: int = 0


class FakeHub:
    """``files`` maps (repository, path) to contents; ``large`` ones have a sha256 as etag."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.small: set[str] = set()
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[Request] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # a killed client is no error here
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def gets(self, path: str) -> list[Request]:
        """The requests for the bytes of a file."""
        return [r for r in self.requests if r.path == path and r.method == "GET"]

    def etag(self, key: tuple[str, str]) -> str:
        data = self.files[key]
        if key[1] in self.small:
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return hashlib.sha256(data).hexdigest()

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        place = http.path.partition("?")[0].strip("/")
        if place.startswith("api/models/"):
            return self._tree(http, place.removeprefix("api/models/").partition("/tree/")[0])
        redirected = place.startswith("cdn/")
        repository, _, path = place.removeprefix("cdn/").partition("/resolve/main/")
        key = (repository, path)
        if key not in self.files:
            return self._plain(http, 404, {"X-Error-Code": "EntryNotFound"})
        faults = self.faults[f"{http.command} {path}"]
        if http.command == "GET" and not redirected and key[1] not in self.small:
            return self._plain(http, 302, {"Location": f"{self.url}/cdn/{place}"})
        fault = faults.pop(0) if faults else Fault()
        if fault.status:
            self.requests.append(Request(http.command, path, -1))
            return self._plain(http, fault.status, fault.headers)
        data = self.files[key]
        span = http.headers.get("Range", "")
        start = int(span[6:].rstrip("-")) if span and not fault.no_range else 0
        request = Request(http.command, path, start)
        self.requests.append(request)
        body = bytes(255 - b for b in data) if fault.wrong else data
        http.send_response(206 if span and not fault.no_range else 200)
        http.send_header("ETag", f'"{self.etag(key)}"')
        http.send_header("X-Repo-Commit", COMMIT)
        http.send_header("Content-Length", str(len(body) - start))
        http.end_headers()
        if http.command == "GET":
            self._send(http, request, memoryview(body)[start:], fault)

    def _send(
        self, http: BaseHTTPRequestHandler, request: Request, body: memoryview, fault: Fault
    ) -> None:
        end = len(body) if fault.after is None else min(fault.after, len(body))
        for begin in range(0, end, PIECE):
            piece = body[begin : min(begin + PIECE, end)]
            http.wfile.write(piece)
            request.sent += len(piece)
        if fault.call:
            http.wfile.flush()
            fault.call()
        if fault.stall:
            time.sleep(fault.stall)
        if end < len(body):
            http.close_connection = True

    def _plain(self, http: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        http.send_response(status)
        for name, value in headers.items():
            http.send_header(name, value)
        http.send_header("Content-Length", "0")
        http.end_headers()

    def _tree(self, http: BaseHTTPRequestHandler, repository: str) -> None:
        rows = []
        for (owner, path), data in self.files.items():
            if owner == repository:
                row: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
                row["oid"] = hashlib.sha1(data).hexdigest()
                if path not in self.small:
                    oid = hashlib.sha256(data).hexdigest()
                    row["lfs"] = {"size": len(data), "oid": oid, "pointerSize": 134}
                rows.append(row)
        text = json.dumps(rows).encode()
        http.send_response(200 if rows else 404)
        http.send_header("Content-Type", "application/json")
        http.send_header("Content-Length", str(len(text)))
        http.end_headers()
        http.wfile.write(text)
