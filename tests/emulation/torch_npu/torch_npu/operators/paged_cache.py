"""The key and value caches in blocks, ``[blocks, block size, heads, head size]``: writing and gathering."""

from __future__ import annotations

import torch

from torch_npu.strict import check, operator

PADDING = -1
"""The slot of a row that is not stored."""


def store(rows: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, name: str) -> None:
    """Writes ``rows[i]`` to slot ``slots[i]`` of `cache`, except where the slot is `PADDING`."""
    check(not slots.is_floating_point() and slots.dim() == 1, "slots", f"integers [T], not {tuple(slots.shape)}")
    check(len(rows) == len(slots), name, f"{len(rows)} rows for {len(slots)} slots")
    check(cache.dim() == 4 and cache.is_contiguous(), f"{name} cache", "contiguous [blocks, block size, heads, size]")
    check(rows.shape[1:] == cache.shape[2:], name, f"rows {tuple(rows.shape[1:])} for a cache {tuple(cache.shape)}")
    check(rows.dtype == cache.dtype, name, f"{rows.dtype}, where the cache is {cache.dtype}")
    stored = slots != PADDING
    wanted = slots[stored].long()
    count = cache.shape[0] * cache.shape[1]
    check(bool(((wanted >= 0) & (wanted < count)).all()), "slots", f"outside the cache's 0..{count - 1}")
    check(len(wanted.unique()) == len(wanted), "slots", "two rows for one slot")
    cache.view(count, *cache.shape[2:])[wanted] = rows[stored]


def blocks_of(block_table: torch.Tensor, row: int, length: int, cache: torch.Tensor) -> torch.Tensor:
    """The first `length` positions of one sequence, ``[length, ...]``, gathered from `cache`.

    `block_table` is int32 ``[sequences, blocks]``; only the entries that `length` needs are looked at.
    """
    size = cache.shape[1]
    needed = -(-length // size)
    check(row < len(block_table), "block_table", f"{len(block_table)} rows, but a sequence {row}")
    check(needed <= block_table.shape[1], "block_table", f"{block_table.shape[1]} blocks of {size} for {length} tokens")
    blocks = block_table[row, :needed].long()
    inside = bool(((blocks >= 0) & (blocks < len(cache))).all())
    check(inside, "block_table", f"row {row} names a block outside 0..{len(cache) - 1}")
    return cache[blocks].flatten(0, 1)[:length]


def check_block_table(block_table: torch.Tensor) -> None:
    right = block_table.dtype == torch.int32 and block_table.dim() == 2
    check(right, "block_table", f"int32 [sequences, blocks], not {block_table.dtype} {tuple(block_table.shape)}")


@operator(
    "npu_scatter_pa_kv_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor slot_mapping, *, Tensor? compress_lens=None, Tensor? compress_seq_offsets=None, Tensor? seq_lens=None, "
    "str? cache_mode='PA_NZ') -> ()"
)
def npu_scatter_pa_kv_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    cache_mode: str | None,
) -> None:
    """Writes keys and values, ``[T, heads, size]``, to their slots."""
    check(cache_mode == "Norm", "cache_mode", f"only 'Norm' is emulated, not {cache_mode!r}")
    store(key, key_cache, slot_mapping, "key")
    store(value, value_cache, slot_mapping, "value")


@operator(
    "_npu_reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor slot_indices) -> ()"
)
def _npu_reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_indices: torch.Tensor,
) -> None:
    """As `npu_scatter_pa_kv_cache`, with slots of int32."""
    check(slot_indices.dtype == torch.int32, "slot_indices", f"int32, not {slot_indices.dtype}")
    store(key, key_cache, slot_indices, "key")
    store(value, value_cache, slot_indices, "value")


def gather(
    caches: tuple[torch.Tensor, torch.Tensor],
    block_table: torch.Tensor,
    lengths: list[int],
    starts: list[int],
    outputs: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Copies, for each sequence, `lengths` positions from its position `starts` on; the sequences lie end to end."""
    check_block_table(block_table)
    for cache, output in zip(caches, outputs, strict=True):
        check(len(output) == sum(lengths), "seq_lens", f"{sum(lengths)} in all, but room for {len(output)}")
        check(output.shape[1:] == cache.shape[2:], "output", f"{tuple(output.shape)} from a cache {tuple(cache.shape)}")
        check(output.dtype == cache.dtype, "output", f"{output.dtype}, where the cache is {cache.dtype}")
        end = 0
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            output[end : end + length] = blocks_of(block_table, row, start + length, cache)[start:]
            end += length


@operator(
    "npu_gather_pa_kv_cache(Tensor key_cache, Tensor value_cache, Tensor block_tables, Tensor seq_lens, "
    "Tensor(a!) key, Tensor(b!) value, *, Tensor? seq_offset=None, bool is_seq_lens_cumsum=False) -> ()"
)
def npu_gather_pa_kv_cache(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_offset: torch.Tensor | None,
) -> None:
    """Fills `key` and `value` with the sequences' cached rows, from `seq_offset` (tokens) on."""
    _gather_checked(key_cache, value_cache, block_tables, seq_lens, key, value, seq_offset)


@operator(
    "npu_paged_cache_load(Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor context_lens, *, "
    "Tensor? seq_starts=None, Tensor(a!) key, Tensor(b!) value) -> ()",
    home="torch_npu.atb",
)
def npu_paged_cache_load(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    seq_starts: torch.Tensor | None,
    key: torch.Tensor,
    value: torch.Tensor,
) -> None:
    """As `npu_gather_pa_kv_cache`."""
    _gather_checked(key_cache, value_cache, block_table, context_lens, key, value, seq_starts)


def _gather_checked(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_starts: torch.Tensor | None,
) -> None:
    check(seq_lens.dim() == 1 and not seq_lens.is_floating_point(), "seq_lens", "integers [sequences]")
    lengths = seq_lens.tolist()
    starts = [0] * len(lengths) if seq_starts is None else seq_starts.tolist()
    check(len(starts) == len(lengths), "seq_offset", f"{len(starts)} for {len(lengths)} sequences")
    check(all(number >= 0 for number in lengths + starts), "seq_lens", "negative")
    gather((key_cache, value_cache), block_table, lengths, starts, (key, value))
