"""What is kept on the host for later, and how a directory that changed is told from one that did not."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from npu_weave.errors import AdapterFileError, IntegrityError
from npu_weave.experts.packed import PackedAdapter, PackedLayer
from npu_weave.residency.host_cache import HostCache
from npu_weave.residency.load_identity import SETTLED_NS, DigestMemo, directory_identity

LATER = SETTLED_NS + 1


def adapter(digest: str, nbytes: int) -> PackedAdapter:
    weights = {"w": torch.zeros(1, nbytes, dtype=torch.uint8)}
    return PackedAdapter(f"named {digest}", digest, {0: PackedLayer((0,), weights)})


def test_least_recently_used_go_when_bytes_run_out() -> None:
    cache = HostCache(100)
    for digest, nbytes in (("a", 40), ("b", 40), ("c", 10)):
        cache.put(adapter(digest, nbytes))
    taken = cache.take("a")
    assert taken is not None and "a" not in cache and cache.take("a") is None
    cache.put(taken)
    cache.put(adapter("d", 30))
    assert [digest for digest in "abcd" if digest in cache] == ["a", "c", "d"] and cache.nbytes == 80
    cache.check_integrity()


def test_the_same_content_is_kept_once() -> None:
    cache = HostCache(100)
    for _ in range(3):
        cache.put(adapter("a", 40))
    assert (len(cache), cache.nbytes) == (1, 40)


def test_what_is_larger_than_the_limit_is_not_kept_and_drives_nobody_out() -> None:
    cache = HostCache(100)
    cache.put(adapter("a", 100))
    cache.put(adapter("b", 101))
    assert "a" in cache and "b" not in cache
    HostCache(0).put(adapter("a", 1))


def test_without_a_limit_in_bytes_trim_bounds_the_number() -> None:
    cache = HostCache(None)
    for digest in "abcd":
        cache.put(adapter(digest, 1 << 20))
    cache.trim(2)
    assert [digest for digest in "abcd" if digest in cache] == ["c", "d"]
    cache.trim(-1)
    assert (len(cache), cache.nbytes) == (0, 0)


@pytest.mark.parametrize("limit", [0, 3])
def test_memory_of_what_is_not_kept_is_returned_by_another_thread(limit: int) -> None:
    asked: list[Callable[[], None]] = []
    cache = HostCache(limit, later=asked.append)
    returned: list[int] = []
    for digest in "abc":
        held = adapter(digest, 2)
        weakref.finalize(held.layers[0], lambda: returned.append(threading.get_ident()))
        cache.put(held)
        del held
    assert len(asked) == (3 if limit == 0 else 2) and not returned
    thread = threading.Thread(target=lambda: [work() for work in asked])
    thread.start()
    thread.join()
    assert returned == [thread.ident] * len(asked)


def test_memory_that_is_used_again_is_not_returned() -> None:
    asked: list[Callable[[], None]] = []
    cache = HostCache(2, later=asked.append)
    cache.put(adapter("a", 2))
    taken = cache.take("a")
    cache.put(adapter("b", 2))
    assert taken is not None and not asked


def test_check_integrity_sees_a_wrong_count() -> None:
    cache = HostCache(100)
    cache.put(adapter("a", 40))
    cache.nbytes = 39
    with pytest.raises(IntegrityError, match="HOST_CACHE_STATE"):
        cache.check_integrity()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (tmp_path / "expert_cfg.json").write_text("{}")
    return tmp_path


def overwrite(directory: Path) -> None:
    (directory / "a.safetensors").write_bytes(b"changed")


def replace(directory: Path) -> None:
    (directory / "new").write_bytes(b"weights")
    os.replace(directory / "new", directory / "a.safetensors")


def overwrite_and_set_the_time_back(directory: Path) -> None:
    info = os.stat(directory / "a.safetensors")
    overwrite(directory)
    os.utime(directory / "a.safetensors", ns=(info.st_atime_ns, info.st_mtime_ns))


def add(directory: Path) -> None:
    (directory / "b.safetensors").write_bytes(b"")


def remove(directory: Path) -> None:
    (directory / "expert_cfg.json").unlink()


@pytest.mark.parametrize("change", [overwrite, replace, overwrite_and_set_the_time_back, add, remove])
def test_every_change_changes_the_identity(change: Callable[[Path], None], directory: Path) -> None:
    before = directory_identity(directory)
    assert directory_identity(directory) == before
    time.sleep(0.02)  # the clock of a file system may tick this slowly
    change(directory)
    assert directory_identity(directory) != before


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="FILE_UNREADABLE"):
        directory_identity(tmp_path / "missing")


def test_the_memo_knows_what_it_was_told(directory: Path) -> None:
    memo, identity = DigestMemo(), directory_identity(directory)
    assert memo.find(identity) == ""
    memo.note(identity, time.time_ns() + LATER, "digest")
    assert memo.find(identity) == "digest"
    add(directory)
    assert memo.find(directory_identity(directory)) == ""


def test_files_too_fresh_to_be_told_from_later_ones_are_not_remembered(directory: Path) -> None:
    memo, identity = DigestMemo(), directory_identity(directory)
    newest = max(max(state[-2:]) for state in identity)
    memo.note(identity, newest + SETTLED_NS - 1, "digest")
    assert memo.find(identity) == ""
    memo.note(identity, newest + SETTLED_NS, "digest")
    assert memo.find(identity) == "digest"


def test_the_memo_forgets_the_least_recently_used() -> None:
    memo = DigestMemo(capacity=2)
    identities = [(("a", 0, 0, 0, 0, number),) for number in range(3)]
    for identity in identities[:2]:
        memo.note(identity, LATER + 9, "digest")
    assert memo.find(identities[0])
    memo.note(identities[2], LATER + 9, "digest")
    assert [bool(memo.find(identity)) for identity in identities] == [True, False, True]
