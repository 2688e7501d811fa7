"""A hub on this machine: the few addresses that huggingface_hub asks for, over directories of files.

with serve({"owner/name": {"config.json": b"..."}}) as hub:
    hub.push("owner/name", {...})      # a new commit
    hub.requests                       # (method, path) of everything that was asked
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.head: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    def push(self, name: str, files: dict[str, bytes]) -> str:
        """A new commit of a model; returns its hash."""
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        self.commits[commit], self.head[name] = files, commit
        return commit

    def fetched(self) -> list[str]:
        """The files whose content was asked for, one entry each time."""
        return sorted(
            path.split("/", 5)[5] for method, path in self.requests if method == "GET" and "/resolve/" in path
        )

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that is to see this hub, with an empty cache of its own."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one address."""
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            revision = parts[5] if len(parts) > 5 else "main"
            commit = self.head.get(name, "") if revision == "main" else revision
            if commit not in self.commits:
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            if len(parts) > 4 and parts[4] == "tree":
                files = self.commits[commit].items()
                tree = [{"type": "file", "path": f, "size": len(data), "oid": _etag(data)} for f, data in files]
                return 200, {}, json.dumps(tree).encode()
            return 200, {}, json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": []}).encode()
        commit, file = (self.head.get("/".join(parts[:2]), "") if parts[3] == "main" else parts[3]), "/".join(parts[4:])
        data = self.commits.get(commit, {}).get(file)
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit}, data


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serve(models: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """The hub, on a free port, until the block ends."""
    hub = Hub()
    for name, files in models.items():
        hub.push(name, files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
