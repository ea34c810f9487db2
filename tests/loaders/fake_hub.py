"""A hub on this machine: as much of the Hugging Face hub's interface as huggingface_hub asks for to fetch a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

COMMIT = "1234567890" * 4


class Hub:
    """Models by id, each a folder of files. requests: what was asked for, method and path. ranges: of the files that
    were asked for from somewhere on. cut: after how many bytes of an answer the connection breaks; None for never."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.models = models
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.cut: int | None = None
        self.facts: dict[str, object] = {
            "cardData": {"license": "cc0-1.0"},
            "safetensors": {"parameters": {"F32": 12_345}, "total": 12_345},
        }

    def answer(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        """One request."""
        path = urlsplit(handler.path).path.strip("/")
        self.requests.append(f"{handler.command} {path}")
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
            if name == "org/gated":
                self._error(handler, 403, "GatedRepo")
            elif name not in self.models:
                self._error(handler, 404, "RepoNotFound")
            else:
                self._json(handler, self._tree(name) if rest[:1] == ["tree"] else self._info(name))
            return
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        if name not in self.models:
            self._error(handler, 404, "RepoNotFound")
            return
        self._file(handler, (self.models[name] / file).read_bytes(), body)

    def _tree(self, name: str) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file.read_bytes())}
            for file in sorted(self.models[name].iterdir())
        ]

    def _info(self, name: str) -> dict[str, object]:
        files = [{"rfilename": each["path"], "size": each["size"]} for each in self._tree(name)]
        return {"id": name, "sha": COMMIT, "siblings": files, "tags": [], "downloads": 0, **self.facts}

    def _file(self, handler: BaseHTTPRequestHandler, content: bytes, body: bool) -> None:
        wanted = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        first = int(wanted.split("-")[0])
        if body and first:
            self.ranges.append(wanted)
        handler.send_response(206 if first else 200)
        handler.send_header("ETag", f'"{_etag(content)}"')
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(content) - first))
        if first:
            handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        if body:
            cut = self.cut if self.cut is not None and len(content) - first > self.cut else None
            handler.wfile.write(content[first:][:cut])
            if cut is not None:
                handler.wfile.flush()
                handler.connection.close()

    def _json(self, handler: BaseHTTPRequestHandler, told: object) -> None:
        data = json.dumps(told).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _error(self, handler: BaseHTTPRequestHandler, status: int, code: str) -> None:
        handler.send_response(status)
        handler.send_header("X-Error-Code", code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """The hub on a free port of this machine: gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self, body=True)

        def do_HEAD(self) -> None:
            hub.answer(self, body=False)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
