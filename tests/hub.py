"""A hub on the loopback that speaks what huggingface-hub speaks: repositories from dictionaries."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Repo = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Serves `repos`; those in `gated` want `token`. `cut` closes that file's first answer early."""

    daemon_threads = True

    def __init__(self, repos: dict[str, Repo], gated: set[str], token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repos, self.gated, self.token = repos, gated, token
        self.cut: set[str] = set()
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str) -> str:
        content = json.dumps(sorted((n, etag(d)) for n, d in self.repos[repo].items()))
        return hashlib.sha1(content.encode()).hexdigest()


def etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def running(repos: dict[str, Repo], gated: set[str], token: str = "hf_test") -> Iterator[Hub]:
    hub = Hub(repos, gated, token)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append(f"{self.command} {path}")
        repo = next((r for r in self.server.repos if f"/{r}/" in f"{path}/"), None)
        if repo is None:
            self._json(404, {"error": "Repository not found"}, code="RepoNotFound")
        elif repo in self.server.gated and not self._is_allowed():
            self._json(403, {"error": "gated"}, code="GatedRepo")
        elif path.startswith("/api/models/"):
            self._about(repo, path)
        else:
            self._file(repo, path, body)

    def _is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _about(self, repo: str, path: str) -> None:
        rest = path.removeprefix(f"/api/models/{repo}").strip("/").split("/")
        files = self.server.repos[repo]
        commit = self.server.commit(repo)
        if rest[0] in ("revision", "tree") and rest[1] not in ("main", commit):
            self._json(404, {"error": "no such revision"}, code="RevisionNotFound")
        elif rest[0] == "tree":
            self._json(200, [{"type": "file", "path": n, "size": len(d), "oid": etag(d)}
                             for n, d in files.items()])  # fmt: skip
        else:
            siblings = [{"rfilename": name} for name in files]
            self._json(200, {"_id": "0", "id": repo, "modelId": repo, "sha": commit,
                             "siblings": siblings, "private": False, "tags": [],
                             "downloads": 0, "likes": 0, "gated": False})  # fmt: skip

    def _file(self, repo: str, path: str, body: bool) -> None:
        _, _, rest = path.partition(f"/{repo}/resolve/")
        _, _, name = rest.partition("/")
        data = self.server.repos[repo].get(name)
        if data is None:
            self._json(404, {"error": "no such file"}, code="EntryNotFound")
            return
        start = 0
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag(data)}"')
        self.send_header("X-Repo-Commit", self.server.commit(repo))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body and name in self.server.cut:
            self.server.cut.discard(name)
            self.wfile.write(data[start : start + len(data) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(data[start:])

    def _json(self, status: int, content: Any, code: str | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
