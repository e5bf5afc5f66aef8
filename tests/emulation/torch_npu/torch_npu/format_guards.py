"""What torch itself does with a tensor in FRACTAL_NZ: a few functions know the format, and many that do not refuse.

A device knows the format in all its operators; here they are those of the CPU, which would read blocks as rows. Not
all can be caught: see README.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from torch_npu import formats
from torch_npu.strict import check, naming

PRODUCTS = ("addmm", "baddbmm", "einsum", "matmul", "mm", "__matmul__", "__rmatmul__")
COPIES = ("bfloat16", "copy_", "double", "float", "half", "int", "item", "numpy", "tolist")
GATHERS = ("cat", "gather", "index_select", "scatter_", "stack", "take_along_dim", "where")
WRITES = ("__setitem__", "fill_", "index_copy_", "index_put_", "zero_")
ARITHMETIC = ("__add__", "__eq__", "__mul__", "__sub__", "__truediv__", "add", "allclose", "equal", "mul", "sum")
REFUSING = (*PRODUCTS, *COPIES, *GATHERS, *WRITES, *ARITHMETIC)
"""Functions of torch and methods of tensors that take no tensor in FRACTAL_NZ."""


def install() -> None:
    """Wraps the functions. Once a process, before anything keeps one of them."""
    torch.nn.functional.linear = _linear(torch.nn.functional.linear)
    torch.bmm = _bmm(torch.bmm)
    torch.Tensor.clone = _clone(torch.Tensor.clone)
    torch.Tensor.cpu = _cpu(torch.Tensor.cpu)
    torch.Tensor.to = _to(torch.Tensor.to)
    for home, of in ((torch, "torch"), (torch.Tensor, "torch.Tensor")):
        for name in REFUSING:
            if callable(getattr(home, name, None)):  # torch.float is a type
                setattr(home, name, _refusing(f"{of}.{name}", getattr(home, name)))


def _linear(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(plain)
    def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if formats.declared(weight) is not None:
            with naming("torch.nn.functional.linear"):
                weight = formats.in_order(weight, "weight")
        return plain(input, weight, bias)

    return linear


def _bmm(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(plain)
    def bmm(input: torch.Tensor, mat2: torch.Tensor, **named: Any) -> torch.Tensor:
        with naming("torch.bmm"):
            return plain(formats.in_order(input, "input"), formats.in_order(mat2, "mat2"), **named)

    return bmm


def _clone(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A copy has the format of what it copies."""

    @functools.wraps(plain)
    def clone(tensor: torch.Tensor, *options: Any, **named: Any) -> torch.Tensor:
        if formats.declared(tensor) is None:
            return plain(tensor, *options, **named)
        with naming("torch.Tensor.clone"):
            return formats.in_blocks(formats.in_order(tensor, "input").contiguous())

    return clone


def _cpu(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """What leaves the device is put in order on the way."""

    @functools.wraps(plain)
    def cpu(tensor: torch.Tensor, *options: Any, **named: Any) -> torch.Tensor:
        with naming("torch.Tensor.cpu"):
            return plain(formats.in_order(tensor, "input"), *options, **named)

    return cpu


def _to(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """What goes to the host or changes its type is put in order on the way; what is there already stays as it is."""

    @functools.wraps(plain)
    def to(tensor: torch.Tensor, *options: Any, **named: Any) -> torch.Tensor:
        if formats.declared(tensor) is None:
            return plain(tensor, *options, **named)
        device, dtype, *_ = torch._C._nn._parse_to(*options, **named)
        stays = (device is None or device.type != "cpu") and dtype in (None, tensor.dtype)
        if stays:
            return tensor.clone() if named.get("copy") else tensor
        with naming("torch.Tensor.to"):
            return plain(formats.in_order(tensor, "input"), *options, **named)

    return to


def _refusing(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def call(*arguments: Any, **named: Any) -> Any:
        for argument in (*arguments, *named.values()):
            for value in argument if isinstance(argument, list | tuple) else (argument,):
                if isinstance(value, torch.Tensor) and formats.declared(value) is not None:
                    with naming(name):
                        check(False, "argument", "FRACTAL_NZ would be read as if it were in order")
        return plain(*arguments, **named)

    return call
