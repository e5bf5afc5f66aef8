"""`npu-weave serve` over vllm-ascend's real sources, on an emulated runtime: adapters come and go over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.ascend_engine import Answer, transformers_answers
from fixtures.server import BASE, Server, running_server
from fixtures.tiny_models import TinyFamily

pytestmark = pytest.mark.ascend_engine

PROMPTS, TOKENS = ("hello world", "the quick brown fox"), 6
OPTIONS = ("--dtype", "float32", "--max-model-len", "256", "--block-size", "128", "--num-gpu-blocks-override", "32")
ROUNDING = 2e-4


@pytest.fixture(scope="module")
def family(families: Callable[..., TinyFamily]) -> TinyFamily:
    return families("qwen3_moe", 2)


@pytest.fixture(scope="module")
def truth(family: TinyFamily) -> dict[str, list[Answer]]:
    models = {BASE: family.base, "one": family.merged[0], "two": family.merged[1]}
    return {name: transformers_answers(path, PROMPTS, TOKENS) for name, path in models.items()}


@pytest.fixture(scope="module")
def server(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.txt"
    roots = [family.adapters[1].parent]
    with running_server(family.base, log, {"one": family.adapters[0]}, roots, OPTIONS) as running:
        yield running


def check_answers(server: Server, name: str, true: list[Answer]) -> None:
    for prompt, answer in zip(PROMPTS, true, strict=True):
        (found,) = server.complete(name, prompt, max_tokens=TOKENS)
        assert found.tokens == answer.tokens
        assert found.logprobs == pytest.approx(answer.logprobs, abs=ROUNDING)


def test_adapters_come_and_go(server: Server, family: TinyFamily, truth: dict[str, list[Answer]]) -> None:
    assert len({tuple(answers) for answers in truth.values()}) == 3
    for name in (BASE, "one"):
        check_answers(server, name, truth[name])
    assert server.load("two", family.adapters[1]).status_code == 200
    assert set(server.models()) == {BASE, "one", "two"}
    for name, answers in truth.items():
        check_answers(server, name, answers)
    assert server.unload("two").status_code == 200
    assert server.client.post("/v1/completions", json={"model": "two", "prompt": "x"}).status_code == 404
    check_answers(server, "one", truth["one"])


def test_what_cannot_be_loaded_is_the_clients_error_and_others_are_served(
    server: Server, family: TinyFamily, truth: dict[str, list[Answer]], tmp_path: Path
) -> None:
    for path, status, code in (
        (family.base.parent / "nothing", 404, "ADAPTER_NOT_FOUND"),
        (tmp_path, 403, "ADAPTER_PATH_OUTSIDE"),
        (family.base, 400, "EXPERT_CONFIG_MISSING"),
    ):
        refused = server.load("bad", path)
        assert refused.status_code == status and f"[{code}" in refused.text, refused.text
    check_answers(server, "one", truth["one"])


def test_memory_is_the_npu_drivers(server: Server) -> None:
    assert "of 2 MiB (npu driver)" in server.log.read_text()
