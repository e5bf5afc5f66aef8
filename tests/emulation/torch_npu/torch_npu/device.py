"""The device "npu", whose tensors are CPU tensors.

Torch sees a device of its own kind, so code that asks for it by name, by index or as the current accelerator is
answered. Only memory is never made there: the two operators that allocate, `empty` and `empty_strided`, return CPU
tensors, and everything else follows from them. This holds in every thread and inside custom operators.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.utils._device import _device_constructors
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "npu"
KEY = "PrivateUse1"
TORCHS_OWN = frozenset({"aten", "fsdp"})
"""Namespaces of operators that torch registers for the CPU as well."""

_registrations: list[torch.library.Library] = []


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True


def install(backend: ModuleType) -> None:
    """Makes "npu" a device of torch, with `backend` as the module torch.npu. Once a process."""
    _setup_privateuseone_for_python_backend(NAME, backend, _Hooks(), _Guard())
    allocate = torch.library.Library("aten", "IMPL")
    allocate.impl("empty.memory_format", _empty, KEY)
    allocate.impl("empty_strided", _empty_strided, KEY)
    _registrations.append(allocate)
    _redirect_custom_operators()
    _accept_pinned_memory()
    _accept_integer_histograms()
    torch.accelerator.synchronize = _synchronize  # not torch.npu's: Dynamo wants to know them apart


def _synchronize(device: Any = None) -> None:
    """Nothing is ever pending."""


def _empty(
    size: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, layout=layout, memory_format=memory_format or torch.contiguous_format)


def _empty_strided(
    size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, layout=layout)


def _redirect_custom_operators() -> None:
    """Operators that are registered for the device are called with CPU tensors, and so become operators of the CPU."""
    implement = torch.library.Library.impl

    @functools.wraps(implement)
    def impl(library: Any, name: Any, function: Any, dispatch_key: str = "", *rest: Any, **options: Any) -> Any:
        key = "CPU" if dispatch_key == KEY and library.ns not in TORCHS_OWN else dispatch_key
        return implement(library, name, function, key, *rest, **options)

    torch.library.Library.impl = impl


_FACTORIES = (
    "arange", "empty", "empty_like", "empty_strided", "full", "full_like", "ones", "ones_like", "rand", "randint",
    "randn", "randperm", "tensor", "zeros", "zeros_like",
)  # fmt: skip


def _accept_pinned_memory() -> None:
    """Pinned memory is plain memory: there is no device that would copy from it."""
    # What `with torch.device(...)` applies to is collected at its first use, and must be the functions themselves.
    _device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _without_pinning(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda tensor, device=None: tensor


def _without_pinning(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*sizes: Any, **options: Any) -> torch.Tensor:
        options.pop("pin_memory", None)
        return factory(*sizes, **options)

    return make


def _accept_integer_histograms() -> None:
    """The NPU counts integers; torch on the CPU does so for floating point only."""
    of_floats = torch.histc

    @functools.wraps(of_floats)
    def histc(values: torch.Tensor, bins: int = 100, min: int = 0, max: int = 0) -> torch.Tensor:
        if values.is_floating_point():
            return of_floats(values, bins, min, max)
        if min != 0 or max != bins:
            raise NotImplementedError(
                f"torch.histc of integers is emulated for bins of width 1 from 0, not {min}..{max}"
            )
        counted = values.reshape(-1).long()
        counted = counted[(counted >= min) & (counted <= max)].clamp(max=bins - 1)
        return torch.bincount(counted, minlength=bins).to(values.dtype)

    torch.histc = histc
