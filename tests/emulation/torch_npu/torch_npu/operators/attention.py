"""Fused attention, over keys and values that are given in order or lie in a paged cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_npu.operators.paged_cache import blocks_of, check_block_table
from torch_npu.strict import check, operator

NO_MASK, CAUSAL = 0, 3
"""sparse_mode: everything is seen; or the last query sees all keys, the one before it one less, and so on."""

MASK_SIZE = 2048
"""Height and width of the triangle that must be passed as the mask when sparse_mode is `CAUSAL`."""

NOTHING_SEEN = float("inf")
"""The log-sum-exp of a query that sees no key; its output is 0."""

ROPE_SIZE, ABSORBED_SIZE = 64, 512
ABSORBED_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Heads:
    """How queries meet keys, the same for all sequences of a call."""

    queries: int
    keys: int
    scale: float
    causal: bool

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One sequence: query ``[q, heads, D]``, key ``[k, kv heads, D]``, value ``[k, kv heads, Dv]``, all float32.

        Returns the output ``[q, heads, Dv]`` and the log-sum-exp ``[q, heads]``.
        """
        group = self.queries // self.keys
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->qhk", query, key) * self.scale
        if self.causal:
            last_seen = torch.arange(len(query)) + len(key) - len(query)
            hidden = torch.arange(len(key)) > last_seen[:, None]
            scores = scores.masked_fill(hidden[:, None], float("-inf"))
        total = scores.logsumexp(-1)
        seen = total > float("-inf")
        weights = torch.where(seen[..., None], (scores - total[..., None]).exp(), 0.0)
        return torch.einsum("qhk,khd->qhd", weights, value), total.masked_fill(~seen, NOTHING_SEEN)


def _heads(queries: int, keys: int, scale: float, sparse_mode: int, mask: torch.Tensor | None) -> Heads:
    keys = keys or queries
    check(queries > 0 and queries % keys == 0, "num_heads", f"{queries} heads of queries over {keys} of keys")
    check(sparse_mode in (NO_MASK, CAUSAL), "sparse_mode", f"0 and 3 are emulated, not {sparse_mode}")
    if sparse_mode == NO_MASK:
        check(mask is None, "atten_mask", "a mask with sparse_mode 0 is not emulated")
    else:
        right = mask is not None and tuple(mask.shape[-2:]) == (MASK_SIZE, MASK_SIZE)
        right = right and mask is not None and mask.dtype in (torch.bool, torch.int8, torch.uint8)
        check(right, "atten_mask", f"sparse_mode 3 needs the bool or int8 triangle [{MASK_SIZE}, {MASK_SIZE}]")
    return Heads(queries, keys, scale, sparse_mode == CAUSAL)


def _ends(ends: Sequence[int] | None, name: str, rows: int, tensor: str) -> list[int]:
    """Checks where the sequences of a packed tensor end."""
    check(ends is not None and len(ends) > 0, name, "is needed with the layout TND")
    assert ends is not None
    rising = all(low <= high for low, high in zip([0, *ends[:-1]], ends, strict=True))
    check(rising, name, f"must not fall: {list(ends)}")
    check(ends[-1] == rows, name, f"ends at {ends[-1]}, but {tensor} has {rows} rows")
    return [int(end) for end in ends]


