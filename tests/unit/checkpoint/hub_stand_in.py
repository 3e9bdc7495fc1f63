"""A model hub on the loopback interface: as much of its API as downloads need."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """`repos` maps id -> file name -> content; `log` holds the requests."""

    def __init__(self, repos: dict[str, dict[str, bytes]], gated: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = repos
        self.gated = gated
        self.log: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        self.server.log.append(f"{self.command} {self.path}")

    def _answer(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        repo, rest = "/".join(parts[:2]), parts[2:]
        content = self.server.repos.get(repo, {}).get("/".join(rest[2:]))
        if rest[:1] != ["resolve"] or content is None:
            return self._fail(404, "EntryNotFound")
        return self._send(content)

    def _api(self, repo: str, rest: list[str]) -> None:
        if repo == self.server.gated:
            return self._fail(403, "GatedRepo")
        if repo not in self.server.repos:
            return self._fail(404, "RepoNotFound")
        if rest[1:2] not in ([], ["main"], [COMMIT]):
            return self._fail(404, "RevisionNotFound")
        files = self.server.repos[repo]
        if rest[:1] == ["tree"]:
            entries = [_tree_entry(name, content) for name, content in files.items()]
            return self._send(json.dumps(entries).encode(), "application/json")
        siblings = [{"rfilename": name} for name in files]
        info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
        return self._send(json.dumps(info).encode(), "application/json")

    def _send(self, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve_hub(
    repos: dict[str, dict[str, bytes]], gated: str = "org/gated"
) -> Iterator[tuple[str, list[str]]]:
    """Serve `repos` (id -> file name -> content); yields the endpoint and the log of requests."""
    server = Hub(repos, gated)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.log
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _tree_entry(name: str, content: bytes) -> dict[str, object]:
    return {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
