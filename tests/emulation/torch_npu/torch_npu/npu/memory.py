"""How much memory the device says it has.

What torch takes of it is what this process holds in malloc beyond what it held at the import of torch_npu: tensors are
made there, and not much else that is large. What the driver handed out is asked of the emulated CANN, when
EMULATED_CANN_LIBRARY names its libascendcl.so; the library is loaded and initialised here, for all who open it later.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

MiB = 1 << 20
LIBRARY = "EMULATED_CANN_LIBRARY"
HBM = 1  # ACL_HBM_MEM
RUNTIME_BYTES = 64 * MiB  # what a context takes before anything is allocated


class _MallocStatistics(ctypes.Structure):
    """struct mallinfo2 of glibc; all are bytes or counts."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _MallocStatistics


def _in_malloc() -> int:
    held = _libc.mallinfo2()
    return int(held.uordblks + held.hblkhd)


class AclError(RuntimeError):
    """A call of the emulated CANN that it refused."""


class _Driver:
    """The calls of the emulated libascendcl that torch_npu itself makes."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        self._library.aclGetRecentErrMsg.restype = ctypes.c_char_p
        self._call("aclInit", None)

    def set_device(self, index: int) -> None:
        self._call("aclrtSetDevice", ctypes.c_int32(index))

    def free_and_total(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("aclrtGetMemInfo", ctypes.c_int32(HBM), ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise AclError(f"{name}: {code}: {self._library.aclGetRecentErrMsg().decode()}")


_driver = _Driver(os.environ[LIBRARY]) if os.environ.get(LIBRARY) else None
_total = int(os.environ.get("EMULATED_CANN_MEMORY_BYTES", 4 << 30))
_at_import = _in_malloc()
_peak = 0


def use_device(index: int) -> None:
    """What torch.npu.set_device asks of the driver."""
    if _driver is not None:
        _driver.set_device(index)


def memory_allocated(device: Any = None) -> int:
    """Bytes that this process's tensors hold, about."""
    global _peak
    held = max(0, _in_malloc() - _at_import)
    _peak = max(_peak, held)
    return held


def max_memory_allocated(device: Any = None) -> int:
    """The most that `memory_allocated` found since the peak was reset: it sees only the moments when it is asked."""
    memory_allocated(device)
    return _peak


memory_reserved = memory_allocated  # nothing is kept back for later
max_memory_reserved = max_memory_allocated


def reset_peak_memory_stats(device: Any = None) -> None:
    global _peak
    _peak = 0
    memory_allocated(device)


def memory_stats(device: Any = None) -> dict[str, int]:
    """The entries that vLLM reads."""
    held, peak = memory_allocated(device), max_memory_allocated(device)
    return {
        "allocated_bytes.all.current": held,
        "allocated_bytes.all.peak": peak,
        "reserved_bytes.all.current": held,
        "reserved_bytes.all.peak": peak,
    }


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of the device."""
    free, total = _driver.free_and_total() if _driver is not None else (_total, _total)
    return max(0, free - RUNTIME_BYTES - memory_allocated(device)), total


def empty_cache() -> None:
    """Gives free memory back, which glibc otherwise keeps."""
    _libc.malloc_trim(0)


class _NeedsPools:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise RuntimeError(f"torch.npu.memory.{type(self).__name__} is not emulated: there is no caching allocator")


class NPUPluggableAllocator(_NeedsPools):
    """Of sleep mode only."""


class MemPool(_NeedsPools):
    """Of sleep mode only."""
