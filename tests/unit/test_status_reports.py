"""Snapshots for metrics leave workers asleep to which nothing has happened."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from npu_weave.engine.vllm import worker_calls
from npu_weave.engine.vllm.in_flight import InFlight
from npu_weave.engine.vllm.status import ServiceRecord, StatusReports
from npu_weave.engine.vllm.workers import WorkerGroup
from npu_weave.residency.directory import AdapterDirectory


class Executor:
    """One worker, whose state is how often it was asked for it."""

    def __init__(self) -> None:
        self.asked = 0

    def collective_rpc(self, method: Any, *, args: tuple[Any, ...] = (), non_block: bool = False) -> Any:
        self.asked += method is worker_calls.status
        answer: Future[list[Any]] = Future()
        answer.set_result([{"asked": self.asked}])
        return answer if non_block else answer.result()


def request(adapter: str | None) -> SimpleNamespace:
    lora = adapter and SimpleNamespace(lora_name=adapter, lora_int_id=1)
    return SimpleNamespace(lora_request=lora, num_prompt_tokens=3, num_output_tokens=4)


class Core:
    """What the reports of an engine core are made of, without one."""

    def __init__(self) -> None:
        self.executor, directory = Executor(), AdapterDirectory(4)
        self.scheduler = SimpleNamespace(requests={}, _free_request=lambda request: None)
        self.workers, record = WorkerGroup(self.executor), ServiceRecord(directory)
        record.watch(self.scheduler)
        loads: Any = SimpleNamespace(report=dict)
        quota: Any = ()
        self.reports = StatusReports(directory, record, self.workers, loads, quota, InFlight(self.scheduler), slots=2)

    def asked_in(self, snapshots: int) -> int:
        before = self.executor.asked
        for _ in range(snapshots):
            assert self.reports.status()["workers"] == [{"asked": self.executor.asked}], "the last that was said"
        return self.executor.asked - before


@pytest.fixture
def core() -> Core:
    core = Core()
    assert core.asked_in(20) == 3, "a worker that has just started"
    return core


def test_workers_to_which_nothing_happens_are_left_alone(core: Core) -> None:
    assert core.asked_in(20) == 0


def test_a_call_has_workers_asked_again(core: Core) -> None:
    core.workers.send(worker_calls.free_rows)
    assert core.asked_in(20) == 3


def test_a_request_has_workers_asked_while_it_runs_and_when_it_has_ended(core: Core) -> None:
    core.scheduler.requests["r"] = request("math")
    assert core.asked_in(5) == 5
    core.scheduler._free_request(core.scheduler.requests.pop("r"))
    assert core.asked_in(20) == 3


def test_requests_of_the_base_model_change_nothing_there(core: Core) -> None:
    core.scheduler.requests["r"] = request(None)
    assert core.asked_in(5) == 0
