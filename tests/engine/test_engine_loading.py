"""Loads beside traffic, in a real engine: nobody waits who need not, and who must wait waits once, for one load.

The workers' reader is given a gate, so that a load takes as long as the test wants: what happens meanwhile is ordered
by the gate and not by clocks.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from fixtures.plain_vllm import GREEDY, PROMPTS, Answers, Batch, answers_of, run_batch, stop
from fixtures.server import eventually
from fixtures.tiny_models import TinyFamily
from fixtures.weave_engine import memory_of, weave_engine

pytestmark = pytest.mark.engine
# the workers cannot import this module: what they are to run travels whole
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BASE, ADAPTERS = -1, 4
SETTINGS: dict[str, Any] = {"max_num_batched_tokens": 1024, "max_num_seqs": 48}
LONG = {**GREEDY, "max_tokens": 400}
"""Requests that still run when the load beside them is over."""


@pytest.fixture(scope="module")
def family(families: Any) -> TinyFamily:
    made: TinyFamily = families("qwen3_moe", ADAPTERS)
    return made


@pytest.fixture(scope="module")
def truth(family: TinyFamily, plain: Any) -> dict[int, Answers]:
    """Plain vLLM's answers by adapter number (BASE for the base model)."""
    models = {BASE: family.base, **dict(enumerate(family.merged))}
    answers: dict[int, Answers] = plain(models, {"short": Batch(PROMPTS)}, **SETTINGS)
    return answers


@pytest.fixture(scope="module")
def running(family: TinyFamily) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        with weave_engine(family.base, max_loras=3, max_cpu_loras=ADAPTERS, **SETTINGS) as llm:
            yield llm


class Gate:
    """Before the files of the workers of `llm`: nothing is read while it is shut."""

    def __init__(self, llm: Any, file: Path) -> None:
        self._llm = llm
        self._file = file
        self.open()
        llm.collective_rpc(_put_a_gate, args=(str(file),))

    def shut(self) -> None:
        self._file.unlink()

    def open(self) -> None:
        self._file.touch()


def _put_a_gate(worker: Any, file: str) -> None:
    reader = worker.model_runner.lora_manager.loader.reader
    read = type(reader).read

    def read_behind_the_gate(*args: Any) -> Any:
        import time

        cancelled: Callable[[], bool] = args[-1]
        while not os.path.exists(file) and not cancelled():
            time.sleep(0.01)
        return read(reader, *args)

    reader.read = read_behind_the_gate


@pytest.fixture
def gate(engine: Any, tmp_path: Path) -> Iterator[Gate]:
    made = Gate(engine, tmp_path / "gate")
    yield made
    made.open()


@pytest.fixture
def engine(running: Any) -> Any:
    """The engine without adapters in service, and with an empty host cache."""
    core = running.llm_engine
    for public_id in list(core.list_loras()):
        assert core.remove_lora(public_id)
    running.collective_rpc(_empty_cache)
    return running


def _empty_cache(worker: Any) -> None:
    worker.model_runner.lora_manager.store.cache.trim(0)


def _gives_way(worker: Any) -> tuple[float, bool]:
    """How long loads of the worker rest, by how long they work, and whether it sleeps where it waits for messages."""
    from npu_weave import turns
    from npu_weave.engine.vllm import waiting

    return turns.rest(), waiting._asleep()


def lora(family: TinyFamily, number: int, public_id: int | None = None) -> Any:
    from vllm.lora.request import LoRARequest

    if number == BASE:
        return None
    public_id = public_id or number + 1
    return LoRARequest(f"adapter{public_id}", public_id, str(family.adapters[number]))


def params(settings: Any = GREEDY) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**settings)


def loads(llm: Any) -> dict[str, Any]:
    report: dict[str, Any] = llm.llm_engine.engine_core.call_utility("npu_weave_loads")
    return report


def begin_load(llm: Any, request: Any) -> Future[Any]:
    """As `add_lora` of the engine's client, without waiting for the answer; the client's socket bears one thread."""
    from vllm.v1.engine import EngineCoreRequestType

    client, call = llm.llm_engine.engine_core, uuid.uuid1().int >> 64
    answer: Future[Any] = Future()
    client.utility_results[call] = answer
    client._send_input(EngineCoreRequestType.UTILITY, (0, call, "add_lora", (request,)))
    return answer


