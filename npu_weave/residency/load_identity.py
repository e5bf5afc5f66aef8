"""What tells an adapter directory that has changed from one that has not, without reading it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from npu_weave.adapters.printable import printable_path
from npu_weave.errors import AdapterFileError

FileState = tuple[str, int, int, int, int, int]
"""Name, device, inode, size [bytes], mtime [ns], ctime [ns]."""

Identity = tuple[FileState, ...]
"""The state of every entry of a directory, by name."""

SETTLED_NS = 100_000_000
"""A file written within this time of being looked at might be written again without its clock ticking."""


def directory_identity(path: Path) -> Identity:
    """The state of every entry of the directory at the real path `path`.

    Writing, replacing, adding or removing a file changes it; so does anything that sets a file's times back, as the
    system then moves its ctime.

    Raises:
        AdapterFileError: FILE_UNREADABLE.
    """
    try:
        found = [(name, os.stat(path / name)) for name in sorted(os.listdir(path))]
    except OSError as reason:
        raise AdapterFileError(
            "FILE_UNREADABLE", printable_path(path), expected="a readable directory", got=str(reason)
        ) from reason
    return tuple(
        (name, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns) for name, info in found
    )


class DigestMemo:
    """Content digests of directories read before, so that an unchanged one need not be read to know what it holds.

    Thread-safe: directories are looked at on one thread, digests noted on another.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._digests: OrderedDict[Identity, str] = OrderedDict()

    def find(self, identity: Identity) -> str:
        """The digest of what such a directory held; empty when it is not known."""
        with self._lock:
            if identity not in self._digests:
                return ""
            self._digests.move_to_end(identity)
            return self._digests[identity]

    def note(self, identity: Identity, seen_ns: int, digest: str) -> None:
        """Remember what a directory held that was in this state at `seen_ns` (wall clock).

        A state too fresh to be told from a later one is not remembered.
        """
        if any(max(mtime, ctime) > seen_ns - SETTLED_NS for *_, mtime, ctime in identity):
            return
        with self._lock:
            self._digests[identity] = digest
            self._digests.move_to_end(identity)
            while len(self._digests) > self._capacity:
                self._digests.popitem(last=False)
