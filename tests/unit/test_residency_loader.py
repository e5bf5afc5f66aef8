"""A worker's loads: read and copied by threads, seen by nobody before they are published, gone without trace."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.disk_adapters import GEOMETRY, Rank, disk_adapter, until
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    PlainLayer,
    check_served,
    no_bank_outlives_its_test,
)
from fixtures.spoiled_rows import spoil_rows

from npu_weave.adapters.adapter import open_adapter
from npu_weave.errors import AdapterFileError, CapacityError, DriverError, IntegrityError
from npu_weave.experts.packed import PackedAdapter
from npu_weave.experts.prepared import LeasedRow, RowCopy
from npu_weave.memory import FaultDriver, HostDriver
from npu_weave.residency.load_identity import directory_identity

Disk = dict[int, tuple[Path, PackedAdapter]]
EXPERTS = {1: {0: [1, 2], 1: [3]}, 2: {0: [0], 1: [0, 1]}, 3: {1: [2]}}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    root = tmp_path_factory.mktemp("adapters")
    return {number: disk_adapter(root / f"a{number}", experts, number) for number, experts in EXPERTS.items()}


@pytest.fixture
def driver() -> FaultDriver:
    made = FaultDriver(HostDriver())
    made.arm(None)
    return made


@pytest.fixture
def rank(driver: FaultDriver) -> Iterator[Rank]:
    made = Rank(driver)
    yield made
    made.close()


def seen(rank: Rank) -> tuple[Any, ...]:
    """All that a step, or an operator, can see of the worker."""
    tables = [layer.map.table.tolist() for layer in rank.store.bank.layers.values()]
    return rank.store.fingerprint(), rank.store.bank.memory(), tables, rank.loader.states()


def begin(rank: Rank, revision: int, path: Path, digest: str = "", identity: Any = None) -> None:
    rank.loader.begin(revision, f"adapter{revision}", str(path), digest, identity)


def test_a_load_is_served_when_it_is_published_and_not_before(rank: Rank, disk: Disk) -> None:
    (path, meant), empty = disk[1], seen(rank)
    rank.reader.gate.clear()
    begin(rank, 1, path)
    assert rank.state(1) == {"stage": "reading"}, "and the step thread is here again"
    assert seen(rank)[:3] == empty[:3]
    rank.reader.gate.set()
    rank.reach(1, "read")
    digest = open_adapter(path, GEOMETRY).digest
    assert rank.state(1) == {"stage": "read", "digest": digest}
    assert seen(rank)[:3] == empty[:3]
    rank.loader.commit(1)
    check_served(rank.store.bank, {})
    rank.store.check_integrity()
    rank.reach(1, "copied")
    check_served(rank.store.bank, {})
    assert rank.store.slot_of(1) is None
    rank.loader.publish(1)
    check_served(rank.store.bank, {1: meant})
    assert (rank.store.resident, rank.loader.states()) == ({1: 1}, {})
    assert rank.store.staged[1].digest == digest
    rank.store.check_integrity()


def test_experts_carry_the_digests_of_their_files(rank: Rank, disk: Disk) -> None:
    path, _ = disk[1]
    rank.load(1, path)
    adapter = open_adapter(path, GEOMETRY)
    for layer, packed in rank.store.staged[1].layers.items():
        assert packed.digests == tuple(adapter.expert_digest(layer, expert) for expert in packed.experts)


def test_loads_run_side_by_side_and_end_in_any_order(rank: Rank, disk: Disk) -> None:
    for revision in (1, 2):
        begin(rank, revision, disk[revision][0])
    for revision in (2, 1):
        rank.reach(revision, "read")
        rank.loader.commit(revision)
        rank.reach(revision, "copied")
        rank.loader.publish(revision)
    check_served(rank.store.bank, {1: disk[2][1], 2: disk[1][1]})


def test_without_a_free_slot_a_load_ends_on_the_host(rank: Rank, disk: Disk) -> None:
    for revision in (1, 2, 3):
        rank.load(revision, disk[revision][0])
    assert set(rank.store.staged) == {1, 2, 3} and rank.store.resident == {1: 1, 2: 2}
    rank.store.activate([3])
    check_served(rank.store.bank, {1: disk[3][1], 2: disk[2][1]})


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


class SlowCopies:
    """Makes the copying of rows wait after the first, until `gate` is opened."""

    def __init__(self, rank: Rank) -> None:
        self.gate, self.started = threading.Event(), threading.Event()
        layer = rank.store.bank.layers[0]
        lease = layer.lease

        class SlowRow(LeasedRow):
            def copies(this) -> list[RowCopy]:
                self.started.set()
                self.gate.wait(60)
                return super().copies()

        def slowly(*args: Any) -> Any:
            rows = lease(*args)
            rows[1] = SlowRow(*rows[1])
            return rows

        layer.lease = slowly  # type: ignore[method-assign]
        self.heal = lambda: layer.__dict__.pop("lease")


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


def test_a_step_that_needs_the_slot_takes_it_and_the_load_ends_on_the_host(driver: FaultDriver, disk: Disk) -> None:
    rank = Rank(driver, slots=2)
    rank.load(2, disk[2][0])
    rank.load(3, disk[3][0])
    rank.store.activate([2, 3])
    rank.store.drop(2)
    rank.store.stage(4, disk[2][1])  # takes the free slot
    rank.store.drop(3)
    begin(rank, 1, disk[1][0])
    rank.reach(1, "read")
    slow = SlowCopies(rank)
    rank.loader.commit(1)
    assert slow.started.wait(60)
    slow.heal()
    slow.gate.set()
    # revision 5 is staged on the host and a step needs it beside revision 4: both slots
    rank.store.staged[5] = disk[3][1]
    assert rank.store.activate([4, 5]) == [5]
    rank.store.check_integrity()
    rank.reach(1, "copied")
    rank.loader.publish(1)
    assert set(rank.store.resident) == {4, 5} and 1 in rank.store.staged
    rank.store.activate([1])
    check_served(rank.store.bank, {rank.store.resident[1]: disk[1][1]} | {
        slot: disk[{4: 2, 5: 3}[revision]][1] for revision, slot in rank.store.resident.items() if revision != 1
    })  # fmt: skip
    rank.close()


def test_content_on_the_host_needs_no_disk(driver: FaultDriver, disk: Disk) -> None:
    rank = Rank(driver, cache=None, host_limit=2)
    path, meant = disk[1]
    rank.load(1, path)
    digest = rank.store.staged[1].digest
    rank.load(2, path, digest)
    assert rank.loader.disk_reads == 1, "of a revision in use"
    rank.store.drop(1)
    assert len(rank.store.cache) == 0
    rank.store.drop(2)
    assert digest in rank.store.cache
    begin(rank, 3, path, digest)
    rank.reach(3, "read")
    assert rank.state(3) == {"stage": "read", "digest": digest} and digest not in rank.store.cache
    rank.loader.cancel(3)
    assert digest in rank.store.cache, "nobody has it now"
    rank.load(4, path, digest)
    assert rank.loader.disk_reads == 1
    check_served(rank.store.bank, {1: meant})
    assert rank.store.staged[4].name == "adapter4"
    rank.close()


def test_the_cache_takes_what_the_staged_adapters_leave(driver: FaultDriver, disk: Disk) -> None:
    rank = Rank(driver, cache=None, host_limit=2)
    for revision in (1, 2):
        rank.load(revision, disk[revision][0])
    rank.store.drop(1)
    assert len(rank.store.cache) == 1
    rank.load(3, disk[3][0])
    assert len(rank.store.cache) == 0, "two are staged, and two is the limit"
    rank.close()


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


def test_ids_are_used_once(rank: Rank, disk: Disk) -> None:
    begin(rank, 1, disk[1][0])
    with pytest.raises(IntegrityError, match="REVISION_STAGED"):
        begin(rank, 1, disk[2][0])
    rank.reach(1, "read")
    rank.loader.commit(1)
    with pytest.raises(IntegrityError, match="REVISION_NOT_STAGED"):
        rank.loader.commit(1)
    rank.reach(1, "copied")
    rank.loader.publish(1)
    for call in (rank.loader.publish, rank.loader.commit):
        with pytest.raises(IntegrityError, match="REVISION_NOT_STAGED"):
            call(1)
    with pytest.raises(IntegrityError, match="REVISION_STAGED"):
        begin(rank, 1, disk[2][0])


def test_ranks_that_see_the_same_calls_agree_however_fast_they_copy(disk: Disk) -> None:
    ranks = [Rank(FaultDriver(HostDriver()), cache=1 << 30), Rank(FaultDriver(HostDriver()), cache=1 << 30)]
    for each in ranks:
        each.load(1, disk[1][0])
        begin(each, 2, disk[2][0])
        each.reach(2, "read")
    slow = SlowCopies(ranks[0])
    for each in ranks:
        each.loader.commit(2)
    assert slow.started.wait(60)
    ranks[1].reach(2, "copied")
    slow.gate.set()
    slow.heal()
    for each in ranks:
        each.store.staged[3] = disk[3][1]
        each.store.activate([1, 3])
    assert len({each.store.fingerprint() for each in ranks}) == 1
    for each in ranks:
        each.reach(2, "copied")
        each.loader.publish(2)
        each.store.drop(1)
    assert len({each.store.fingerprint() for each in ranks}) == 1
    assert ranks[0].store.cache.nbytes == ranks[1].store.cache.nbytes > 0
    for each in ranks:
        each.close()


ENDS = """
import sys
from pathlib import Path
from fixtures.disk_adapters import Rank, disk_adapter
rank = Rank()
path, _ = disk_adapter(Path(sys.argv[1]), {0: [1], 1: [2]}, 1)
rank.reader.gate.clear()
rank.loader.begin(1, "never", str(path), "", None)
while not rank.reader.seen:
    pass
print("loading", flush=True)
"""


def test_a_process_that_ends_while_it_loads_does_not_wait_for_the_load(tmp_path: Path) -> None:
    """The gate stays shut: a read that is not told to stop would keep the process for good."""
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(tmp_path / "a")],
        env={"PYTHONPATH": str(tests), "PATH": ""}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("loading\n", 0), done.stderr


def test_pages_are_made_before_the_step_thread_wants_them(rank: Rank, driver: FaultDriver, disk: Disk) -> None:
    begin(rank, 1, disk[1][0])
    rank.reach(1, "read")
    driver.arm(("create_page", 1))
    rank.loader.commit(1)
    driver.arm(None)
    assert rank.store.bank.pool.idle == 0, "what was not needed is the system's again"
    rank.reach(1, "copied")
    rank.loader.publish(1)
    rank.store.check_integrity()


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
