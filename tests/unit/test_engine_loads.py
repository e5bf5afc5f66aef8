"""The engine core's side of loads, over workers without an engine. Needs vLLM installed, starts none of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures.disk_adapters import GEOMETRY, disk_adapter, until
from fixtures.plain_core import Core, Disk, begin, lora
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    check_served,
    no_bank_outlives_its_test,
)
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from npu_weave.adapters import open_adapter
from npu_weave.engine.vllm import worker_calls
from npu_weave.engine.vllm.workers import MOST_UNANSWERED, WorkerGroup
from npu_weave.errors import AdapterError, AdapterFileError, ConfigError, WeaveError
from npu_weave.experts import bank
from npu_weave.residency.pins import read_pins

pytestmark = pytest.mark.engine

EXPERTS = {1: {0: [1, 2], 1: [3]}, 2: {0: [0], 1: [0, 1]}, 3: {1: [2]}, 4: {0: [3]}}
SLOTS, HOST = 2, 3


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    root = tmp_path_factory.mktemp("adapters")
    return {number: disk_adapter(root / f"a{number}", experts, number) for number, experts in EXPERTS.items()}


@pytest.fixture(params=[False, True], ids=["idle", "stepping"])
def core(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Core]:
    made = Core(tmp_path / "no checkpoint here", SLOTS, HOST, stepping=request.param)
    yield made
    made.close()


def test_a_load_ends_on_all_ranks(core: Core, disk: Disk) -> None:
    loaded = begin(core, lora(disk, 1))
    assert not loaded.done() and core.control.public_ids() == set()
    core.settle()
    assert loaded.result(0) is True and core.control.public_ids() == {1}
    for rank in core.ranks:
        check_served(rank.store.bank, {1: disk[1][1]})
    assert core.control.add(lora(disk, 1)) is True, "there already"


@pytest.mark.parametrize("at_once", [1, bank.SLICE_EXPERTS])
def test_no_step_waits_while_adapters_come_and_go(
    at_once: int, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What workers are told goes ahead of a step, and what they answer comes with it."""
    monkeypatch.setattr(bank, "SLICE_EXPERTS", at_once)
    core = Core(tmp_path / "no checkpoint here", SLOTS, HOST, stepping=True)
    empty = [(rank.store.fingerprint(), rank.memory()) for rank in core.ranks]
    for number in (1, 2, 1):
        loaded = begin(core, lora(disk, number))
        until(lambda: (core.poll(), not core.control.busy)[1])
        assert loaded.result(0) and all(core.staged())
        assert core.control.remove(number)
        core.poll()
        assert core.staged() == [set(), set()] and core.control.busy, "until its memory is free"
        until(lambda: (core.poll(), not core.control.busy)[1])
        assert [(rank.store.fingerprint(), rank.memory()) for rank in core.ranks] == empty
    assert core.waited == 0
    core.close()


