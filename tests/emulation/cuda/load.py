"""Builds the emulated libcuda, and puts it where the next ``dlopen("libcuda.so.1")`` of this process finds it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from npu_weave import _C
from npu_weave.memory import CudaDriver

SOURCE = Path(__file__).with_name("libcuda.cpp")
FLAGS = ("-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wl,-soname,libcuda.so.1")


class EmulatedCudaDriver(CudaDriver):
    """The driver for GPUs, on an emulated runtime whose device memory a CPU can read and write."""

    def __init__(self, index: int = 0, limit_bytes: int | None = None) -> None:
        emulated_libcuda()
        super().__init__(index, limit_bytes)

    def _tensor(self, address: int, nbytes: int, owner: object) -> torch.Tensor:
        return _C.memory_tensor(address, nbytes, owner, torch.device("cpu"))


@functools.cache
def emulated_libcuda() -> ctypes.CDLL:
    """The library, loaded into this process under the name of the real one, which must not be there yet."""
    assert "libcuda.so" not in Path("/proc/self/maps").read_text(), "a real libcuda is loaded: test on the GPU instead"
    return ctypes.CDLL(str(build()))


def build() -> Path:
    """Compiles the library when its source has changed."""
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(FLAGS).encode()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"npu-weave-emulation-{os.getuid()}" / digest / "libcuda.so.1"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = built.with_suffix(f".{os.getpid()}")
        subprocess.run([os.environ.get("CXX", "g++"), *FLAGS, str(SOURCE), "-o", str(partial)], check=True)
        partial.replace(built)
    return built


@contextmanager
def failing(call: str, nth: int = 1) -> Iterator[None]:
    """The nth call of that name, from now on, fails."""
    library = emulated_libcuda()
    library.emulated_cuda_fail(call.encode(), nth)
    try:
        yield
    finally:
        library.emulated_cuda_fail(call.encode(), 0)


def live() -> tuple[int, int, int]:
    """Handles, mappings and reservations the emulated runtime holds."""
    counts = [ctypes.c_size_t() for _ in range(3)]
    emulated_libcuda().emulated_cuda_live(*(ctypes.byref(count) for count in counts))
    held, mapped, reserved = (count.value for count in counts)
    return held, mapped, reserved
