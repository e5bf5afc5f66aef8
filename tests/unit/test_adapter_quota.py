"""A limit an adapter: who waits, in which order they go on, and that nobody else waits with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from npu_weave.engine.vllm.quota import AdapterQuota


def request(number: int) -> Any:
    return SimpleNamespace(request_id=f"r{number}")


class Engine:
    """Requests of a scheduler, by adapter, and those that wait."""

    def __init__(self, limit: int | None) -> None:
        self.running: list[str] = []
        self.entered: list[str] = []
        self.quota = AdapterQuota(limit, lambda: self.running)

    def submit(self, name: str, number: int) -> None:
        if self.quota.admits(name):
            self._enter(name, request(number))
        else:
            self.quota.hold(name, request(number), lambda each: self._enter(name, each))

    def step(self) -> None:
        for each, enter in self.quota.release():
            enter(each)

    def _enter(self, name: str, each: Any) -> None:
        self.running.append(name)
        self.entered.append(each.request_id)


def test_requests_beyond_the_limit_wait_in_order_and_others_pass_them() -> None:
    engine = Engine(2)
    for number in range(5):
        engine.submit("a", number)
    engine.submit("b", 5)
    assert engine.entered == ["r0", "r1", "r5"] and len(engine.quota) == 3
    engine.step()
    assert len(engine.quota) == 3, "nobody has finished"
    engine.running.remove("a")
    engine.submit("a", 6)
    assert len(engine.quota) == 4, "who waits already goes first"
    engine.step()
    assert engine.entered[3:] == ["r2"]
    engine.running = ["b"]
    engine.step()
    assert engine.entered[4:] == ["r3", "r4"] and len(engine.quota) == 1
    engine.running = []
    engine.step()
    assert engine.entered[6:] == ["r6"] and len(engine.quota) == 0


def test_who_gives_up_is_forgotten() -> None:
    engine = Engine(1)
    for number in range(3):
        engine.submit("a", number)
    engine.quota.withdraw("r1")
    engine.quota.withdraw("r9")
    engine.running = []
    engine.step()
    assert engine.entered == ["r0", "r2"] and len(engine.quota) == 0
    engine.submit("a", 3)
    engine.quota.withdraw("r3")
    assert len(engine.quota) == 0 and not engine.quota.admits("a")
    engine.running = []
    assert engine.quota.admits("a"), "nothing is left behind"


def test_without_a_limit_nobody_waits() -> None:
    engine = Engine(None)
    for number in range(100):
        engine.submit("a", number)
    assert len(engine.entered) == 100 and engine.quota.release() == []
