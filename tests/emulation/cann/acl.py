"""The runtime's calls from Python, for tests: an answer other than 0 is an AclError with the code and the reason."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int32, c_size_t, c_uint32, c_uint64, c_void_p

MiB = 1 << 20
GiB = 1 << 30
HBM_HUGE = 4  # ACL_HBM_MEM_HUGE: pages of 2 MiB
HBM_HUGE_1G = 10  # ACL_HBM_MEM_HUGE1G
ON_DEVICE = 1  # ACL_MEM_LOCATION_TYPE_DEVICE
TO_DEVICE, TO_HOST, ON_DEVICES = 1, 2, 3  # kinds of copies
READ, READ_WRITE = 1, 3

INVALID = 100000  # an argument is not what it may be
RULE_BROKEN = 107000
INVALID_DEVICE = 107001
NO_CONTEXT = 107002
OUT_OF_MEMORY = 207001
NOT_SUPPORTED = 207000
STREAM_TIMEOUT = 507046
BUSY = 507899
DEVICE_FAULT = 507015


class AclError(RuntimeError):
    """A call that the runtime refused: `code`, and why as the message."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class Location(ctypes.Structure):
    """aclrtMemLocation."""

    _fields_ = [("id", c_uint32), ("type", c_int32)]


class Properties(ctypes.Structure):
    """aclrtPhysicalMemProp."""

    _fields_ = [
        ("handle_type", c_int32),
        ("allocation_type", c_int32),
        ("attribute", c_int32),
        ("location", Location),
        ("reserve", c_uint64),
    ]


class Access(ctypes.Structure):
    """aclrtMemAccessDesc."""

    _fields_ = [("flags", c_int32), ("location", Location), ("rsv", ctypes.c_uint8 * 12)]


def properties(device: int = 0, attribute: int = HBM_HUGE, **other: int) -> Properties:
    """Those of pinned memory of `device`, or with `other` fields, ones that the runtime refuses."""
    made = Properties(0, 0, attribute, Location(device, ON_DEVICE), 0)
    for name, value in other.items():
        setattr(made, name, value)
    return made


