"""The collectives of HCCL, over gloo."""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

NAME = "hccl"

_groups: dict[str, dist.ProcessGroupGloo] = {}


def install() -> None:
    """Makes "hccl" a backend of torch.distributed. Once a process."""
    dist.Backend.register_backend(NAME, _make, devices=["cpu", "npu"])
    dist.is_hccl_available = lambda: True
    dist.ProcessGroupGloo.get_hccl_comm_name = _name_of
    dist.all_gather = _gathering_uneven(dist.all_gather)


def group_named(name: str) -> dist.ProcessGroupGloo:
    """The group whose name `get_hccl_comm_name` gave. Raises KeyError."""
    return _groups[name]


def _make(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroupGloo:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


def _name_of(group: dist.ProcessGroupGloo, rank: int, init_comm: bool = True) -> str:
    for name, known in _groups.items():
        if known is group:
            return name
    name = f"emulated_{len(_groups)}"
    _groups[name] = group
    return name


def _gathering_uneven(gather: Any) -> Any:
    """HCCL gathers tensors whose first dimensions differ; gloo those of one shape, and so they are padded here."""

    @functools.wraps(gather)
    def all_gather(tensors: list[torch.Tensor], tensor: torch.Tensor, group: Any = None, async_op: bool = False) -> Any:
        heights = {len(received) for received in tensors if received.dim()}
        if len(heights) < 2:
            return gather(tensors, tensor, group=group, async_op=async_op)
        if async_op:
            raise NotImplementedError("all_gather of tensors of different shapes with async_op is not emulated")
        shape = (max(heights), *tensor.shape[1:])
        padded = tensor.new_zeros(shape)
        padded[: len(tensor)] = tensor
        received = [tensor.new_empty(shape) for _ in tensors]
        gather(received, padded, group=group)
        for target, source in zip(tensors, received, strict=True):
            target.copy_(source[: len(target)])
        return None

    return all_gather
