"""A regular file that must stay the same between its validation and the last byte read of it.

Bytes are read with `pread`, not through a memory map: a map of a file that somebody truncates kills
the process with SIGBUS, a short read is an error that can be answered.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from npu_weave.adapters.printable import printable_path
from npu_weave.errors import AdapterFileError
from npu_weave.turns import pieces


class FileIdentity(NamedTuple):
    """What tells one state of a file from another: device, inode, size [bytes], mtime [ns]."""

    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when `open_source` saw it. Holds no descriptor; safe to share between threads.

    Attributes:
        path: where the file lies, as given.
        identity: the state that every later read must find again.
    """

    path: Path
    identity: FileIdentity

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.identity.size

    def read(self, offset: int, length: int) -> bytearray:
        """Reads exactly `length` bytes from `offset`.

        Raises:
            AdapterFileError: FILE_CHANGED when the file is not the one that was opened, FILE_TRUNCATED,
                FILE_UNREADABLE.
        """
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return buffer

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills `buffer`, of bytes, from `offset`. Raises as `read`; the buffer may be filled in part then."""
        length = len(buffer)
        with _descriptor(self.path) as fd:
            done = 0
            for piece in pieces(buffer):
                count = _fill(piece, fd, offset + done)
                done += count
                if count < len(piece):
                    break
            self._check_unchanged(fd)
        if done < length:
            raise AdapterFileError(
                "FILE_TRUNCATED",
                printable_path(self.path),
                expected=f"{offset + length} bytes",
                got=f"{offset + done} bytes",
            )

    def _check_unchanged(self, fd: int) -> None:
        found = _identity(os.fstat(fd))
        if found != self.identity:
            raise AdapterFileError(
                "FILE_CHANGED",
                printable_path(self.path),
                expected="the file that was validated",
                got="another file or other content",
                remedy="never write into files in use: make a new directory and load it under a new revision",
            )


def open_source(path: Path) -> SourceFile:
    """Records the state of the regular file at `path` (symbolic links are followed).

    Raises:
        AdapterFileError: FILE_MISSING, FILE_NOT_REGULAR or FILE_UNREADABLE.
    """
    with _descriptor(path) as fd:
        return SourceFile(path, _identity(os.fstat(fd)))


def _fill(buffer: memoryview, fd: int, offset: int) -> int:
    """Reads into `buffer` as far as the file goes. Returns how many bytes."""
    done = 0
    while done < len(buffer) and (count := os.preadv(fd, [buffer[done:]], offset + done)):
        done += count
    return done


@contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    """A descriptor of a regular file; every OSError in the body becomes FILE_UNREADABLE."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise AdapterFileError(
            "FILE_MISSING", printable_path(path), expected="a file", got="nothing at this path"
        ) from None
    except (OSError, ValueError) as reason:
        raise AdapterFileError(
            "FILE_UNREADABLE", printable_path(path), expected="a readable file", got=str(reason)
        ) from reason
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise AdapterFileError(
                "FILE_NOT_REGULAR", printable_path(path), expected="a regular file", got="a directory, device or pipe"
            )
        yield fd
    except OSError as reason:
        raise AdapterFileError(
            "FILE_UNREADABLE", printable_path(path), expected="a readable file", got=str(reason)
        ) from reason
    finally:
        os.close(fd)


def _identity(info: os.stat_result) -> FileIdentity:
    return FileIdentity(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
