"""Adapters from elsewhere in a directory of bounded size: whole or not at all, least recently used go first."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from npu_weave.errors import CapacityError

if TYPE_CHECKING:
    from npu_weave.adapters.catalog import InUse


class DiskCache:
    """``ROOT/adapters/NAME/REVISION``, each a directory that was complete when it got that name.

    What is on its way lies in ``ROOT/incoming`` and survives a crash, so that a download can go on. Safe to use from
    several threads and processes; a process does not know what others have in use, so each server has its own.

    Args:
        root: made if it is missing.
        limit: bytes of complete adapters.
        in_use: directories that must stay.
    """

    def __init__(self, root: Path, limit: int, in_use: InUse = tuple) -> None:
        self.root = root.expanduser().resolve()
        self._limit, self._in_use = limit, in_use
        self._complete, self._incoming = self.root / "adapters", self.root / "incoming"
        for directory in (self._complete, self._incoming):
            directory.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, revision: str) -> Path | None:
        """The directory of one revision, and note that it was used; None where it is not here."""
        path = self._complete / name / revision
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def fill(self, name: str, revision: str, nbytes: int, download: Callable[[Path], None]) -> Path:
        """The directory of one revision, which `download` fills if nobody did before.

        Args:
            nbytes: that it will take.
            download: writes into a directory, in which an earlier attempt may have left something.

        Raises:
            CapacityError: CATALOG_CACHE_FULL.
        """
        with FileLock(self.root / f"{name}.lock"):
            found = self.get(name, revision)
            if found is not None:
                return found
            incoming = self._incoming / name / revision
            for other in incoming.parent.glob("*"):
                if other != incoming:  # of a revision that is no longer the one
                    shutil.rmtree(other)
            incoming.mkdir(parents=True, exist_ok=True)
            room = FileLock(self.root / "room.lock")
            with room:  # nobody is to wait for what will not fit
                self._make_room(name, nbytes)
            download(incoming)
            path = self._complete / name / revision
            with room:  # others may have come meanwhile
                self._make_room(name, nbytes)
                path.parent.mkdir(exist_ok=True)
                os.replace(incoming, path)
            return path

    def _make_room(self, name: str, nbytes: int) -> None:
        used = {path: _size(path) for path in self._complete.glob("*/*")}
        free = self._limit - sum(used.values())
        kept = {path.resolve() for path in self._in_use()}
        oldest_first = sorted((path for path in used if path not in kept), key=lambda path: path.stat().st_mtime_ns)
        if free + sum(used[path] for path in oldest_first) < nbytes:
            raise CapacityError(
                "CATALOG_CACHE_FULL",
                f"adapter {name!r}",
                expected=f"room for {nbytes} bytes in {self.root}",
                got=f"a limit of {self._limit} bytes, {sum(used[path] for path in kept & used.keys())} of them in use",
                remedy="raise catalog_cache_size, or take adapters out of service",
            )
        for path in oldest_first:
            if free >= nbytes:
                return
            gone = self._incoming / f"gone-{uuid.uuid4().hex}"  # nobody is to find it half deleted
            os.replace(path, gone)
            shutil.rmtree(gone)
            free += used[path]


def _size(path: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(path))