def submit(llm: Any, label: str, lora_request: Any, settings: Any, count: int = len(PROMPTS)) -> None:
    """Queue `count` requests "label/index", to start in one step."""
    core = llm.llm_engine
    core.engine_core.call_utility("pause_scheduler", "keep", False)
    for index in range(count):
        core.add_request(f"{label}/{index}", PROMPTS[index % len(PROMPTS)], params(settings), lora_request=lora_request)
    core.engine_core.call_utility("resume_scheduler")


class Traffic:
    """Requests of `llm` that run, and what has come of them."""

    def __init__(self, llm: Any) -> None:
        self._core = llm.llm_engine
        self.tokens: dict[str, int] = {}
        self.finished: dict[str, Any] = {}

    @property
    def total(self) -> int:
        return sum(self.tokens.values())

    def step(self) -> None:
        for output in self._core.step():
            self.tokens[output.request_id] = len(output.outputs[0].token_ids)
            if output.finished:
                self.finished[output.request_id] = output

    def run(self, more: int) -> None:
        """Until so many more tokens are there."""
        goal = self.total + more
        while self.total < goal:
            assert self._core.has_unfinished_requests()
            self.step()

    def finish(self) -> None:
        while self._core.has_unfinished_requests():
            self.step()

    def check(self, label: str, answers: list[Any], count: int = len(PROMPTS)) -> None:
        """The requests of a label begin with what plain vLLM answers."""
        for index in range(count):
            (answer,) = answers_of(self.finished[f"{label}/{index}"])
            (meant,) = answers[index % len(PROMPTS)]
            assert answer.tokens[: len(meant.tokens)] == meant.tokens, (label, index)
            assert answer.logprobs[: len(meant.logprobs)] == meant.logprobs, (label, index)


def test_others_get_tokens_while_an_adapter_is_loaded(engine: Any, gate: Gate, family: TinyFamily, truth: Any) -> None:
    core = engine.llm_engine
    assert core.add_lora(lora(family, 0))
    for number in (BASE, 0):
        submit(engine, str(number), lora(family, number), LONG)
    traffic = Traffic(engine)
    traffic.run(40)
    gate.shut()
    loaded = begin_load(engine, lora(family, 1))
    eventually(lambda: loads(engine)["under_way"] == 1, "the load begins")
    before = traffic.total
    traffic.run(120)
    assert loads(engine)["under_way"] == 1 and not loaded.done() and set(core.list_loras()) == {1}
    assert traffic.total >= before + 120, "the load was under way for all of these"

    def gives_way() -> bool:
        traffic.step()  # on a busy machine the last one may be long ago
        return bool(engine.collective_rpc(_gives_way) == [(4.0, True)])

    eventually(gives_way, "the load is to rest, and the worker to sleep where it waits")
    gate.open()
    while not loaded.done():
        traffic.step()
    assert loaded.result() is True and not traffic.finished, "published while they run"
    submit(engine, "new", lora(family, 1), GREEDY)
    traffic.finish()
    for label, number in (("-1", BASE), ("0", 0), ("new", 1)):
        traffic.check(label, truth[number]["short"])
    assert [worker["adapters_resident"] for worker in memory_of(engine)] == [2]
    eventually(lambda: engine.collective_rpc(_gives_way) == [(0.0, False)], "nobody is there to give way to")


def test_32_first_uses_at_once_make_one_load_and_32_answers(
    engine: Any, gate: Gate, family: TinyFamily, truth: Any
) -> None:
    before = loads(engine)
    submit(engine, "base", None, LONG)
    traffic = Traffic(engine)
    traffic.run(10)
    gate.shut()
    submit(engine, "first", lora(family, 2), GREEDY, count=32)
    eventually(lambda: loads(engine)["requests_held"] == 32, "all wait")
    traffic.run(30)
    assert all(request.startswith("base/") for request in traffic.tokens), "and nobody else"
    gate.open()
    traffic.finish()
    traffic.check("first", truth[2]["short"], count=32)
    traffic.check("base", truth[BASE]["short"])
    after = loads(engine)
    assert (after["begun"], after["succeeded"]) == (before["begun"] + 1, before["succeeded"] + 1)
    assert after["host_cache"][0]["disk_reads"] == before["host_cache"][0]["disk_reads"] + 1
    assert after["requests_held"] == after["under_way"] == 0
    assert set(engine.llm_engine.list_loras()) == {3}


