"""Loads of a worker that fail or are given up: told by their code, gone without trace, the next one works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.disk_adapters import GEOMETRY, Rank, disk_adapter, until
from fixtures.loading_rank import EXPERTS, Disk, SlowCopies, begin, disk, driver, rank, seen  # noqa: F401 (fixtures)
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    PlainLayer,
    check_served,
    no_bank_outlives_its_test,
)
from fixtures.spoiled_rows import spoil_rows

from npu_weave.adapters.adapter import open_adapter
from npu_weave.errors import AdapterFileError, CapacityError, DriverError, IntegrityError
from npu_weave.memory import FaultDriver
from npu_weave.residency.load_identity import directory_identity


class Stop(BaseException):
    """What ends a thread."""


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (AdapterFileError("FILE_UNREADABLE", "a shard"), "FILE_UNREADABLE"),
        (OSError(5, "input/output error"), "WORKER_FAILED"),
        (MemoryError(), "WORKER_FAILED"),
        (Stop(), "WORKER_FAILED"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_read_that_fails_is_reported_and_the_next_one_works(
    failure: BaseException, code: str, rank: Rank, disk: Disk
) -> None:
    before = seen(rank)
    rank.reader.failure = failure
    begin(rank, 1, disk[1][0])
    rank.reach(1, "read")
    assert rank.state(1)["code"] == code
    with pytest.raises(IntegrityError, match="REVISION_NOT_STAGED"):
        rank.loader.commit(1)
    assert rank.loader.cancel(1) and not rank.loader.cancel(1)
    assert seen(rank) == before
    rank.reader.failure = None
    rank.load(1, disk[1][0])
    check_served(rank.store.bank, {1: disk[1][1]})


@pytest.mark.parametrize("fault", [("create_page", 1), ("create_page", 2), ("map", 1), ("map", 2), ("map", 3)], ids=str)
def test_memory_that_cannot_be_had_leaves_no_trace(
    fault: tuple[str, int], rank: Rank, driver: FaultDriver, disk: Disk
) -> None:
    rank.load(2, disk[2][0])
    before = seen(rank)
    driver.arm(("create_page", 1))  # no page is made ahead
    begin(rank, 1, disk[1][0])
    rank.reach(1, "read")
    driver.arm(fault)
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        rank.loader.commit(1)
    driver.arm(None)
    assert seen(rank) == before
    rank.store.check_integrity()
    rank.load(1, disk[1][0])
    check_served(rank.store.bank, {1: disk[2][1], 2: disk[1][1]})


def test_an_adapter_that_does_not_fit_is_refused_when_it_is_committed(driver: FaultDriver, disk: Disk) -> None:
    rank = Rank(driver, adapter_rows=2)
    rank.load(1, disk[1][0])
    before = seen(rank)
    begin(rank, 2, disk[2][0])
    rank.reach(2, "read")
    with pytest.raises(CapacityError, match="ROWS_EXHAUSTED"):
        rank.loader.commit(2)
    assert seen(rank) == before
    rank.close()


def test_rows_that_do_not_hold_what_was_written_are_never_published(
    rank: Rank, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = seen(rank)
    begin(rank, 1, disk[1][0])
    rank.reach(1, "read")
    with monkeypatch.context() as patch:
        spoil_rows(patch, rank.store.bank.layers[1].name)
        rank.loader.commit(1)
        rank.reach(1, "copied")
    assert rank.state(1)["code"] == "ROW_CONTENT"
    with pytest.raises(IntegrityError, match="COPY_UNFINISHED"):
        rank.loader.publish(1)
    check_served(rank.store.bank, {})
    assert rank.loader.cancel(1)
    assert seen(rank) == before
    rank.load(1, disk[1][0])
    check_served(rank.store.bank, {1: disk[1][1]})


def test_a_fence_that_fails_publishes_nothing(rank: Rank, driver: FaultDriver, disk: Disk) -> None:
    before = seen(rank)
    begin(rank, 1, disk[1][0])
    rank.reach(1, "read")
    rank.loader.commit(1)
    rank.reach(1, "copied")
    driver.arm(("fence", 1))
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        rank.loader.publish(1)
    driver.arm(None)
    check_served(rank.store.bank, {})
    rank.loader.cancel(1)
    assert seen(rank) == before


@pytest.mark.parametrize("moment", ["reading", "read", "copying", "copied"])
def test_cancelled_at_any_moment_it_leaves_no_trace(moment: str, rank: Rank, disk: Disk) -> None:
    before = seen(rank)
    if moment == "reading":
        rank.reader.gate.clear()
    begin(rank, 1, disk[1][0])
    if moment == "reading":
        until(lambda: rank.reader.seen == ["adapter1"])
    else:
        rank.reach(1, "read")
    slow = SlowCopies(rank)
    if moment in ("copying", "copied"):
        rank.loader.commit(1)
        assert slow.started.wait(60)
        # whoever gives the rows back waits for the one being written, and for no other
        slow.gate.set()
    if moment == "copied":
        rank.reach(1, "copied")
    slow.heal()
    assert rank.loader.cancel(1)
    assert seen(rank) == before
    rank.store.check_integrity()
    rank.threads[0].submit(lambda: None).result(60)  # with the gate shut: the read itself was told to end
    rank.reader.gate.set()
    rank.load(2, disk[2][0])
    check_served(rank.store.bank, {1: disk[2][1]})


def test_a_directory_or_content_that_changed_is_refused(rank: Rank, disk: Disk, tmp_path: Path) -> None:
    path, _ = disk_adapter(tmp_path / "moving", EXPERTS[1], 9)
    identity, digest = directory_identity(path), open_adapter(path, GEOMETRY).digest
    disk_adapter(path, EXPERTS[1], 8)
    begin(rank, 1, path, "", identity)
    begin(rank, 2, path, digest, None)
    for revision in (1, 2):
        rank.reach(revision, "read")
        assert rank.state(revision)["code"] == "ADAPTER_CHANGED"


def test_a_directory_that_changes_while_it_is_read_is_refused(
    rank: Rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = disk_adapter(tmp_path / "moving", EXPERTS[1], 9)
    pack = PlainLayer.pack

    def change_and_pack(self: PlainLayer, experts: Any) -> Any:
        (path / "extra.txt").write_text("new")
        return pack(self, experts)

    monkeypatch.setattr(PlainLayer, "pack", change_and_pack)
    begin(rank, 1, path, "", directory_identity(path))
    rank.reach(1, "read")
    assert rank.state(1)["code"] == "ADAPTER_CHANGED"


@pytest.mark.parametrize("cached", [False, True])
def test_a_cancelled_load_leaves_no_page_behind(rank: Rank, disk: Disk, cached: bool) -> None:
    pages = rank.store.bank.pool.in_use
    if cached:
        rank.load(1, disk[1][0])
        rank.drop(1)
    begin(rank, 2, disk[1][0])
    rank.reach(2, "read")
    assert rank.store.bank.pool.idle > 0
    assert rank.loader.cancel(2)
    assert (rank.store.bank.pool.in_use, rank.store.bank.pool.idle) == (pages, 0)