class Acl:
    """The calls of one loaded libascendcl. Addresses and handles are integers, sizes are bytes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.library.aclGetRecentErrMsg.restype = c_char_p
        self.library.emulatedCannCalls.restype = c_uint64

    def call(self, name: str, *arguments: object) -> None:
        """Calls `name`; AclError when it answers another code than 0."""
        code = getattr(self.library, name)(*arguments)
        if code:
            raise AclError(code, self.library.aclGetRecentErrMsg().decode())

    def set_device(self, device: int) -> None:
        self.call("aclrtSetDevice", c_int32(device))

    def free_bytes(self) -> int:
        free, total = c_size_t(), c_size_t()
        self.call("aclrtGetMemInfo", c_int32(1), ctypes.byref(free), ctypes.byref(total))
        return free.value

    def malloc(self, size: int) -> int:
        address = c_void_p()
        self.call("aclrtMalloc", ctypes.byref(address), c_size_t(size), c_int32(0))
        return address.value or 0

    def free(self, address: int) -> None:
        self.call("aclrtFree", c_void_p(address))

    def granularity(self, wanted: Properties, option: int = 0) -> int:
        size = c_size_t()
        self.call("aclrtMemGetAllocationGranularity", ctypes.byref(wanted), c_int32(option), ctypes.byref(size))
        return size.value

    def reserve(self, size: int, alignment: int = 0, expected: int = 0, flags: int = 0) -> int:
        address = c_void_p()
        sizes = (c_size_t(size), c_size_t(alignment), c_void_p(expected), c_uint64(flags))
        self.call("aclrtReserveMemAddress", ctypes.byref(address), *sizes)
        return address.value or 0

    def release(self, address: int) -> None:
        self.call("aclrtReleaseMemAddress", c_void_p(address))

    def create(self, size: int, wanted: Properties | None = None, flags: int = 0) -> int:
        handle = c_void_p()
        wanted = wanted or properties()
        self.call("aclrtMallocPhysical", ctypes.byref(handle), c_size_t(size), ctypes.byref(wanted), c_uint64(flags))
        return handle.value or 0

    def destroy(self, handle: int) -> None:
        self.call("aclrtFreePhysical", c_void_p(handle))

    def map(self, address: int, size: int, handle: int, offset: int = 0, flags: int = 0) -> None:
        sizes = (c_size_t(size), c_size_t(offset))
        self.call("aclrtMapMem", c_void_p(address), *sizes, c_void_p(handle), c_uint64(flags))

    def unmap(self, address: int) -> None:
        self.call("aclrtUnmapMem", c_void_p(address))

    def grant(self, address: int, size: int, device: int, flags: int) -> None:
        access = Access(flags, Location(device, ON_DEVICE))
        self.call("aclrtMemSetAccess", c_void_p(address), c_size_t(size), ctypes.byref(access), c_size_t(1))

    def access(self, address: int, device: int) -> int:
        flags = c_uint64()
        location = Location(device, ON_DEVICE)
        self.call("aclrtMemGetAccess", c_void_p(address), ctypes.byref(location), ctypes.byref(flags))
        return flags.value

    def export(self, handle: int, any_process: bool = False) -> int:
        shareable = c_uint64()
        flags = c_uint64(int(any_process))
        self.call("aclrtMemExportToShareableHandle", c_void_p(handle), c_int32(0), flags, ctypes.byref(shareable))
        return shareable.value

    def allow(self, shareable: int, *processes: int) -> None:
        listed = (c_int32 * len(processes))(*processes)
        self.call("aclrtMemSetPidToShareableHandle", c_uint64(shareable), listed, c_size_t(len(processes)))

    def import_memory(self, shareable: int, device: int = 0) -> int:
        handle = c_void_p()
        self.call("aclrtMemImportFromShareableHandle", c_uint64(shareable), c_int32(device), ctypes.byref(handle))
        return handle.value or 0

    def write(self, address: int, data: bytes) -> None:
        size = c_size_t(len(data))
        self.call("aclrtMemcpy", c_void_p(address), size, data, size, c_int32(TO_DEVICE))

    def read(self, address: int, count: int) -> bytes:
        data = ctypes.create_string_buffer(count)
        self.call("aclrtMemcpy", data, c_size_t(count), c_void_p(address), c_size_t(count), c_int32(TO_HOST))
        return data.raw

    def copy_later(self, to: int, source: int, count: int, stream: int = 0) -> None:
        sizes = c_size_t(count)
        places = (c_void_p(to), sizes, c_void_p(source), sizes)
        self.call("aclrtMemcpyAsync", *places, c_int32(ON_DEVICES), c_void_p(stream))

    def fill_later(self, to: int, value: int, count: int, stream: int = 0) -> None:
        size = c_size_t(count)
        self.call("aclrtMemsetAsync", c_void_p(to), size, c_int32(value), size, c_void_p(stream))

    def stream(self) -> int:
        stream = c_void_p()
        self.call("aclrtCreateStream", ctypes.byref(stream))
        return stream.value or 0

    def event(self) -> int:
        event = c_void_p()
        self.call("aclrtCreateEvent", ctypes.byref(event))
        return event.value or 0

    def record(self, event: int, stream: int) -> None:
        self.call("aclrtRecordEvent", c_void_p(event), c_void_p(stream))

    def wait_event(self, stream: int, event: int) -> None:
        self.call("aclrtStreamWaitEvent", c_void_p(stream), c_void_p(event))

    def synchronize(self, stream: int | None = None) -> None:
        """Waits for one stream, or for all of the current device."""
        if stream is None:
            self.call("aclrtSynchronizeDevice")
        else:
            self.call("aclrtSynchronizeStream", c_void_p(stream))

    def fail(self, name: str, nth: int, code: int = OUT_OF_MEMORY) -> None:
        """The `nth` call of `name` from now answers `code` and does nothing."""
        self.library.emulatedCannFail(name.encode(), c_uint64(nth), c_int32(code))

    def forget_failures(self) -> None:
        self.library.emulatedCannForgetFailures()

    def calls(self, name: str) -> int:
        """How often this process has called `name`."""
        return int(self.library.emulatedCannCalls(name.encode()))