def test_a_step_never_has_more_than_a_slice_before_it(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both layers of an adapter are leased, and freed, one before each step."""
    monkeypatch.setattr(bank, "SLICE_EXPERTS", 1)
    core = Core(tmp_path / "no checkpoint here", SLOTS, HOST, stepping=True)

    def changed() -> int:
        """Layers whose rows in use are others than before."""
        before, now = (
            seen[-1],
            [len(layer.tensors["w2"].mapped_rows) for layer in core.ranks[0].store.bank.layers.values()],
        )
        seen.append(now)
        return sum(one != other for one, other in zip(before, now, strict=True))

    seen = [[0, 0]]
    changed()
    for action in (lambda: begin(core, lora(disk, 1)), lambda: core.control.remove(1)):
        action()
        steps = []
        while core.control.busy:
            core.poll()
            steps.append(changed())
        assert sum(steps) == 2 and max(steps) == 1, seen
    core.close()


def test_a_drop_that_fails_is_reported_and_tried_again(disk: Disk, tmp_path: Path) -> None:
    core = Core(tmp_path / "no checkpoint here", SLOTS, HOST)
    begin(core, lora(disk, 1))
    core.settle()
    for driver in core.drivers:
        driver.arm(("fence", 1))
    with pytest.raises(WeaveError, match="DRIVER_FAULT_INJECTED"):
        core.control.remove(1)
    assert core.control.public_ids() == set() and all(core.staged()), "out of service, and still in memory"
    assert [adapter["retired"] for adapter in core.control.reports.status()["adapters"]] == [True]
    for driver in core.drivers:
        driver.arm(None)
    core.control.collect()
    assert core.staged() == [set(), set()] and not core.control.reports.status()["adapters"]
    core.check()
    core.close()


def test_few_calls_are_on_their_way_at_once(tmp_path: Path) -> None:
    """More would fill vLLM's queues, and both sides would wait for the other."""
    core = Core(tmp_path / "no checkpoint here", SLOTS, HOST, stepping=True)
    workers = WorkerGroup(core)
    answers = []
    for _ in range(3 * MOST_UNANSWERED):
        answers.append(workers.send(worker_calls.host_cache))
        assert sum(not answer.done() for answer in answers) <= MOST_UNANSWERED
    core.step()
    assert all(answer.done() for answer in answers) and answers[0].result() == answers[-1].result()
    core.close()


def test_callers_and_requests_of_one_name_share_a_load(core: Core, disk: Disk) -> None:
    callers = [begin(core, lora(disk, 1)) for _ in range(16)]
    for number in range(16):
        core.request(f"r{number}", lora(disk, 1))
    assert not core.scheduler.requests and core.control.reports.loads()["requests_held"] == 16
    core.settle()
    assert [caller.result(0) for caller in callers] == [True] * 16
    assert list(core.scheduler.requests) == [f"r{number}" for number in range(16)], "in the order they came"
    assert {request.lora_request.lora_int_id for request in core.scheduler.requests.values()} == {1}
    report = core.control.reports.loads()
    assert (report["begun"], report["succeeded"], report["requests_held"]) == (1, 1, 0)
    assert [cache["disk_reads"] for cache in report["host_cache"]] == [1, 1]


def test_requests_that_arrive_on_32_threads_share_a_load(core: Core, disk: Disk) -> None:
    """The input thread admits while the main thread polls; here there are 32 of the one."""
    arrived = [
        EngineCoreRequest(
            request_id=f"r{number}", prompt_token_ids=[1], mm_features=None, sampling_params=SamplingParams(),
            pooling_params=None, arrival_time=0.0, lora_request=lora(disk, 1), cache_salt=None,
            data_parallel_rank=None,
        )
        for number in range(32)
    ]  # fmt: skip
    with ThreadPoolExecutor(32) as threads:
        for ready in threads.map(lambda request: core.preprocess_add_request(request)[0], arrived):
            core.control.submit(ready, core.enter)
            core.poll()
    core.settle()
    assert len(core.scheduler.requests) == 32 and core.control.reports.loads()["begun"] == 1


def test_names_of_one_directory_are_read_once(core: Core, disk: Disk) -> None:
    loaded = [begin(core, lora(disk, 1, public_id)) for public_id in (1, 2, 3)]
    core.settle()
    assert all(each.result(0) for each in loaded) and core.control.public_ids() == {1, 2, 3}
    assert [rank.loader.disk_reads for rank in core.ranks] == [1, 1]


def test_requests_go_on_while_others_wait(core: Core, disk: Disk) -> None:
    begin(core, lora(disk, 1))
    core.settle()
    for rank in core.ranks:
        rank.reader.gate.clear()
    core.request("waits", lora(disk, 2))
    core.request("base", None)
    core.request("goes on", lora(disk, 1))
    core.poll()
    assert set(core.scheduler.requests) == {"base", "goes on"}
    for rank in core.ranks:
        rank.reader.gate.set()
    core.settle()
    assert set(core.scheduler.requests) == {"base", "goes on", "waits"}


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("fault", ["read", "crash", "map", "fence"])
def test_a_load_that_fails_anywhere_is_dropped_everywhere(
    fault: str, ranks: tuple[int, ...], core: Core, disk: Disk
) -> None:
    begin(core, lora(disk, 2))
    core.settle()
    before = core.staged(), [rank.store.fingerprint() for rank in core.ranks]
    for number in ranks:
        if fault in ("map", "fence"):
            core.drivers[number].arm((fault, 1))
        else:
            failure = AdapterFileError("FILE_UNREADABLE", "a shard") if fault == "read" else OSError("disk")
            core.ranks[number].reader.failure = failure
    loaded = begin(core, lora(disk, 1))
    core.request("held", lora(disk, 1))
    core.settle()
    codes = {"read": "FILE_UNREADABLE", "crash": "WORKER_FAILED"}
    with pytest.raises(WeaveError, match=codes.get(fault, "DRIVER_FAULT_INJECTED")):
        loaded.result(0)
    assert "held" in core.refused and not core.scheduler.requests
    assert (core.staged(), [rank.store.fingerprint() for rank in core.ranks]) == before
    for number in ranks:
        core.drivers[number].arm(None)
        core.ranks[number].reader.failure = None
    again = begin(core, lora(disk, 1))
    core.settle()
    assert again.result(0)


def test_no_adapter_at_the_path(core: Core, tmp_path: Path) -> None:
    missing = LoRARequest("missing", 5, str(tmp_path / "missing"))
    loaded = begin(core, missing)
    core.request("held", missing)
    core.settle()
    with pytest.raises(WeaveError, match="ADAPTER_NOT_FOUND"):
        loaded.result(0)
    assert "ADAPTER_NOT_FOUND" in str(core.refused["held"])


@pytest.mark.parametrize("moment", ["queued", "reading", "reads"])
def test_taken_out_of_service_while_it_is_loaded(moment: str, core: Core, disk: Disk) -> None:
    for rank in core.ranks:
        rank.reader.gate.clear()
    loaded = begin(core, lora(disk, 1))
    core.request("held", lora(disk, 1))
    if moment != "queued":
        until(lambda: (core.poll(), bool(core.ranks[1].reader.seen))[1])
    if moment == "reads":
        core.ranks[0].reader.gate.set()
        core.ranks[0].reach(1, "read")
    assert core.control.remove(1)
    with pytest.raises(WeaveError, match="LOAD_CANCELLED"):
        loaded.result(0)
    assert "held" in core.refused and core.staged() == [set(), set()] and not core.control.remove(1)
    core.check()
    for rank in core.ranks:
        rank.reader.gate.set()
    assert begin(core, lora(disk, 1)) is not loaded
    core.settle()
    assert core.control.public_ids() == {1}


def test_an_aborted_request_does_not_come_back(core: Core, disk: Disk) -> None:
    core.request("stays", lora(disk, 1))
    core.request("goes", lora(disk, 1))
    core.control.abort(["goes"])
    core.settle()
    assert set(core.scheduler.requests) == {"stays"} and not core.refused


def test_a_stopping_engine_gives_everything_up(core: Core, disk: Disk) -> None:
    loaded = [begin(core, lora(disk, number)) for number in (1, 2)]
    core.request("held", lora(disk, 3))
    core.control.abandon()
    assert not core.control.busy and set(core.refused) == {"held"}
    for each in loaded:
        with pytest.raises(WeaveError, match="LOAD_CANCELLED"):
            each.result(0)
    assert core.staged() == [set(), set()]


def test_requests_beyond_an_adapters_limit_wait_and_a_stopping_engine_gives_them_up(disk: Disk, tmp_path: Path) -> None:
    core = Core(tmp_path / "no checkpoint here", SLOTS, HOST, each=1)
    try:
        for number in (1, 2):
            begin(core, lora(disk, number))
        core.settle()
        for name, number in (("a", 1), ("b", 1), ("c", 1), ("other", 2)):
            core.request(name, lora(disk, number))
        assert set(core.scheduler.requests) == {"a", "other"} and core.control.busy
        core.control.abort(["b"])
        core.finish("a")
        core.poll()
        assert set(core.scheduler.requests) == {"c", "other"} and not core.control.busy
        core.request("late", lora(disk, 1))
        core.control.abandon()
        assert not core.control.busy and set(core.refused) == {"late"}
        assert "REQUEST_CANCELLED" in str(core.refused["late"])
    finally:
        for name in list(core.scheduler.requests):
            core.finish(name)
        core.close()


def test_requests_end_when_their_adapter_has_drained_for_too_long(disk: Disk, tmp_path: Path) -> None:
    core = Core(tmp_path / "no checkpoint here", SLOTS, HOST, each=1, drain=0.2)
    try:
        for number in (1, 2):
            begin(core, lora(disk, number))
        core.settle()
        for name, number in (("runs", 1), ("waits", 1), ("other", 2)):
            core.request(name, lora(disk, number))
        assert core.control.remove(1)
        core.control.collect()
        assert not core.refused and len(core.staged()[0]) == 2, "there is time left"
        until(lambda: bool(core.control.collect() or core.refused))
        assert set(core.refused) == {"runs", "waits"} and set(core.scheduler.requests) == {"other"}
        assert all("drain_timeout" in str(error) for error in core.refused.values())
        assert len(core.staged()[0]) == 1 and not core.control.busy, "its memory is free"
        core.check()
    finally:
        for name in list(core.scheduler.requests):
            core.finish(name)
        core.close()


def test_a_pinned_name_serves_its_content_or_nothing(disk: Disk, tmp_path: Path) -> None:
    digests = {number: open_adapter(path, GEOMETRY).digest for number, (path, _) in disk.items()}
    pins = tmp_path / "pins.json"
    pins.write_text(json.dumps({"adapter1": digests[1], "adapter2": digests[1]}))
    core = Core(tmp_path / "no checkpoint here", SLOTS, HOST, pins=pins)
    try:
        good, bad, free = (begin(core, lora(disk, number)) for number in (1, 2, 3))
        core.request("r", lora(disk, 2))
        core.settle()
        assert good.result(0) and free.result(0), "a name without a pin is free"
        with pytest.raises(AdapterError, match="ADAPTER_PIN_MISMATCH"):
            bad.result(0)
        assert "ADAPTER_PIN_MISMATCH" in str(core.refused["r"]) and core.control.public_ids() == {1, 3}
        again = begin(core, LoRARequest("adapter1", 1, str(disk[2][0]), load_inplace=True))
        core.settle()
        with pytest.raises(AdapterError, match="ADAPTER_PIN_MISMATCH"):
            again.result(0)
        for rank in core.ranks:
            check_served(rank.store.bank, {1: disk[1][1], 2: disk[3][1]})
    finally:
        core.close()


@pytest.mark.parametrize("text", ["", "[]", '{"law": 3}', '{"law": "abc"}', None])
def test_pins_that_are_none(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_pins(path)
    assert caught.value.code == "PINS_INVALID"


def test_without_a_limit_a_drain_takes_as_long_as_its_requests(core: Core, disk: Disk) -> None:
    begin(core, lora(disk, 1))
    core.settle()
    core.request("runs", lora(disk, 1))
    core.control.remove(1)
    time.sleep(0.05)
    core.control.collect()
    assert set(core.scheduler.requests) == {"runs"} and not core.refused
    core.finish("runs")
    assert core.staged() == [set(), set()]


def test_the_last_of_two_loads_of_an_id_has_the_last_word(core: Core, disk: Disk) -> None:
    first, second = begin(core, lora(disk, 1, 7)), begin(core, lora(disk, 2, 7))
    core.request("for the first", lora(disk, 1, 7))
    core.request("for the second", lora(disk, 2, 7))
    core.settle()
    assert first.result(0) and second.result(0) and len(core.scheduler.requests) == 2
    digests = [request.lora_request.lora_path for request in core.scheduler.requests.values()]
    assert digests[0] != digests[1]
    core.finish("for the first")
    core.finish("for the second")
    assert [len(staged) for staged in core.staged()] == [1, 1]
    for rank in core.ranks:
        (slot,) = rank.store.resident.values()
        check_served(rank.store.bank, {slot: disk[2][1]})


def test_a_load_that_needs_no_reading_does_not_overtake_an_earlier_one_of_its_id(core: Core, disk: Disk) -> None:
    begin(core, lora(disk, 2))
    core.settle()
    for rank in core.ranks:
        rank.reader.gate.clear()
    begin(core, lora(disk, 1, 7))
    begin(core, lora(disk, 2, 7))
    until(lambda: (core.poll(), "adapter7" in core.ranks[1].reader.seen)[1])
    for rank in core.ranks:
        rank.reader.gate.set()
    core.settle()
    core.request("r", lora(disk, 2, 7))
    revision = core.scheduler.requests["r"].lora_request.lora_int_id
    for rank in core.ranks:
        rank.store.activate([revision])
        check_served(rank.store.bank, {slot: disk[2][1] for slot in rank.store.resident.values()})


def test_the_same_content_again_changes_nothing(core: Core, disk: Disk) -> None:
    begin(core, lora(disk, 1))
    core.settle()
    before = [rank.store.fingerprint() for rank in core.ranks]
    again = begin(core, lora(disk, 1, load_inplace=True))
    core.settle()
    assert again.result(0) and [rank.store.fingerprint() for rank in core.ranks] == before


def test_host_copies_beyond_the_limit_come_back_for_their_requests(core: Core, disk: Disk) -> None:
    for number in (1, 2, 3, 4):
        begin(core, lora(disk, number))
        core.settle()
    assert [len(staged) for staged in core.staged()] == [HOST, HOST] and core.control.public_ids() == {1, 2, 3, 4}
    core.request("first", lora(disk, 1))
    core.settle()
    assert "first" in core.scheduler.requests and [len(staged) for staged in core.staged()] == [HOST, HOST]
    core.control.remove(1)
    assert any(1 in staged for staged in core.staged()), "in use"
    core.finish("first")
    assert not any(1 in staged for staged in core.staged())
    core.check()


def test_an_engine_inside_its_caller_waits(core: Core, disk: Disk) -> None:
    core.control._waits = True
    assert core.control.add(lora(disk, 1)) is True
    core.request("r", lora(disk, 2))
    assert "r" in core.scheduler.requests
