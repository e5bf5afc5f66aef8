"""A worker's loads: read and copied by threads, seen by nobody before they are published."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.disk_adapters import GEOMETRY, Rank
from fixtures.loading_rank import Disk, SlowCopies, begin, disk, driver, rank, seen  # noqa: F401 (fixtures)
from fixtures.plain_layers import (  # noqa: F401 (an autouse fixture)
    check_served,
    no_bank_outlives_its_test,
)

from npu_weave.adapters.adapter import open_adapter
from npu_weave.errors import IntegrityError
from npu_weave.memory import FaultDriver, HostDriver
from npu_weave.residency.host_cache import HostCache


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


def test_memory_of_a_load_that_is_given_up_is_returned_by_another_thread(driver: FaultDriver, disk: Disk) -> None:
    rank, asked = Rank(driver), list[Callable[[], None]]()
    rank.store.cache = HostCache(0, later=asked.append)
    begin(rank, 1, disk[1][0])
    rank.reach(1, "read")
    rank.loader.cancel(1)
    assert len(asked) == 1
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
