"""Adapters of data parallel engine cores, which must stay alike, over workers without an engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.disk_adapters import disk_adapter, until
from fixtures.plain_core import Core, Disk, begin, lora
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    check_served,
    no_bank_outlives_its_test,
)

from npu_weave.engine.vllm.server import status_of
from npu_weave.errors import AdapterFileError, WeaveError

pytestmark = pytest.mark.engine

EXPERTS = {1: {0: [1, 2], 1: [3]}, 2: {0: [0], 1: [0, 1]}, 3: {1: [2]}, 4: {0: [3]}}
SLOTS, HOST = 3, 4


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    root = tmp_path_factory.mktemp("adapters")
    return {number: disk_adapter(root / f"a{number}", experts, number) for number, experts in EXPERTS.items()}


@pytest.fixture
def cores(tmp_path: Path) -> Iterator[list[Core]]:
    """Two data parallel ones."""
    made = [Core(tmp_path / "no checkpoint here", SLOTS, HOST, data_parallel=2) for _ in range(2)]
    yield made
    for core in made:
        core.close()


@pytest.fixture
def core(cores: list[Core]) -> Core:
    return cores[0]


def layouts(cores: list[Core]) -> set[str]:
    return {rank.store.layout() for core in cores for rank in core.ranks}


def test_slots_have_the_order_of_loads_whatever_takes_longer(cores: list[Core], disk: Disk) -> None:
    """On one core the second adapter is read slowly; the third, whose content is there, does not overtake it."""
    for core in cores:
        begin(core, lora(disk, 1))
        core.settle()
    for rank in cores[1].ranks:
        rank.reader.gate.clear()
    for core in cores:
        begin(core, lora(disk, 2))
        begin(core, lora(disk, 1, 9))
    until(lambda: (cores[1].control.poll(), "adapter2" in cores[1].ranks[1].reader.seen)[1])
    for _ in range(20):
        cores[1].control.poll()
        time.sleep(0.01)
    assert cores[1].staged() == [{1}, {1}]
    for rank in cores[1].ranks:
        rank.reader.gate.set()
    for core in cores:
        core.settle()
        for rank in core.ranks:
            check_served(rank.store.bank, {1: disk[1][1], 2: disk[2][1], 3: disk[1][1]})
    assert len(layouts(cores)) == 1


def test_a_failed_load_leaves_its_slot_to_the_next(cores: list[Core], disk: Disk) -> None:
    """Cores that failed alike are alike; revisions are numbered by what was tried, and do not matter."""
    for rank in cores[0].ranks:
        rank.reader.failure = AdapterFileError("FILE_UNREADABLE", "a shard")
    failed = begin(cores[0], lora(disk, 3))
    cores[0].settle()
    assert isinstance(failed.exception(0), WeaveError)
    for core in cores:
        for rank in core.ranks:
            rank.reader.failure = None
        begin(core, lora(disk, 1))
        core.settle()
    assert len(layouts(cores)) == 1


@pytest.mark.parametrize("other", [(2, 1), (1,), (1, 3), ()], ids=str)
def test_cores_that_loaded_otherwise_have_another_layout(other: tuple[int, ...], cores: list[Core], disk: Disk) -> None:
    for core, numbers in zip(cores, [(1, 2), other], strict=True):
        for public_id, number in enumerate(numbers, 1):
            begin(core, lora(disk, number, public_id))
            core.settle()
    assert len(layouts(cores)) == 2


def test_more_adapters_than_slots_are_refused(core: Core, disk: Disk) -> None:
    loads = [begin(core, lora(disk, number)) for number in (1, 2, 3)]
    with pytest.raises(WeaveError, match=r"^\[SLOTS_EXHAUSTED\].*raise --max-loras"):
        core.control.add(lora(disk, 4))
    core.settle()
    assert all(load.result(0) for load in loads)
    with pytest.raises(WeaveError, match="SLOTS_EXHAUSTED"):
        core.control.add(lora(disk, 4))
    assert core.control.public_ids() == {1, 2, 3} and core.control.add(lora(disk, 1)) is True


def test_what_an_id_stands_for_stays(core: Core, disk: Disk) -> None:
    first = begin(core, lora(disk, 1))
    for again in (lora(disk, 2, 1), lora(disk, 1, load_inplace=True)):
        with pytest.raises(WeaveError, match="DATA_PARALLEL_STATIC"):
            core.control.add(again)
    assert begin(core, lora(disk, 1)) is first, "whoever asks for the same joins"
    core.settle()
    for again in (lora(disk, 2, 1), lora(disk, 1, load_inplace=True)):
        with pytest.raises(WeaveError, match="DATA_PARALLEL_STATIC"):
            core.control.add(again)
    with pytest.raises(WeaveError, match="DATA_PARALLEL_STATIC") as refused:
        core.control.remove(1)
    assert status_of(str(refused.value)) == 409
    assert core.control.public_ids() == {1} and not core.control.busy


@pytest.mark.parametrize("first", ["request", "step of others"])
def test_nothing_is_loaded_after_the_first_step(first: str, core: Core, disk: Disk) -> None:
    begin(core, lora(disk, 1))
    core.settle()
    if first == "request":
        core.request("base", None)
    else:
        core.control.step_without_requests()
    with pytest.raises(WeaveError, match="DATA_PARALLEL_STATIC"):
        core.control.add(lora(disk, 2))
    assert core.control.add(lora(disk, 1)) is True
    core.request("uses it", lora(disk, 1))
    assert "uses it" in core.scheduler.requests


def test_a_load_that_the_first_step_overtakes_is_given_up(core: Core, disk: Disk) -> None:
    for rank in core.ranks:
        rank.reader.gate.clear()
    late = begin(core, lora(disk, 1))
    until(lambda: (core.control.poll(), bool(core.ranks[1].reader.seen))[1])
    core.request("base", None)
    with pytest.raises(WeaveError, match="LOAD_CANCELLED"):
        late.result(0)
    assert core.staged() == [set(), set()] and "base" in core.scheduler.requests


def test_a_request_loads_nothing(core: Core, disk: Disk) -> None:
    core.request("unknown", lora(disk, 1))
    assert "[DATA_PARALLEL_STATIC]" in str(core.refused["unknown"]) and not core.scheduler.requests
    assert begin(core, lora(disk, 1)), "a refused request is not the first"
    core.settle()
    core.request("known", lora(disk, 1))
    assert "known" in core.scheduler.requests


@pytest.mark.parametrize("admitted", [False, True], ids=["no request", "a request that was aborted"])
def test_ranks_compare_before_a_step_without_requests_once(admitted: bool, core: Core, disk: Disk) -> None:
    begin(core, lora(disk, 1))
    core.settle()
    if admitted:
        core.request("goes", lora(disk, 1))
        core.finish("goes")
    for _ in range(3):
        core.control.step_without_requests()
    assert [rank.layouts for rank in core.ranks] == [[rank.store.layout()] for rank in core.ranks]
