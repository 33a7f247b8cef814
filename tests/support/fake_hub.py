"""A small Hugging Face hub: the few answers that ``huggingface_hub`` asks of a real one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
TOKEN = "hf_topsecret"


@dataclass
class Repository:
    """Files by name, and the commits that branches and tags stand for."""

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        known = set(self.revisions.values())
        return revision if revision in known else self.revisions.get(revision)


class FakeHub(ThreadingHTTPServer):
    """A server on this machine, with the faults that it is told to have."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        """Method and path of each."""
        self.ranges: list[str] = []
        """What was asked for of files that an earlier answer broke off."""
        self.cut: dict[str, int] = {}
        """File -> bytes after which its next download breaks off."""
        self.broken: set[str] = set()
        """Files whose download fails."""
        self.status = 0
        """What every request is answered with; 0: what it deserves."""
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, path: str, files: Mapping[str, bytes], **settings: Any) -> Repository:
        """A repository at ``owner/name``, of a data set at ``datasets/owner/name``."""
        self.repositories[path] = Repository(dict(files), **settings)
        return self.repositories[path]

    def add_folder(self, path: str, folder: Path, **settings: Any) -> Repository:
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        return self.add(path, files, **settings)

    def downloads(self) -> list[str]:
        """The files whose bytes were asked for, sorted: they come in any order."""
        return sorted(
            path.rpartition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        )

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    """Answers for `FakeHub`."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(lambda body: None)

    def do_GET(self) -> None:
        self._answer(self.wfile.write)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, write: Callable[[bytes], Any]) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.server.requests.append((self.command, path))
        if self.server.status:
            return self._send(self.server.status, b"", write)
        kind, what, *rest = path.split("/")
        if kind == "api":
            owner, name, verb, *rest = rest
            home = f"{owner}/{name}" if what == "models" else f"datasets/{owner}/{name}"
        else:
            parts = path.split("/")
            here = 3 if kind == "datasets" else 2
            home, verb, rest = "/".join(parts[:here]), parts[here], parts[here + 1 :]
        repository = self.server.repositories.get(home)
        token = self.headers.get("Authorization")
        if repository is None:
            status = 404 if token else 401
            return self._send(status, b"", write, {"X-Error-Code": "RepoNotFound"})
        if verb == "resolve":
            return self._file(repository, rest[0], "/".join(rest[1:]), bool(token), write)
        commit = repository.commit("/".join(rest))
        if commit is None:
            return self._send(404, b"", write, {"X-Error-Code": "RevisionNotFound"})
        content: Any = {"id": home, "sha": commit, "siblings": []}
        if verb == "tree":
            content = [
                {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                for name, data in repository.files.items()
            ]
        return self._send(
            200, json.dumps(content).encode(), write, {"Content-Type": "application/json"}
        )

    def _file(
        self,
        repository: Repository,
        revision: str,
        name: str,
        known: bool,
        write: Callable[[bytes], Any],
    ) -> None:
        if repository.gated:
            status = 403 if known else 401
            return self._send(status, b"", write, {"X-Error-Code": "GatedRepo"})
        commit, data = repository.commit(revision), repository.files.get(name)
        if commit is None or data is None:
            return self._send(404, b"", write, {"X-Error-Code": "EntryNotFound"})
        if name in self.server.broken and self.command == "GET":
            return self._send(500, b"", write)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(data)}"'}
        start = 0
        if part := self.headers.get("Range"):
            self.server.ranges.append(part)
            start = int(part.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.server.cut.pop(name, None) if self.command == "GET" else None
        self._send(206 if start else 200, data[start:], write, headers, cut)

    def _send(
        self,
        status: int,
        body: bytes,
        write: Callable[[bytes], Any],
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
