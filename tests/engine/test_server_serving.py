"""`npu-weave serve` over HTTP, against plain vLLM: every answer is exact, whatever else the server is doing.

Two slots serve up to four adapters, so that adapters also come and go between slots.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fixtures.plain_vllm import PROMPTS, Answer
from fixtures.served_family import family, truth
from fixtures.server import BASE, ENDLESS, PAGE, Server, Truth, completion, crowd, eventually, running_server
from fixtures.tiny_models import TinyFamily
from typer.testing import CliRunner

from npu_weave.cli.main import app

pytestmark = pytest.mark.engine
__all__ = ["family", "truth"]

MANY = 960
"""Tokens of a request that runs on while the test does something, and is read to its end."""


@pytest.fixture(scope="module")
def server(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    adapters = {"a0": family.adapters[0], "a1": family.adapters[1]}
    with running_server(family.base, log, adapters, [family.base.parent], ["--max-loras", "2"]) as up:
        yield up


@pytest.fixture
def a2(server: Server, family: TinyFamily) -> Iterator[None]:
    """A third adapter, loaded for one test."""
    response = server.load("a2", family.adapters[2])
    assert response.status_code == 200, response.text
    yield
    assert server.unload("a2").status_code == 200


def ask(
    server: Server, jobs: Sequence[tuple[str, str]], answer: Callable[..., Any] | None = None, **fields: Any
) -> list[Any]:
    """``answer(model, prompt)`` for all jobs at once, in a crowd."""
    with crowd(server), ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: (answer or server.complete)(*job, **fields), jobs))


def jobs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, prompt) for prompt in PROMPTS for name in names]


def check(server: Server, truth: Truth, names: Sequence[str]) -> None:
    """Ask every model of `names` every prompt, all at once, and compare with plain vLLM."""
    jobs = jobs_of(names)
    for (name, prompt), got in zip(jobs, ask(server, jobs), strict=True):
        assert got == [truth[name].together[prompt]], (name, prompt)


def test_the_models_answer_differently(truth: Truth) -> None:
    for prompt in PROMPTS:
        assert len({answers.together[prompt].tokens for answers in truth.values()}) == len(truth)


def test_models_are_listed_with_their_parent(server: Server, family: TinyFamily) -> None:
    models = server.models()
    assert {name: model["parent"] for name, model in models.items()} == {BASE: None, "a0": BASE, "a1": BASE}
    roots = {name: Path(model["root"]) for name, model in models.items()}
    assert roots == {BASE: family.base, "a0": family.adapters[0], "a1": family.adapters[1]}


def test_concurrent_mixed_requests_of_more_adapters_than_slots(server: Server, truth: Truth, a2: None) -> None:
    names = (BASE, "a0", "a1", "a2")
    assert len(names) * len(PROMPTS) == 24
    check(server, truth, names)


def test_several_samples_a_request(server: Server, truth: Truth) -> None:
    """Samples of the best candidate alone are the greedy answer, up to where two tokens are exactly as likely."""
    jobs = jobs_of((BASE, "a0", "a1"))
    for (name, prompt), samples in zip(jobs, ask(server, jobs, n=3, temperature=1.0, top_k=1), strict=True):
        assert len(samples) == 3
        greedy = truth[name].together[prompt]
        for sample in samples:
            same = [got == wanted for got, wanted in zip(sample.tokens, greedy.tokens, strict=True)]
            end = same.index(False) + 1 if False in same else len(same)
            assert sample.logprobs[:end] == greedy.logprobs[:end], (name, prompt)


def test_streaming_gives_the_same_tokens(server: Server, truth: Truth) -> None:
    pieces: list[int] = []

    def stream(name: str, prompt: str) -> Answer:
        with server.streamed(name, prompt) as chunks:
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
        tokens = [token for choice in choices for token in choice["token_ids"]]
        logprobs = [value for choice in choices for value in choice["logprobs"]["token_logprobs"]]
        pieces.append(len(choices))
        return Answer(tuple(tokens), tuple(logprobs))

    jobs = jobs_of((BASE, "a0", "a1"))
    assert ask(server, jobs, stream) == [truth[name].together[prompt] for name, prompt in jobs]
    # a machine that is busy elsewhere may hand over some answers at once
    assert max(pieces) > 1, "every answer came in one piece"


def test_a_client_that_disconnects_hurts_nobody(server: Server, truth: Truth) -> None:
    before = total(server, "vllm:generation_tokens_total")
    with server.streamed("a0", PROMPTS[0], max_tokens=ENDLESS) as chunks:
        got = len(first_tokens(next(chunks)))
    eventually(lambda: total(server, "vllm:num_requests_running") == 0, "nothing runs any more")
    assert got <= total(server, "vllm:generation_tokens_total") - before < ENDLESS, "it went on without a client"
    with ThreadPoolExecutor(1) as pool:
        with server.streamed("a0", PROMPTS[0], max_tokens=ENDLESS) as chunks:
            next(chunks)
            others = pool.submit(check, server, truth, (BASE, "a0", "a1"))
            next(chunks)
        others.result()
    check(server, truth, (BASE, "a0", "a1"))


def test_unknown_names_are_not_found(server: Server) -> None:
    response = server.client.post("/v1/completions", json=completion("nobody", PROMPTS[0]))
    assert response.status_code == 404 and "nobody" in response.text
    response = server.unload("nobody")
    assert response.status_code == 404 and "nobody" in response.text


def test_load_serve_unload_at_run_time(server: Server, truth: Truth, family: TinyFamily) -> None:
    for _ in range(2):
        assert server.load("late", family.adapters[2]).status_code == 200
        assert server.models()["late"]["parent"] == BASE
        check(server, {**truth, "late": truth["a2"]}, (BASE, "a0", "late"))
        assert server.unload("late").status_code == 200
        assert "late" not in server.models()
        response = server.client.post("/v1/completions", json=completion("late", PROMPTS[0]))
        assert response.status_code == 404 and "late" in response.text
        assert server.unload("late").status_code == 404


def test_32_who_load_one_name_at_once_get_one_load_and_one_answer(
    server: Server, truth: Truth, family: TinyFamily
) -> None:
    def published() -> int:
        return server.log.read_text(errors="replace").count("adapter 'many' ")

    start = threading.Barrier(32)

    def load(_: int) -> tuple[int, str]:
        start.wait(60)
        response = server.load("many", family.adapters[2])
        return response.status_code, response.text

    before = published()
    with ThreadPoolExecutor(32) as pool:
        answers = set(pool.map(load, range(32)))
    assert {status for status, _ in answers} == {200}, "also for who comes when the load is over already"
    again = server.load("many", family.adapters[2])
    assert again.status_code == 200 and "in service already" in again.text
    assert published() == before + 1
    check(server, {**truth, "many": truth["a2"]}, (BASE, "many"))
    assert server.unload("many").status_code == 200


def test_a_name_moves_to_other_weights_only_when_asked_to(server: Server, truth: Truth, family: TinyFamily) -> None:
    assert server.load("moving", family.adapters[2]).status_code == 200
    check(server, {**truth, "moving": truth["a2"]}, ("moving",))
    response = server.load("moving", family.adapters[1])
    assert response.status_code == 400 and "already been loaded" in response.text
    check(server, {**truth, "moving": truth["a2"]}, ("moving",))
    assert server.load("moving", family.adapters[1], load_inplace=True).status_code == 200
    check(server, {**truth, "moving": truth["a1"]}, (BASE, "a0", "moving"))
    assert server.unload("moving").status_code == 200


def test_a_request_in_flight_outlives_a_re_point_and_an_unload(
    server: Server, truth: Truth, family: TinyFamily
) -> None:
    assert server.load("going", family.adapters[2]).status_code == 200
    with server.streamed("going", PROMPTS[0], max_tokens=MANY) as chunks:
        tokens = first_tokens(next(chunks))
        assert server.load("going", family.adapters[1], load_inplace=True).status_code == 200
        assert server.unload("going").status_code == 200
        tokens += [token for chunk in chunks for token in first_tokens(chunk)]
    assert len(tokens) == MANY
    expected = truth["a2"].alone.tokens
    assert tuple(tokens[: len(expected)]) == expected
    assert server.load("going", family.adapters[2]).status_code == 200
    assert tuple(tokens) == server.complete("going", PROMPTS[0], max_tokens=MANY)[0].tokens
    assert server.unload("going").status_code == 200


def test_loading_while_others_generate(server: Server, truth: Truth, family: TinyFamily) -> None:
    done = threading.Event()

    def generate() -> int:
        rounds = 0
        while not done.is_set():
            check(server, truth, (BASE, "a0"))
            rounds += 1
        return rounds

    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(generate)
        try:
            for number in (1, 2, 3) * 2:
                assert server.load("busy", family.adapters[number]).status_code == 200
                assert server.unload("busy").status_code == 200
        finally:
            done.set()
        assert others.result() > 0
    check(server, truth, (BASE, "a0", "a1"))


def test_metrics_tell_which_adapters_run(server: Server) -> None:
    with server.streamed("a1", PROMPTS[0], max_tokens=ENDLESS) as chunks:
        next(chunks)
        eventually(
            lambda: any(
                line.startswith("vllm:lora_requests_info{") and 'max_lora="2"' in line and '_adapters="a1"' in line
                for line in server.metrics()
            ),
            "a1 is among the running adapters",
        )


def first_tokens(chunk: dict[str, Any]) -> list[int]:
    """Token ids of a chunk of a request with one sample."""
    return [token for choice in chunk["choices"] for token in choice["token_ids"]]


def total(server: Server, metric: str, label: str = "") -> float:
    """Sum of a metric over its label sets, or over those that contain `label`."""
    lines = [line for line in server.metrics() if line.startswith(f"{metric}{{") and label in line]
    assert lines, f"no metric {metric} {label}"
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_the_commands_load_and_unload_on_a_running_server(server: Server, truth: Truth, family: TinyFamily) -> None:
    def run(*words: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*words, "--url", str(server.client.base_url), "--json"])
        found: dict[str, Any] = json.loads(result.stdout)
        return found | {"status": result.exit_code}

    pages = server.mapped_pages()
    assert run("load", "told", str(family.adapters[2]))["in_service"] is True
    check(server, {**truth, "told": truth["a2"]}, (BASE, "told"))
    assert run("load", "told", str(family.adapters[1]))["status"] == 0, "the name moves to other content"
    check(server, {**truth, "told": truth["a1"]}, (BASE, "told"))
    with server.streamed("told", PROMPTS[0], max_tokens=ENDLESS) as chunks:
        next(chunks)
        assert run("unload", "told", "--timeout", "1")["error"]["code"] == "DRAIN_TIMEOUT"
        assert "told" not in server.models(), "it takes no new requests"
    freed = run("unload", "told")
    assert (freed["status"], freed["was_in_service"]) == (0, False)
    assert freed["mapped_after"] == server.mapped_pages() * PAGE == pages * PAGE
    assert run("load", "told", "/nowhere")["error"]["code"] == "SERVER_REFUSED"
