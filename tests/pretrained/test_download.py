"""Downloads through the real client of the hub, from a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"

SCRIPT = """
import json, sys
from scvi_tahoe.pretrained import read_pretrained
cache, offline = sys.argv[1], sys.argv[2] == "offline"
model = read_pretrained("someone/st-model", accept_license=True, cache_dir=cache, offline=offline)
print(json.dumps([model.provenance.revision, model.provenance.checkpoint, len(model.state_dict)]))
"""


@pytest.fixture
def server(golden_folder: Callable[..., Path]) -> Iterator[tuple[str, list[str], Path]]:
    """Address of the server, the list of files asked for, and the folder it serves."""
    pytest.importorskip("huggingface_hub")
    folder = golden_folder("hvg_causal")
    (folder / "checkpoints" / "step=5.ckpt").write_bytes(b"not wanted")
    (folder / "eval_final").mkdir()
    (folder / "eval_final" / "adata_pred.h5ad").write_bytes(b"not wanted")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    httpd.folder, httpd.asked = folder, []  # type: ignore[attr-defined]
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", httpd.asked, folder  # type: ignore[attr-defined]
    httpd.shutdown()
    httpd.server_close()


class Hub(BaseHTTPRequestHandler):
    """Serves one repository: its description, the list of its files, and the files."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        folder, path = self.server.folder, self.path.split("?")[0]  # type: ignore[attr-defined]
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        about, files = "/api/models/someone/st-model", f"/someone/st-model/resolve/{COMMIT}/"
        if path.startswith(f"{about}/tree/{COMMIT}"):
            self.send_json([describe(folder, name) for name in names], body=body)
        elif path.startswith(about):
            siblings = [{"rfilename": name} for name in names]
            self.send_json({"id": "someone/st-model", "sha": COMMIT, "siblings": siblings}, body=body)
        elif path.startswith(files):
            name = path.removeprefix(files).replace("%3D", "=")
            self.server.asked.append(name)  # type: ignore[attr-defined]
            data = (folder / name).read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.send(data, {"ETag": etag, "X-Repo-Commit": COMMIT}, body=body)
        else:
            self.send_error(404)

    def send_json(self, content: object, *, body: bool) -> None:
        self.send(json.dumps(content).encode(), {"Content-Type": "application/json"}, body=body)

    def send(self, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def describe(folder: Path, name: str) -> dict[str, object]:
    """What the hub lists of a file; large ones are listed with their SHA-256."""
    data = (folder / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    lfs = {"oid": digest, "size": len(data), "pointerSize": 130}
    return {"type": "file", "path": name, "size": len(data), "oid": digest[:40], "lfs": lfs}


def read(address: str, cache: Path, how: str) -> subprocess.CompletedProcess[str]:
    # The client reads the hub's address when it is imported, so it needs a process of its own.
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    environment |= {
        "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(cache),
    }
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", SCRIPT, str(cache), how]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_download_is_pinned_sparing_and_kept(server: tuple[str, list[str], Path], tmp_path: Path) -> None:
    address, asked, folder = server
    online = read(address, tmp_path / "hub", "online")
    assert online.returncode == 0, online.stderr[-3000:]
    revision, checkpoint, n_tensors = json.loads(online.stdout.splitlines()[-1])
    assert (revision, checkpoint) == (COMMIT, "final.ckpt")
    assert n_tensors > 20
    assert "checkpoints/final.ckpt" in asked
    assert not [name for name in asked if name.startswith("eval") or "step=5" in name]
    n_asked = len(asked)
    offline = read("http://127.0.0.1:9", tmp_path / "hub", "offline")
    assert offline.returncode == 0, offline.stderr[-3000:]
    assert json.loads(offline.stdout.splitlines()[-1])[0] == COMMIT
    assert len(asked) == n_asked
    assert folder.is_dir()