def _split(tensor: torch.Tensor, ends: list[int]) -> list[torch.Tensor]:
    return [tensor[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _with_rope(tensor: torch.Tensor, rope: torch.Tensor | None, name: str) -> torch.Tensor:
    if rope is None:
        return tensor
    check(rope.shape[-1] == ROPE_SIZE, name, f"{ROPE_SIZE} wide, not {rope.shape[-1]}")
    check(rope.shape[:-1] == tensor.shape[:-1], name, f"{tuple(rope.shape)} beside {tuple(tensor.shape)}")
    check(rope.dtype == tensor.dtype, name, f"{rope.dtype} beside {tensor.dtype}")
    return torch.cat((tensor, rope), -1)


def _packed_keys(tensors: list[torch.Tensor], ends: Sequence[int] | None, name: str) -> list[list[torch.Tensor]]:
    """Keys and values given in order, cut into their sequences."""
    split = [_split(tensor, _ends(ends, name, len(tensor), "the key")) for tensor in tensors]
    return [list(parts) for parts in zip(*split, strict=True)]


def _cached_keys(
    caches: list[torch.Tensor],
    block_table: torch.Tensor,
    block_size: int,
    lengths: Sequence[int] | None,
    heads: int,
) -> list[list[torch.Tensor]]:
    """Keys and values of each sequence out of caches ``[blocks, block size, heads * D]``, as ``[length, heads, D]``."""
    check_block_table(block_table)
    check(lengths is not None, "actual_seq_lengths_kv", "is needed with a block table")
    assert lengths is not None
    check(all(length >= 0 for length in lengths), "actual_seq_lengths_kv", f"negative: {list(lengths)}")
    for cache in caches:
        check(cache.dim() == 3, "key", f"a cache is [blocks, block size, heads * D], not {tuple(cache.shape)}")
        check(cache.shape[1] == block_size, "block_size", f"{block_size}, where the cache's is {cache.shape[1]}")
        check(cache.shape[2] % heads == 0, "num_key_value_heads", f"{heads} do not divide {cache.shape[2]}")
    return [
        [blocks_of(block_table, row, length, cache).view(length, heads, cache.shape[2] // heads) for cache in caches]
        for row, length in enumerate(lengths)
    ]


@operator(
    "npu_fused_infer_attention_score(Tensor query, Tensor key, Tensor value, *, Tensor? pse_shift=None, "
    "Tensor? atten_mask=None, SymInt[]? actual_seq_lengths=None, SymInt[]? actual_seq_lengths_kv=None, "
    "Tensor? dequant_scale1=None, Tensor? quant_scale1=None, Tensor? dequant_scale2=None, Tensor? quant_scale2=None, "
    "Tensor? quant_offset2=None, Tensor? antiquant_scale=None, Tensor? antiquant_offset=None, "
    "Tensor? key_antiquant_scale=None, Tensor? key_antiquant_offset=None, Tensor? value_antiquant_scale=None, "
    "Tensor? value_antiquant_offset=None, Tensor? block_table=None, Tensor? query_padding_size=None, "
    "Tensor? kv_padding_size=None, Tensor? key_shared_prefix=None, Tensor? value_shared_prefix=None, "
    "SymInt[]? actual_shared_prefix_len=None, Tensor? query_rope=None, Tensor? key_rope=None, "
    "Tensor? key_rope_antiquant_scale=None, int num_heads=1, float scale=1.0, int pre_tokens=2147483647, "
    "int next_tokens=2147483647, str input_layout='BSH', int num_key_value_heads=0, int sparse_mode=0, "
    "int inner_precise=0, int block_size=0, int antiquant_mode=0, int key_antiquant_mode=0, "
    "int value_antiquant_mode=0, bool softmax_lse_flag=False) -> (Tensor, Tensor)"
)
def npu_fused_infer_attention_score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    atten_mask: torch.Tensor | None,
    actual_seq_lengths: Sequence[int] | None,
    actual_seq_lengths_kv: Sequence[int] | None,
    block_table: torch.Tensor | None,
    query_rope: torch.Tensor | None,
    key_rope: torch.Tensor | None,
    num_heads: int,
    scale: float,
    input_layout: str,
    num_key_value_heads: int,
    sparse_mode: int,
    block_size: int,
    softmax_lse_flag: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Layout TND: sequences end to end, query ``[T, heads, D]``; `actual_seq_lengths` are where they end.

    Keys and values are packed alike, with `actual_seq_lengths_kv` where they end; or, with a block table, they are
    caches ``[blocks, block size, kv heads * D]`` and `actual_seq_lengths_kv` are lengths.

    Returns the output ``[T, heads, Dv]`` and, if asked for, the log-sum-exp ``[T, heads, 1]``, else ``[1]``.
    """
    check(input_layout == "TND", "input_layout", f"only 'TND' is emulated, not {input_layout!r}")
    heads = _heads(num_heads, num_key_value_heads, scale, sparse_mode, atten_mask)
    check(query.dim() == 3 and query.shape[1] == num_heads, "query", f"[T, {num_heads}, D], not {tuple(query.shape)}")
    check(query.dtype == key.dtype == value.dtype, "query", f"{query.dtype}, {key.dtype}, {value.dtype} must be equal")
    check((query_rope is None) == (key_rope is None), "query_rope", "is given together with key_rope, or neither is")
    ends = _ends(actual_seq_lengths, "actual_seq_lengths", len(query), "the query")
    queries = _split(_with_rope(query, query_rope, "query_rope").float(), ends)
    if block_table is None:
        for name, tensor in (("key", key), ("value", value)):
            check(
                tensor.dim() == 3 and tensor.shape[1] == heads.keys,
                name,
                f"[T, {heads.keys}, D]: {tuple(tensor.shape)}",
            )
        packed = [_with_rope(key, key_rope, "key_rope"), value]
        sequences = _packed_keys(packed, actual_seq_lengths_kv, "actual_seq_lengths_kv")
    else:
        check(key_rope is None, "key_rope", "with a block table is not emulated here")
        sequences = _cached_keys([key, value], block_table, block_size, actual_seq_lengths_kv, heads.keys)
    check(len(queries) == len(sequences), "actual_seq_lengths_kv", f"{len(sequences)}, for {len(queries)} queries")
    parts = [heads.attend(q, k.float(), v.float()) for q, (k, v) in zip(queries, sequences, strict=True)]
    output = torch.cat([part for part, _ in parts]).to(query.dtype)
    if not softmax_lse_flag:
        return output, torch.zeros(1)
    return output, torch.cat([total for _, total in parts])[..., None]


@operator(
    "npu_fused_infer_attention_score_v2(Tensor query, Tensor key, Tensor value, *, Tensor? query_rope=None, "
    "Tensor? key_rope=None, Tensor? pse_shift=None, Tensor? atten_mask=None, SymInt[]? actual_seq_qlen=None, "
    "SymInt[]? actual_seq_kvlen=None, Tensor? block_table=None, Tensor? dequant_scale_query=None, "
    "Tensor? dequant_scale_key=None, Tensor? dequant_offset_key=None, Tensor? dequant_scale_value=None, "
    "Tensor? dequant_offset_value=None, Tensor? dequant_scale_key_rope=None, Tensor? quant_scale_out=None, "
    "Tensor? quant_offset_out=None, Tensor? quant_scale_p=None, Tensor? learnable_sink=None, int num_query_heads=1, "
    "int num_key_value_heads=0, float softmax_scale=1.0, int pre_tokens=2147483647, int next_tokens=2147483647, "
    "str input_layout='BSH', int sparse_mode=0, int block_size=0, int query_quant_mode=0, int key_quant_mode=0, "
    "int value_quant_mode=0, int inner_precise=0, bool return_softmax_lse=False, int? query_dtype=None, "
    "int? key_dtype=None, int? value_dtype=None, int? query_rope_dtype=None, int? key_rope_dtype=None, "
    "int? key_shared_prefix_dtype=None, int? value_shared_prefix_dtype=None, int? dequant_scale_query_dtype=None, "
    "int? dequant_scale_key_dtype=None, int? dequant_scale_value_dtype=None, int? dequant_scale_key_rope_dtype=None, "
    "int? out_dtype=None) -> (Tensor, Tensor)"
)
def npu_fused_infer_attention_score_v2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_rope: torch.Tensor | None,
    key_rope: torch.Tensor | None,
    actual_seq_kvlen: Sequence[int] | None,
    block_table: torch.Tensor | None,
    num_query_heads: int,
    num_key_value_heads: int,
    softmax_scale: float,
    input_layout: str,
    sparse_mode: int,
    block_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoding with latent keys, which are also the values: layout BNSD_NBSD, one query a sequence.

    Args:
        query: ``[B, heads, 1, 512]``; `query_rope` ``[B, heads, 1, 64]``.
        key: the cache ``[blocks, 1, block size, 512]``, and `value` the same.
        key_rope: ``[blocks, 1, block size, 64]``.

    Returns the output ``[heads, B, 1, 512]`` and a log-sum-exp that was not asked for, ``[1]``.
    """
    check(input_layout == "BNSD_NBSD", "input_layout", f"only 'BNSD_NBSD' is emulated, not {input_layout!r}")
    check(num_key_value_heads == 1, "num_key_value_heads", f"latent keys have one head, not {num_key_value_heads}")
    check(num_query_heads in ABSORBED_HEADS, "num_query_heads", f"one of {ABSORBED_HEADS}, not {num_query_heads}")
    check(block_table is not None, "block_table", "is needed")
    check(query_rope is not None and key_rope is not None, "query_rope", "is needed, and key_rope")
    check(value.data_ptr() == key.data_ptr() and value.shape == key.shape, "value", "must be the latent keys")
    assert block_table is not None and query_rope is not None and key_rope is not None
    right = query.dim() == 4 and tuple(query.shape[1:]) == (num_query_heads, 1, ABSORBED_SIZE)
    check(right, "query", f"[B, {num_query_heads}, 1, {ABSORBED_SIZE}], not {tuple(query.shape)}")
    for name, cache, width in (("key", key, ABSORBED_SIZE), ("key_rope", key_rope, ROPE_SIZE)):
        right = cache.dim() == 4 and cache.shape[1] == 1 and cache.shape[3] == width
        check(right, name, f"[blocks, 1, block size, {width}], not {tuple(cache.shape)}")
        check(cache.dtype == query.dtype, name, f"{cache.dtype}, where the query is {query.dtype}")
    heads = _heads(num_query_heads, num_key_value_heads, softmax_scale, sparse_mode, None)
    caches = [key.squeeze(1), key_rope.squeeze(1)]
    sequences = _cached_keys(caches, block_table, block_size, actual_seq_kvlen, heads.keys)
    check(len(sequences) == len(query), "actual_seq_kvlen", f"{len(sequences)}, for {len(query)} queries")
    queries = _with_rope(query, query_rope, "query_rope").float()
    output = query.new_empty(num_query_heads, len(query), 1, ABSORBED_SIZE)
    for row, (latent, rope) in enumerate(sequences):
        keys = _with_rope(latent, rope, "key_rope").float()
        output[:, row] = (
            heads.attend(queries[row].transpose(0, 1), keys, latent.float())[0].transpose(0, 1).to(query.dtype)
        )
    return output, torch.zeros(1)


@operator("npu_attention_update(Tensor[] lse, Tensor[] local_out, int update_type) -> (Tensor, Tensor)")
def npu_attention_update(
    lse: Sequence[torch.Tensor], local_out: Sequence[torch.Tensor], update_type: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Merges attention over parts of the keys: `lse` float32 ``[rows]`` each, `local_out` ``[rows, D]`` each.

    Returns the output, and for `update_type` 1 the merged log-sum-exp, else None. A part that saw nothing has no say.
    """
    check(0 < len(lse) <= 16 and len(lse) == len(local_out), "lse", f"1 to 16 parts: {len(lse)}, {len(local_out)}")
    check(update_type in (0, 1), "update_type", f"0 or 1, not {update_type}")
    for total, part in zip(lse, local_out, strict=True):
        check(total.dtype == torch.float32 and total.dim() == 1, "lse", f"float32 [rows], not {total.dtype}")
        right = part.dim() == 2 and len(part) == len(total) and part.shape == local_out[0].shape
        check(right, "local_out", f"[{len(total)}, D], not {tuple(part.shape)}")
        check(part.shape[1] % 8 == 0 and part.shape[1] <= 512, "local_out", f"D {part.shape[1]}: 8, 16, ... 512")
    totals = torch.stack(list(lse))
    totals = totals.masked_fill(totals == NOTHING_SEEN, float("-inf"))
    merged = totals.logsumexp(0)
    weights = torch.where(merged > float("-inf"), (totals - merged).exp(), 0.0)
    output = (torch.stack(list(local_out)).float() * weights[..., None]).sum(0).to(local_out[0].dtype)
    return output, merged if update_type == 1 else None
