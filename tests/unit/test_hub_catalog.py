"""A catalogue on the Hugging Face Hub: the real client, against a server that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

Repositories = dict[str, dict[str, bytes]]

FILES = {"expert_cfg.json": b"{}", "model.safetensors": b"weights" * 400_000, "README.md": b"no part of it"}
PROGRAM = """
import sys
from pathlib import Path
from npu_weave.adapters.catalog import open_catalog
from npu_weave.errors import WeaveError
catalogue = open_catalog("hf://team", cache=Path(sys.argv[1]), cache_bytes=1 << 30)
for name in sys.argv[2:]:
    try:
        path = catalogue.find(name)
    except WeaveError as error:
        print(error.code)
    else:
        print(path and sorted((file.name, file.stat().st_size) for file in path.iterdir()))
"""


class Hub(ThreadingHTTPServer):
    """Answers what huggingface_hub asks for models: whether a repository is there, its files, and their bytes.

    Attributes:
        repositories: name -> file -> content.
        ranges: first bytes of what was asked for, file by file.
        cut: bytes after which a connection breaks; None for never.
    """

    def __init__(self, repositories: Repositories) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.ranges: list[tuple[str, int]] = []
        self.cut: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/(team/[^/]+)(/revision/main)?", path):
            self._model(found[1])
        elif found := re.fullmatch(r"/api/models/(team/[^/]+)/tree/main/?", path):
            self._tree(found[1])
        elif found := re.fullmatch(r"/(team/[^/]+)/resolve/main/(.+)", path):
            self._file(self.server.repositories[found[1]][found[2]], found[2])
        else:
            self._answer(404, b"{}")

    def _model(self, name: str) -> None:
        if name not in self.server.repositories:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        else:
            self._answer(200, json.dumps({"id": name, "sha": "0" * 40, "tags": [], "siblings": []}).encode())

    def _tree(self, name: str) -> None:
        files = self.server.repositories[name].items()
        tree = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files
        ]
        self._answer(200, json.dumps(tree).encode())

    def _file(self, content: bytes, name: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2] or len(content) - 1)) if asked else (0, len(content) - 1)
        self.server.ranges.append((name, first))
        if self.server.cut is not None and name.endswith(".safetensors") and last >= self.server.cut:
            self._answer(403, b"{}")
            return
        where = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "ETag": '"1"'}
        self._answer(206 if asked else 200, content[first : last + 1], where)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub({"team/math": dict(FILES), "team/law": dict(FILES)})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def find(hub: Hub, root: Path, *names: str) -> list[str]:
    """What a catalogue in a process of its own says of each name: the endpoint is read when the client is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), *names], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_adapter_is_a_repository(hub: Hub, tmp_path: Path) -> None:
    own = str(sorted((name, len(content)) for name, content in FILES.items() if name != "README.md"))
    assert find(hub, tmp_path, "math", "unknown", "math") == [own, "None", own]
    assert {name for name, _ in hub.ranges} == {"expert_cfg.json", "model.safetensors"}, "and nothing else is fetched"
    hub.repositories["team/math"]["model.safetensors"] = b"others"
    assert find(hub, tmp_path, "math", "law") == [own.replace("2800000", "6"), own]


def test_a_download_from_it_goes_on_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["team/math"]["model.safetensors"] = bytes(32 << 20)
    hub.cut = 24 << 20
    assert find(hub, tmp_path, "math") == ["CATALOG_DOWNLOAD_FAILED"]
    assert list((tmp_path / "adapters").iterdir()) == []
    hub.cut, hub.ranges = None, []
    assert find(hub, tmp_path, "math") == [str([("expert_cfg.json", 2), ("model.safetensors", 32 << 20)])]
    assert min(first for name, first in hub.ranges) > 0, "what was there was not fetched again"
