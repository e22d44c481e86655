"""A server on this machine that speaks what the hub's client asks of it: a folder a repository, one commit a time."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What a repository of the server is and was asked for.

    ``asked`` has the names of files, ``sent`` a name and a byte for each body: the first byte that was sent of it.
    Transfers of files in ``cut`` break off half-way, as many times as stated there, and those in ``refused`` are
    refused where they are to go on. Files in ``forged`` are listed as they are and sent as other bytes.
    """

    folder: Path
    private: bool = False
    exists: bool = True
    commit: str = COMMIT
    asked: list[str] = field(default_factory=list)
    sent: list[tuple[str, int]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    forged: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    branches: list[str] = field(default_factory=list)


@contextmanager
def serve(repository, name="someone/st-model"):
    """Address of a server that holds one repository."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    httpd.repository, httpd.name = repository, name
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def repository(self):
        return self.server.repository

    def do_HEAD(self):
        self._read(body=False)

    def do_GET(self):
        self._read(body=True)

    def do_PUT(self):
        self.repository.large[self.path.rsplit("/", 1)[1]] = self._sent()
        self._send(b"", {})

    def do_POST(self):
        about = f"/api/models/{self.server.name}"
        path, sent, repository = self.path.split("?")[0], self._sent(), self.repository
        if path == "/api/repos/create":
            # newer clients send the visibility, older ones whether it is private
            wish = json.loads(sent)
            repository.exists, repository.private = True, wish.get("private") or wish.get("visibility") == "private"
            self._json({"url": f"{self._address}/{self.server.name}"})
        elif path.startswith(f"{about}/branch/"):
            repository.branches.append(path.rsplit("/", 1)[1])
            self._json({})
        elif path.startswith(f"{about}/preupload/"):
            files = [file["path"] for file in json.loads(sent)["files"]]
            modes = {name: "lfs" if name.endswith((".safetensors", ".pt")) else "regular" for name in files}
            self._json(
                {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False, "oid": None} for n, m in modes.items()]}
            )
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self._address}/lfs/{o['oid']}"}}}
                for o in json.loads(sent)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif path.startswith(f"{about}/commit/"):
            self._commit([json.loads(line) for line in sent.splitlines()])
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            self.send_error(404)

    def _commit(self, lines):
        repository = self.repository
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                data = repository.large[value["oid"]]
            else:
                continue
            (repository.folder / value["path"]).write_bytes(data)
        repository.commit = hashlib.sha1(json.dumps(lines).encode(), usedforsecurity=False).hexdigest()
        address = f"{self._address}/{self.server.name}/commit/{repository.commit}"
        self._json({"success": True, "commitUrl": address, "commitOid": repository.commit})

    def _read(self, *, body):
        repository, path = self.repository, self.path.split("?")[0]
        name, commit = self.server.name, repository.commit
        names = sorted(p.relative_to(repository.folder).as_posix() for p in repository.folder.rglob("*") if p.is_file())
        about, files = f"/api/models/{name}", f"/{name}/resolve/{commit}/"
        path = path.replace(f"/{name}/resolve/main/", files)
        if not repository.exists:
            self._send(b"", {"X-Error-Code": "RepoNotFound"}, body=body, status=404)
        elif path.startswith(f"{about}/tree/{commit}"):
            self._json([self._describe(file) for file in names], body=body)
        elif path.startswith(about):
            siblings = [{"rfilename": file} for file in names]
            self._json({"id": name, "sha": commit, "private": repository.private, "siblings": siblings}, body=body)
        elif path.startswith(files):
            file = path.removeprefix(files).replace("%3D", "=")
            repository.asked.append(file)
            self._send_file(file, body=body)
        else:
            self.send_error(404)

    def _send_file(self, name, *, body):
        """Send a file, or its end where the client has the beginning."""
        repository = self.repository
        data = (repository.folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": repository.commit}
        data = repository.forged.get(name, data)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if not body:
            self._send(data, headers, body=False)
            return
        if start and name in repository.refused:
            self._send(b"", {}, status=503)
            return
        repository.sent.append((name, start))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        broken = repository.cut.get(name, 0) > 0
        if broken:
            repository.cut[name] -= 1
        rest = data[start:]
        self._send(rest, headers, status=206 if start else 200, n_bytes=len(rest) // 2 if broken else None)
        self.close_connection = broken

    def _describe(self, name):
        """What the hub lists of a file; large ones are listed with their SHA-256."""
        data = (self.repository.folder / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        lfs = {"oid": digest, "size": len(data), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(data), "oid": digest[:40], "lfs": lfs}

    @property
    def _address(self):
        return f"http://{self.headers['Host']}"

    def _sent(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _json(self, content, *, body=True):
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"}, body=body)

    def _send(self, data, headers, *, body=True, status=200, n_bytes=None):
        """Send an answer; of the body, where ``n_bytes`` is given, no more than that."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[:n_bytes])

    def log_message(self, *_):
        """Stay silent."""
