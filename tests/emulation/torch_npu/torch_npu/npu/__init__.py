"""The namespace torch.npu: devices, streams and memory. Everything runs at once, in the order it was asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from torch_npu import generations, options
from torch_npu.npu import memory
from torch_npu.npu.memory import (
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_peak_memory_stats,
)
from torch_npu.npu.streams import Event, ExternalEvent, NPUGraph, Stream, current_stream, default_stream, set_stream
from torch_npu.npu.streams import stream_context as stream

__all__ = [
    "Event",
    "ExternalEvent",
    "NPUGraph",
    "Stream",
    "StreamContext",
    "config",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "empty_cache",
    "get_device_name",
    "get_device_properties",
    "get_soc_version",
    "is_available",
    "is_bf16_supported",
    "is_current_stream_capturing",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_peak_memory_stats",
    "set_compile_mode",
    "set_device",
    "set_stream",
    "stream",
    "synchronize",
]

SOC_NAME = os.environ.get("EMULATED_CANN_SOC", "Ascend910B1")
SOC_VERSION = generations.soc_version(SOC_NAME)
CUBE_CORES, VECTOR_CORES = 24, 48
DEVICES = int(os.environ.get("EMULATED_CANN_DEVICES", "2"))

StreamContext = stream
config = options.Config()

_current = 0


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


def _lazy_init() -> None:
    """Everything was initialised when torch_npu was imported."""


def device_count() -> int:
    return DEVICES


def current_device() -> int:
    return _current


def set_device(device: Any) -> None:
    """Takes an index, "npu:1" or a torch.device. Raises RuntimeError when there is no such device."""
    global _current
    wanted = device if isinstance(device, int) else torch.device(device).index or 0
    if not 0 <= wanted < DEVICES:
        raise RuntimeError(f"torch.npu.set_device({device}): there are {DEVICES} devices (EMULATED_CANN_DEVICES)")
    memory.use_device(wanted)
    _current = wanted


@contextlib.contextmanager
def device(wanted: Any) -> Iterator[None]:
    before = _current
    set_device(wanted)
    try:
        yield
    finally:
        set_device(before)


def synchronize(device: Any = None) -> None:
    """Nothing is ever pending."""


def get_device_name(device: Any = None) -> str:
    return SOC_NAME


def get_soc_version() -> int:
    return SOC_VERSION


def get_device_properties(device: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=SOC_NAME,
        total_memory=mem_get_info(device)[1],
        cube_core_num=CUBE_CORES,
        vector_core_num=VECTOR_CORES,
        uuid=f"emulated-{_current}",
    )


def is_bf16_supported() -> bool:
    return True


def is_current_stream_capturing() -> bool:
    return False


def manual_seed(seed: int) -> None:
    """The generator of the device is that of the CPU."""
    torch.default_generator.manual_seed(seed)


manual_seed_all = manual_seed


def set_compile_mode(jit_compile: bool = False) -> None:
    """Nothing is compiled."""
    if jit_compile:
        raise RuntimeError("torch.npu.set_compile_mode(jit_compile=True) is not emulated")
