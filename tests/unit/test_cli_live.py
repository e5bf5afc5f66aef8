"""`npu-weave load` and `npu-weave unload`, against a server that only answers as one would."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from npu_weave.cli.main import app

RUNNER = CliRunner()


class Fake:
    """A server's adapters, as its HTTP API tells them.

    Attributes:
        asked: bodies of the calls, in order.
        routes: whether it lets adapters be loaded.
        key: that it wants, if any.
        draining: snapshots for which an adapter stays in memory after it was unloaded.
        stale: answers of /metrics before there is a new snapshot.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.routes, self.key = True, ""
        self.adapters: dict[str, int] = {"law": 0}
        self.draining, self.stale, self.looks = 2, 2, 0

    def metrics(self) -> str:
        self.looks += 1
        snapshot = self.looks // self.stale
        there = [name for name, until in self.adapters.items() if until == 0 or snapshot < until]
        lines = [f'vllm:lora_adapter_loaded{{adapter_name="{each}",level="gpu",pinned="false",rank="0"}} 1'
                 for each in there]  # fmt: skip
        lines += [f"npu_weave:snapshot_time_seconds {snapshot}", "vllm:max_gpu_lora_adapters 4"]
        return "\n".join([*lines, f"npu_weave:expert_bytes {(1 + len(there)) << 20}"]) + "\n"

    def load(self, body: dict[str, Any]) -> tuple[int, str]:
        if body["lora_name"] == "bad":
            return 400, json.dumps({"error": {"message": "[FILE_TRUNCATED] bad; expected more; got less"}})
        self.adapters[body["lora_name"]] = 0
        return 200, "Success"

    def unload(self, body: dict[str, Any]) -> tuple[int, str]:
        name = body["lora_name"]
        if self.adapters.get(name) != 0:
            return 404, json.dumps({"error": {"message": f"The lora adapter '{name}' cannot be found."}})
        self.adapters[name] = self.looks // self.stale + self.draining
        return 200, "Success"


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def url(fake: Fake) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, fake.metrics())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.asked.append(body)
            if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                self.answer(401, json.dumps({"error": "Unauthorized"}))
            elif not fake.routes:
                self.answer(404, json.dumps({"detail": "Not Found"}))
            else:
                self.answer(*{"load": fake.load, "unload": fake.unload}[self.path.split("/")[2].split("_")[0]](body))

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()


def run(*words: str) -> tuple[int, dict[str, Any]]:
    result = RUNNER.invoke(app, [*words, "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_load_says_when_it_is_in_service(fake: Fake, url: str, tmp_path: Path) -> None:
    status, made = run("load", "math", str(tmp_path), "--url", url)
    assert status == 0 and made["in_service"] is True
    assert fake.asked == [{"lora_name": "math", "lora_path": str(tmp_path), "load_inplace": True}]
    assert "in service" in RUNNER.invoke(app, ["load", "math", str(tmp_path), "--url", url]).stdout


def test_unload_waits_until_the_memory_is_back(fake: Fake, url: str) -> None:
    status, made = run("unload", "law", "--url", url)
    assert status == 0 and made["was_in_service"] is True
    assert made["mapped_before"] - made["mapped_after"] == 1 << 20
    assert fake.looks // fake.stale >= fake.adapters["law"] > 0, "it looked until the adapter was gone"


def test_unload_does_not_trust_what_was_so_before_it(fake: Fake, url: str) -> None:
    """The adapter was loaded since the last snapshot, which says nothing of it."""
    fake.stale, fake.draining = 6, 1
    fake.adapters["law"] = -1
    before = fake.looks
    status, made = run("unload", "law", "--url", url)
    assert status == 0 and made["was_in_service"] is False
    assert fake.looks - before >= fake.stale


def test_unload_again_is_no_error(fake: Fake, url: str) -> None:
    assert run("unload", "unknown", "--url", url)[1]["was_in_service"] is False


def test_a_drain_that_takes_too_long(fake: Fake, url: str) -> None:
    fake.draining = 10**6
    status, made = run("unload", "law", "--url", url, "--timeout", "0.2")
    assert status == 10 and made["error"]["code"] == "DRAIN_TIMEOUT"


def test_the_servers_refusal_is_told(fake: Fake, url: str, tmp_path: Path) -> None:
    status, made = run("load", "bad", str(tmp_path), "--url", url)
    assert status == 10 and made["error"]["code"] == "SERVER_REFUSED" and "[FILE_TRUNCATED]" in made["error"]["got"]


@pytest.mark.parametrize("words", [("load", "math", "/srv"), ("unload", "law")])
def test_a_server_without_these_routes(fake: Fake, url: str, words: tuple[str, ...]) -> None:
    fake.routes = False
    status, made = run(*words, "--url", url)
    assert status == 10 and made["error"]["code"] == "SERVER_READ_ONLY"


def test_a_key_is_taken_from_the_environment(fake: Fake, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.key = "secret"
    status, made = run("load", "math", "/srv", "--url", url)
    assert status == 10 and "VLLM_API_KEY" in made["error"]["remedy"]
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert run("load", "math", "/srv", "--url", url)[0] == 0
