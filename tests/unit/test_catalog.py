"""Catalogues: adapters by name from a directory or a remote place, whole or not at all, in a bounded cache."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from npu_weave.adapters.catalog import open_catalog
from npu_weave.adapters.disk_cache import DiskCache
from npu_weave.adapters.remote_catalog import RemoteCatalog
from npu_weave.errors import AdapterError, CapacityError, ConfigError, WeaveError

FILES = {"expert_cfg.json": b"{}", "model.safetensors": b"weights" * 100, "README.md": b"no part of it"}
OWN = {name: content for name, content in FILES.items() if name != "README.md"}
SIZE = sum(map(len, OWN.values()))
_numbers = itertools.count()


@pytest.fixture
def place() -> Iterator[str]:
    """An empty place in fsspec's memory."""
    name = f"/catalogue-{next(_numbers)}"
    files = fsspec.filesystem("memory")
    files.makedirs(name)
    yield f"memory:/{name}"
    files.rm(name, recursive=True)


def publish(place: str, name: str, files: dict[str, bytes] = FILES) -> None:
    for file, content in files.items():
        with fsspec.open(f"{place}/{name}/{file}", "wb") as out:
            out.write(content)


def catalogue(place: str, root: Path, limit: int = 1 << 20, **others: Any) -> Any:
    return open_catalog(place, cache=root, cache_bytes=limit, **others)


def contents(path: Path | None) -> dict[str, bytes]:
    assert path is not None
    return {file.name: file.read_bytes() for file in path.iterdir()}


def complete(root: Path) -> list[str]:
    """What a cache holds, as ADAPTER/REVISION."""
    return sorted(str(path.relative_to(root / "adapters")) for path in (root / "adapters").glob("*/*"))


def code_of(kind: type[WeaveError], action: Callable[[], object]) -> str:
    """The code of the error that an action must raise."""
    with pytest.raises(kind) as caught:
        action()
    return caught.value.code


def test_a_directory_is_a_catalogue_of_its_directories(tmp_path: Path) -> None:
    (tmp_path / "all" / "math" / "v2").mkdir(parents=True)
    (tmp_path / "all" / "law").symlink_to("math/v2")
    found = catalogue(str(tmp_path / "all"), tmp_path / "unused")
    assert found.find("math") == (tmp_path / "all/math").resolve()
    assert found.find("law") == (tmp_path / "all/math/v2").resolve(), "a link re-points a name"
    assert found.find("unknown") is None
    assert not (tmp_path / "unused").exists(), "a directory needs no cache"


def test_nothing_outside_of_a_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "all" / "out").symlink_to(tmp_path / "secret")
    found = catalogue(str(tmp_path / "all"), tmp_path)
    assert code_of(AdapterError, lambda: found.find("out")) == "ADAPTER_PATH_OUTSIDE"
    for name in ("..", "../secret", "/etc", "a/b", ".", "", "file:x", "http://x"):
        assert code_of(AdapterError, lambda name=name: found.find(name)) == "ADAPTER_NAME_INVALID"


def test_what_is_no_place_is_refused_at_start(tmp_path: Path) -> None:
    assert code_of(ConfigError, lambda: catalogue(str(tmp_path / "none"), tmp_path)) == "CATALOG_INVALID"
    assert code_of(ConfigError, lambda: catalogue("nonsense://x", tmp_path)) == "CATALOG_INVALID"


def test_a_remote_adapter_comes_whole_and_once(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(place, "math")
    seen: list[tuple[str, int, int]] = []
    found = catalogue(place, tmp_path, progress=lambda *each: seen.append(each))
    path = found.find("math")
    assert contents(path) == OWN and path is not None and path.is_relative_to(found.root)
    assert seen[-1] == ("download math", SIZE, SIZE)
    monkeypatch.setattr(RemoteCatalog, "_fetch", None)
    assert found.find("math") == path and catalogue(place, tmp_path).find("math") == path, "also after a restart"
    assert found.find("unknown") is None


def test_other_content_is_another_directory(place: str, tmp_path: Path) -> None:
    publish(place, "math")
    found = catalogue(place, tmp_path)
    first = found.find("math")
    publish(place, "math", {"model.safetensors": b"others!" * 100})
    second = found.find("math")
    assert first != second and contents(first) == OWN
    assert contents(second)["model.safetensors"] == b"others!" * 100


def test_files_with_other_names_are_left_alone(place: str, tmp_path: Path) -> None:
    publish(place, "math", {**FILES, ".hidden.safetensors": b"x", "code.py": b"x", "model.bin": b"x"})
    assert contents(catalogue(place, tmp_path).find("math")) == OWN


class Broken(MemoryFileSystem):
    """Fails as told: after so many bytes of a file, or at once."""

    protocol = "broken"
    after: int | None = None
    listing: Exception | None = None
    begun_at: ClassVar[list[int]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("broken://", "memory://")))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        if Broken.listing is not None:
            raise Broken.listing
        return super().ls(path, detail=detail, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        opened = super()._open(path, mode, **kwargs)
        if "w" in mode or Broken.after is None:
            return opened
        return _Cut(opened, Broken.after)


class _Cut:
    def __init__(self, file: Any, after: int) -> None:
        self._file, self._left = file, after

    def __enter__(self) -> _Cut:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, at: int) -> None:
        Broken.begun_at.append(at)
        self._file.seek(at)

    def read(self, count: int) -> bytes:
        if self._left == 0:
            raise ConnectionResetError("cut")
        block: bytes = self._file.read(min(count, self._left))
        self._left -= len(block)
        return block


