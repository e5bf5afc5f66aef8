"""`npu-weave serve --catalog` over HTTP: adapters nobody loaded answer as their merged checkpoints do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fixtures.plain_vllm import PROMPTS
from fixtures.served_family import family, truth
from fixtures.server import (
    BASE,
    PAGE,
    Server,
    Truth,
    completion,
    crowd,
    eventually,
    running_server,
)
from fixtures.tiny_models import TinyFamily

from npu_weave.cli.status import read_status

pytestmark = pytest.mark.engine
__all__ = ["family", "truth"]


@pytest.fixture(scope="module")
def catalogue(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters, one of them under a second name, one that is cut short, and a link to what lies elsewhere."""
    root = tmp_path_factory.mktemp("catalogue")
    for number, adapter in enumerate(family.adapters[:3]):
        shutil.copytree(adapter, root / f"a{number}")
    shutil.copytree(family.adapters[1], root / "counted")
    shutil.copytree(family.adapters[0], root / "broken")
    shard = next((root / "broken").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    (root / "outside").symlink_to(family.adapters[1])
    return root


@pytest.fixture(scope="module")
def server(family: TinyFamily, catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    options = ["--catalog", str(catalogue), "--max-loras", "2", "--max-cpu-loras", "3"]
    # five prompts of each adapter are asked at once: some have to wait for others
    options += ["--max-requests-per-adapter", "2"]
    with running_server(family.base, log, {}, options=options) as up:
        yield up


def test_adapters_are_served_by_name(server: Server, truth: Truth) -> None:
    assert set(server.models()) == {BASE}, "nothing is listed at start"
    jobs = [(name, prompt) for prompt in PROMPTS for name in ("a0", BASE, "a1", "a2")]
    with crowd(server), ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(lambda job: server.complete(*job), jobs))
    for (name, prompt), answers in zip(jobs, found, strict=True):
        assert answers == [truth[name].together[prompt]], (name, prompt)
    assert set(server.models()) == {BASE, "a0", "a1", "a2"}


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("unknown", 404, "does not exist"),
        ("../a0", 404, "does not exist"),
        ("/etc", 404, "does not exist"),
        ("http://127.0.0.1/a0", 404, "does not exist"),
        ("broken", 400, "FILE_"),
        ("outside", 403, "ADAPTER_PATH_OUTSIDE"),
    ],
)
def test_what_cannot_be_served_is_a_clear_error(
    server: Server, truth: Truth, name: str, status: int, text: str
) -> None:
    response = server.client.post("/v1/completions", json=completion(name, PROMPTS[0]))
    assert (response.status_code, text in response.text) == (status, True), response.text
    chat = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    assert server.client.post("/v1/chat/completions", json=chat).status_code == status
    assert server.complete("a0", PROMPTS[0]) == [truth["a0"].alone], "others are served on"


def test_the_server_tells_where_its_adapters_are(server: Server, truth: Truth) -> None:
    url = str(server.client.base_url)
    (answer,) = server.complete("counted", PROMPTS[0])
    assert answer == truth["a1"].alone

    def told() -> dict[str, Any]:
        return dict(read_status(url).adapters.get("counted", {}))

    eventually(lambda: "requests" in told(), "its request is counted")
    counts = told()
    assert (counts["requests"], counts["generated_tokens"]) == (1, len(answer.tokens))
    assert counts["level"] == "gpu" and counts["prompt_tokens"] > 0
    status = read_status(url)
    assert status.totals["vllm:max_gpu_lora_adapters"] == 2
    assert status.totals["npu_weave:expert_bytes"] == server.mapped_pages() * PAGE
    assert all(code.startswith("FILE_") for code in status.failures)


def test_clients_may_not_load_or_unload(server: Server, family: TinyFamily) -> None:
    """The catalogue is the operator's choice; the routes for loading stay off."""
    assert server.load("a3", family.adapters[2]).status_code == 404
    assert server.unload("a0").status_code == 404
