"""Stand-ins for Triton kernels: called as those are, ``kernel[grid](arguments)``, computed with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch_npu.strict import RefusedError


class Kernel:
    """A function of the grid and of the kernel's arguments, launched as a Triton kernel is."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **options: self._function(grid, *arguments, **options)


def _slot_mapping(
    grid: tuple[int, ...],
    num_tokens: int,
    max_num_tokens: int,
    query_start_loc: torch.Tensor,
    positions: torch.Tensor,
    block_table: torch.Tensor,
    block_table_stride: int,
    block_size: int,
    slots: torch.Tensor,
    TOTAL_CP_WORLD_SIZE: int,
    PAD_ID: int,
    **tiling: Any,
) -> None:
    """Writes the cache slot of every token to `slots` ``[max_num_tokens]``, and PAD_ID behind the tokens.

    `query_start_loc` ``[requests + 1]`` says whose token it is, `positions` where it stands in its request, and
    `block_table` ``[requests, blocks]`` where that block lies.
    """
    if TOTAL_CP_WORLD_SIZE != 1:
        raise RefusedError("_compute_slot_mapping_kernel: TOTAL_CP_WORLD_SIZE: only 1 is emulated")
    requests = grid[0] - 1
    starts = query_start_loc[: requests + 1].long()
    request = torch.arange(requests).repeat_interleave(starts.diff())
    count = int(starts[-1])
    block = positions[:count].long() // block_size
    if count and (int(block.min()) < 0 or int(block.max()) >= block_table_stride):
        raise RefusedError(f"_compute_slot_mapping_kernel: positions: outside {block_table_stride} blocks of a request")
    first = block_table[request, block].long() * block_size
    slots[:count] = (first + positions[:count].long() % block_size).to(slots.dtype)
    slots[num_tokens:max_num_tokens] = PAD_ID


slot_mapping = Kernel(_slot_mapping)