@pytest.fixture
def broken(place: str, tmp_path: Path) -> Iterator[Any]:
    """A catalogue with the adapter ``math`` over a file system that can be made to fail."""
    fsspec.register_implementation("broken", Broken, clobber=True)
    publish(place, "math")
    yield catalogue(place.replace("memory:", "broken:"), tmp_path)
    Broken.after, Broken.listing, Broken.begun_at = None, None, []


def test_a_download_that_is_cut_goes_on_where_it_ended(broken: Any, tmp_path: Path) -> None:
    Broken.after = 300
    for _ in range(2):
        assert code_of(AdapterError, lambda: broken.find("math")) == "CATALOG_DOWNLOAD_FAILED"
        assert complete(tmp_path) == [], "nothing half-written is ever found"
    assert contents(broken.find("math")) == OWN
    assert [at for at in Broken.begun_at if at] == [300, 600]


def test_a_file_that_is_shorter_than_it_was_said_to_be_is_no_adapter(broken: Any, tmp_path: Path) -> None:
    original = MemoryFileSystem.ls

    def longer(self: Any, path: str, detail: bool = True, **kwargs: Any) -> Any:
        return [{**entry, "size": entry["size"] + 1} for entry in original(self, path, detail=detail, **kwargs)]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MemoryFileSystem, "ls", longer)
        assert code_of(AdapterError, lambda: broken.find("math")) == "CATALOG_DOWNLOAD_FAILED"
    assert complete(tmp_path) == []
    assert contents(broken.find("math")) == OWN


def test_files_of_two_revisions_are_no_adapter(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place changes when the first file has come; the next request gets what is there then."""
    publish(place, "math")
    found = catalogue(place, tmp_path)
    fetch, later = RemoteCatalog._fetch, {**FILES, "model.safetensors": b"WEIGHTS" * 100}

    def change_after(self: Any, file: Any, target: Path) -> Any:
        yield from fetch(self, file, target)
        publish(place, "math", later)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteCatalog, "_fetch", change_after)
        assert code_of(AdapterError, lambda: found.find("math")) == "CATALOG_DOWNLOAD_FAILED"
    assert complete(tmp_path) == []
    assert contents(found.find("math"))["model.safetensors"] == later["model.safetensors"]


def test_a_place_that_does_not_answer(broken: Any) -> None:
    Broken.listing = PermissionError("no credentials")
    assert code_of(AdapterError, lambda: broken.find("math")) == "CATALOG_UNREACHABLE"


def test_many_who_ask_make_one_download(place: str, tmp_path: Path) -> None:
    publish(place, "math")
    fetched: list[str] = []
    barrier = threading.Barrier(8)

    def ask(_: int) -> Path | None:
        barrier.wait()
        found: Path | None = catalogue(place, tmp_path, progress=lambda stage, *_: fetched.append(stage)).find("math")
        return found

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert len(fetched) == len(OWN)


def test_the_least_recently_used_leave_a_full_cache(place: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        publish(place, name)
    used: list[Path] = []
    found = catalogue(place, tmp_path, limit=2 * SIZE, in_use=lambda: used)
    first = found.find("a")
    found.find("b")
    assert found.find("a") == first
    found.find("c")
    assert [each.split("/")[0] for each in complete(tmp_path)] == ["a", "c"]
    used[:] = [path for name in ("a", "c") if (path := found.find(name)) is not None]
    assert code_of(CapacityError, lambda: found.find("b")) == "CATALOG_CACHE_FULL"
    assert [each.split("/")[0] for each in complete(tmp_path)] == ["a", "c"], "what is in use stays"


def test_downloads_side_by_side_leave_the_cache_within_its_limit(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def download(into: Path) -> None:
        both.wait(10)  # each has been promised room
        (into / "file").write_bytes(b"x" * 60)

    cache = DiskCache(tmp_path, 100)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda name: cache.fill(name, "r", 60, download), ("a", "b")))
    assert sum(path.exists() for path in paths) == 1 and len(complete(tmp_path)) == 1


def test_an_adapter_larger_than_the_cache(place: str, tmp_path: Path) -> None:
    publish(place, "math")
    assert (
        code_of(CapacityError, lambda: catalogue(place, tmp_path, limit=SIZE - 1).find("math")) == "CATALOG_CACHE_FULL"
    )
    assert complete(tmp_path) == []


def test_what_is_left_of_an_older_revision_is_cleared_away(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    (tmp_path / "incoming" / "math" / "old").mkdir(parents=True)
    path = cache.fill("math", "new", 1, lambda into: (into / "file").write_bytes(b"x") and None)
    assert contents(path) == {"file": b"x"}
    assert list((tmp_path / "incoming" / "math").iterdir()) == []