def test_requests_that_are_aborted_while_they_wait_leave_nothing_behind(
    engine: Any, gate: Gate, family: TinyFamily, truth: Any
) -> None:
    core, empty = engine.llm_engine, memory_of(engine)
    gate.shut()
    submit(engine, "gone", lora(family, 3), GREEDY)
    eventually(lambda: loads(engine)["requests_held"] == len(PROMPTS), "all wait")
    core.abort_request([f"gone/{index}" for index in range(len(PROMPTS))])
    eventually(lambda: loads(engine)["requests_held"] == 0, "none waits")
    gate.open()
    eventually(lambda: loads(engine)["under_way"] == 0, "the load ends all the same")
    assert set(core.list_loras()) == {4}
    assert run_batch(engine, PROMPTS, params(), [lora(family, 3)] * len(PROMPTS)) == truth[3]["short"]
    assert core.remove_lora(4)
    assert memory_of(engine) == empty


def test_unloaded_while_it_is_loaded(engine: Any, gate: Gate, family: TinyFamily, truth: Any) -> None:
    core, empty = engine.llm_engine, memory_of(engine)
    gate.shut()
    loaded = begin_load(engine, lora(family, 1))
    eventually(lambda: loads(engine)["under_way"] == 1, "the load begins")
    assert core.remove_lora(2)
    with pytest.raises(Exception, match="LOAD_CANCELLED"):
        loaded.result(60)
    assert not core.remove_lora(2)
    assert memory_of(engine) == empty and loads(engine)["under_way"] == 0
    gate.open()
    assert core.add_lora(lora(family, 1))
    assert run_batch(engine, PROMPTS, params(), [lora(family, 1)] * len(PROMPTS)) == truth[1]["short"]


def test_the_last_of_two_loads_of_a_name_has_the_last_word(
    engine: Any, gate: Gate, family: TinyFamily, truth: Any
) -> None:
    gate.shut()
    first = begin_load(engine, lora(family, 0, public_id=7))
    eventually(lambda: loads(engine)["under_way"] == 1, "the first begins")
    second = begin_load(engine, lora(family, 1, public_id=7))
    eventually(lambda: loads(engine)["under_way"] == 2, "the second waits for it")
    gate.open()
    assert first.result(60) is True and second.result(60) is True
    requests = [lora(family, 1, public_id=7)] * len(PROMPTS)
    assert run_batch(engine, PROMPTS, params(), requests) == truth[1]["short"]
    assert [worker["adapters_staged"] for worker in memory_of(engine)] == [1]


def test_what_was_unloaded_comes_back_without_the_disk(engine: Any, family: TinyFamily, truth: Any) -> None:
    core = engine.llm_engine
    assert core.add_lora(lora(family, 0))
    before = loads(engine)["host_cache"][0]
    assert core.remove_lora(1)
    kept = loads(engine)["host_cache"][0]
    assert (before["adapters"], kept["adapters"]) == (0, 1) and kept["bytes"] > 0
    # under another name as well: it is the content that counts
    assert core.add_lora(lora(family, 0, public_id=9))
    after = loads(engine)["host_cache"][0]
    assert (after["disk_reads"], after["adapters"]) == (before["disk_reads"], 0)
    assert run_batch(engine, PROMPTS, params(), [lora(family, 0, public_id=9)] * len(PROMPTS)) == truth[0]["short"]


def test_an_engine_that_is_stopped_while_it_loads_stops(engine: Any, gate: Gate, family: TinyFamily) -> None:
    """The last test of this module: the gate stays shut, so only giving up the load lets the processes end."""
    others = {each.pid for each in psutil.Process().children() if "EngineCore" not in str(each.cmdline())}
    children = [each for each in psutil.Process().children(recursive=True) if each.pid not in others]
    assert len(children) >= 4, "engine core and worker, and a process of each that reads adapters"
    gate.shut()
    begin_load(engine, lora(family, 3))
    eventually(lambda: loads(engine)["under_way"] == 1, "the load begins")
    stop(engine)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    gate.open()
