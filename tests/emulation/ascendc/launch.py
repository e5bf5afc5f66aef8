"""Launches a kernel that `build.py` compiled, on torch tensors: `EmulatedKernels(path).launch("name", ...)`."""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from emulation.ascendc.build import build_kernel


class Violation(RuntimeError):
    """The kernel broke a documented rule; the text names the core, the API, what it expected and what it got."""


class NanRule(enum.IntEnum):
    """What Max, Min, sorting and maxima make of a NaN; the documentation does not say, so the default refuses."""

    REFUSE = 0
    HIGHEST = 1
    LOWEST = 2


@dataclass(frozen=True)
class Argument:
    """A tensor in global memory: whether it holds something at the start, and whether the kernel may write it."""

    tensor: torch.Tensor
    initialised: bool
    writable: bool


def reads(tensor: torch.Tensor) -> Argument:
    """An input: contiguous; the kernel may not write it."""
    return Argument(tensor, initialised=True, writable=False)


def writes(tensor: torch.Tensor) -> Argument:
    """An output: contiguous; what the kernel did not write it may not read."""
    return Argument(tensor, initialised=False, writable=True)


def updates(tensor: torch.Tensor) -> Argument:
    """Read and written in place: contiguous."""
    return Argument(tensor, initialised=True, writable=True)


@dataclass(frozen=True)
class CoreCounters:
    """What one core executed: (instructions, repeats) by API; bytes and contiguous runs moved between global memory and
    the Unified Buffer; pairs that MrgSort put out; bytes of the Unified Buffer laid out."""

    apis: dict[str, tuple[int, int]]
    bytes_from_gm: int
    bytes_to_gm: int
    bursts: int
    merged_pairs: int
    ub_bytes: int


class EmulatedKernels:
    """The kernels of one source. Launches one at a time: not to be shared between threads."""

    def __init__(self, source: Path) -> None:
        self._library = build_kernel(source)
        self._library.emulated_error.restype = ctypes.c_char_p
        self._library.emulated_counters.restype = ctypes.c_char_p
        self._library.emulated_add_tensor.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int)

    def launch(
        self, name: str, blocks: int, *arguments: Argument | ctypes.Structure | ctypes._SimpleCData, tiling_key: int = 0
    ) -> list[CoreCounters]:
        """Runs `name` on `blocks` cores, its arguments in the order of its parameters; the counters of each core.

        Tensors go as addresses, structures and numbers by value. One tensor may be given twice (an operator in place);
        it may then be written if it may once. Raises Violation.
        """
        launch = getattr(self._library, f"emulated_launch_{name}")
        launch.argtypes = (ctypes.c_int64, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p))
        values: list[ctypes.Structure | ctypes._SimpleCData] = []
        for argument in arguments:
            if isinstance(argument, Argument):
                assert argument.tensor.is_contiguous() and argument.tensor.device.type == "cpu"
                values.append(ctypes.c_void_p(argument.tensor.data_ptr()))
            else:
                values.append(argument)
        self._add_tensors([argument for argument in arguments if isinstance(argument, Argument)])
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        if launch(blocks, tiling_key, pointers):
            raise Violation(self._library.emulated_error().decode())
        return [_core(core) for core in json.loads(f"[{self._library.emulated_counters().decode()}]")]

    def _add_tensors(self, arguments: list[Argument]) -> None:
        merged: dict[int, Argument] = {}
        for argument in arguments:
            address = argument.tensor.data_ptr()
            before = merged.get(address, argument)
            initialised, writable = before.initialised or argument.initialised, before.writable or argument.writable
            merged[address] = Argument(argument.tensor, initialised, writable)
        self._library.emulated_clear_tensors()
        for address, argument in merged.items():
            self._library.emulated_add_tensor(
                address, argument.tensor.nbytes, int(argument.initialised), int(argument.writable)
            )

    @contextmanager
    def nan(self, rule: NanRule) -> Iterator[None]:
        """Launches inside follow the rule."""
        self._library.emulated_set_nan_rule(int(rule))
        try:
            yield
        finally:
            self._library.emulated_set_nan_rule(int(NanRule.REFUSE))


def _core(counters: dict[str, dict[str, list[int]] | int]) -> CoreCounters:
    apis = {api: (count[0], count[1]) for api, count in counters.pop("apis").items()}
    return CoreCounters(apis=apis, **counters)
