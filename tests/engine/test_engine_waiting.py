"""Waiting for another process's message: as vLLM does it, but asleep while there are loads. vLLM's own queue."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import pytest
from vllm.distributed.device_communicators import shm_broadcast

from npu_weave.engine.vllm import patches, waiting

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    patches.install()
    monkeypatch.setattr(waiting, "_watched", weakref.WeakSet())
    monkeypatch.setattr(waiting, "_awake_after", 0.0)
    monkeypatch.setattr(waiting, "AFTERWARDS_SECONDS", 0.0)


@pytest.fixture
def loads() -> Any:
    found = type("Found", (), {"busy": False})()
    waiting.sleep_during(found)
    return found


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often somebody yielded, and slept, to wait."""
    counts = {"yields": 0, "sleeps": 0}

    def sched_yield() -> None:
        counts["yields"] += 1
        time.sleep(1e-4)

    class Poller(shm_broadcast.zmq.Poller):  # type: ignore[misc,name-defined]
        def poll(self, timeout: int | None = None) -> Any:
            counts["sleeps"] += 1
            return super().poll(timeout)

    monkeypatch.setattr(shm_broadcast, "sched_yield", sched_yield)
    monkeypatch.setattr(shm_broadcast.zmq, "Poller", Poller)
    return counts


def say_after(queue: Any, seconds: float) -> Any:
    """What the reader of a queue gets that is written so much later."""
    reader = shm_broadcast.MessageQueue.create_from_handle(queue.export_handle(), 0)
    queue.enqueue("first")
    assert reader.dequeue(timeout=30) == "first"
    writing = threading.Timer(seconds, queue.enqueue, ["second"])
    writing.start()
    try:
        return reader.dequeue(timeout=30)
    finally:
        writing.join()


@pytest.fixture
def queue() -> Any:
    return shm_broadcast.MessageQueue(1, 1)


def test_a_call_that_is_lost_is_no_message_lost(
    loads: Any, waits: dict[str, int], queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads.busy = True
    monkeypatch.setattr(shm_broadcast.SpinCondition, "notify", lambda self: None)
    assert say_after(queue, 0.05) == "second"
    assert waits["sleeps"] > 10


def test_without_loads_it_yields_as_ever(loads: Any, waits: dict[str, int], queue: Any) -> None:
    assert say_after(queue, 0.2) == "second"
    assert waits["yields"] > 10 and waits["sleeps"] == 0


def test_during_loads_it_sleeps(loads: Any, waits: dict[str, int], queue: Any) -> None:
    loads.busy = True
    assert say_after(queue, 0.2) == "second"
    assert waits["sleeps"] > 10 and waits["yields"] == 0


def test_a_while_after_the_last_load_it_still_sleeps(
    loads: Any, waits: dict[str, int], queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "AFTERWARDS_SECONDS", 3600.0)
    loads.busy = True
    assert say_after(queue, 0.05) == "second"
    loads.busy = False
    waits |= {"yields": 0, "sleeps": 0}
    assert say_after(shm_broadcast.MessageQueue(1, 1), 0.05) == "second"
    assert waits["sleeps"] > 10 and waits["yields"] == 0


def test_loads_of_an_engine_that_is_gone_are_forgotten(waits: dict[str, int], queue: Any) -> None:
    gone = type("Gone", (), {"busy": True})()
    waiting.sleep_during(gone)
    del gone
    assert say_after(queue, 0.05) == "second"
    assert waits["sleeps"] == 0
