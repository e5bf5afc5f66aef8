"""Attention and caches of the emulated torch_npu, against torch's own attention and written-out copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_npu.strict import RefusedError

MASK = torch.ones(2048, 2048, dtype=torch.int8).triu(1)
CAUSAL = {"sparse_mode": 3, "atten_mask": MASK}
BLOCK, BLOCKS = 4, 12


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> torch.Tensor:
    """Attention of one sequence, ``[tokens, heads, D]``; the last query sees all keys."""
    seen = torch.ones(len(q), len(k), dtype=torch.bool)
    if causal:
        seen = seen.tril(len(k) - len(q))
    q, k, v = (tensor.transpose(0, 1)[None].double() for tensor in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def paged(rows: list[torch.Tensor], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences ``[tokens, ...]`` in a cache of blocks in no order, NaN elsewhere; and the table of blocks."""
    cache = torch.full((BLOCKS, BLOCK, *rows[0].shape[1:]), math.nan)
    free = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(seed)).tolist()
    table = torch.full((len(rows), 4), 10**6, dtype=torch.int32)
    for number, row in enumerate(rows):
        for place, part in enumerate(row.split(BLOCK)):
            table[number, place] = free.pop()
            cache[table[number, place], : len(part)] = part
    return cache, table


LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 8)), min_size=1, max_size=3)


@given(LENGTHS, st.booleans(), st.integers(1, 2), st.integers(0, 99))
def test_packed_attention(lengths: list[tuple[int, int]], causal: bool, group: int, seed: int) -> None:
    """Queries, and as many keys and some more before them."""
    heads, size = 2 * group, 8
    q = [random(new, heads, size, seed=seed + i) for i, (new, _) in enumerate(lengths)]
    k, v = ([random(a + b, 2, size, seed=seed + s + i) for i, (a, b) in enumerate(lengths)] for s in (10, 20))
    ends = torch.tensor([[a, a + b] for a, b in lengths]).cumsum(0).t().tolist()
    out, lse = torch_npu.npu_fused_infer_attention_score(
        torch.cat(q), torch.cat(k), torch.cat(v), num_heads=heads, num_key_value_heads=2, scale=0.3, input_layout="TND",
        actual_seq_lengths=ends[0], actual_seq_lengths_kv=ends[1], softmax_lse_flag=True, **(CAUSAL if causal else {}),
    )  # fmt: skip
    expected = torch.cat([by_torch(*parts, 0.3, causal) for parts in zip(q, k, v, strict=True)])
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert lse.shape == (len(out), heads, 1)


@given(LENGTHS, st.integers(0, 99))
def test_cached_attention(lengths: list[tuple[int, int]], seed: int) -> None:
    """Nothing but the blocks of a sequence is read, and of those only its tokens: everything else is NaN."""
    q = [random(new, 4, 8, seed=seed + i) for i, (new, _) in enumerate(lengths)]
    k, v = ([random(a + b, 2, 8, seed=seed + s + i) for i, (a, b) in enumerate(lengths)] for s in (10, 20))
    (keys, table), (values, _) = paged(k, seed), paged(v, seed)
    out, _ = torch_npu.npu_fused_infer_attention_score(
        torch.cat(q), keys.flatten(2), values.flatten(2), num_heads=4, num_key_value_heads=2, input_layout="TND",
        scale=0.3, actual_seq_lengths=torch.tensor([a for a, _ in lengths]).cumsum(0).tolist(), block_table=table,
        block_size=BLOCK, actual_seq_lengths_kv=[a + b for a, b in lengths], **CAUSAL,
    )  # fmt: skip
    expected = torch.cat([by_torch(*parts, 0.3, True) for parts in zip(q, k, v, strict=True)])
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_rope_is_a_longer_head() -> None:
    q, k, v, q_rope, k_rope = (random(5, 2, size, seed=i) for i, size in enumerate((128, 128, 128, 64, 64)))
    out, _ = torch_npu.npu_fused_infer_attention_score(
        q, k, v, query_rope=q_rope, key_rope=k_rope, num_heads=2, scale=0.1, input_layout="TND",
        actual_seq_lengths=[5], actual_seq_lengths_kv=[5], **CAUSAL,
    )  # fmt: skip
    expected = by_torch(torch.cat((q, q_rope), -1), torch.cat((k, k_rope), -1), v, 0.1, True)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def test_half_precision_is_rounded_once() -> None:
    q, k, v = (random(6, 2, 8, seed=i, dtype=torch.bfloat16) for i in range(3))
    both = [
        torch_npu.npu_fused_infer_attention_score(
            *tensors, num_heads=2, input_layout="TND", actual_seq_lengths=[6], actual_seq_lengths_kv=[6], **CAUSAL
        )[0]
        for tensors in ((q, k, v), (q.float(), k.float(), v.float()))
    ]
    assert torch.equal(both[0], both[1].bfloat16())


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10), min_size=1, max_size=3), st.integers(0, 99))
def test_latent_decoding(lengths: list[int], seed: int) -> None:
    query, rope = random(len(lengths), 4, 1, 512, seed=seed), random(len(lengths), 4, 1, 64, seed=seed + 1)
    latent = [random(length, 1, 512, seed=seed + 10 + i) for i, length in enumerate(lengths)]
    turned = [random(length, 1, 64, seed=seed + 20 + i) for i, length in enumerate(lengths)]
    (cache, table), (rope_cache, _) = paged(latent, seed), paged(turned, seed)
    keys = cache.transpose(1, 2)
    out, _ = torch_npu.npu_fused_infer_attention_score_v2(
        query, keys, keys, query_rope=rope, key_rope=rope_cache.transpose(1, 2), num_query_heads=4,
        num_key_value_heads=1, softmax_scale=0.05, input_layout="BNSD_NBSD", block_table=table, block_size=BLOCK,
        actual_seq_kvlen=lengths,
    )  # fmt: skip
    for i, length in enumerate(lengths):
        q, k = torch.cat((query[i], rope[i]), -1).transpose(0, 1), torch.cat((latent[i], turned[i]), -1)
        expected = by_torch(q, k, latent[i], 0.05, False) if length else torch.zeros(1, 4, 512).double()
        torch.testing.assert_close(out[:, i].transpose(0, 1).double(), expected, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 99))
def test_merged_parts_are_the_whole(first: int, second: int, seed: int) -> None:
    """Also when one part, or both, have no keys at all."""
    q, k, v = (random(n, 2, 8, seed=seed + i) for i, n in enumerate((3, first + second, first + second)))

    def attend(start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = torch_npu.npu_fused_infer_attention_score(
            q, k[start:end], v[start:end], num_heads=2, input_layout="TND", actual_seq_lengths=[3],
            actual_seq_lengths_kv=[end - start], softmax_lse_flag=True,
        )  # fmt: skip
        return out.view(-1, 8), lse.view(-1)

    parts = [attend(0, first), attend(first, first + second)]
    whole, lse = attend(0, first + second)
    merged, total = torch_npu.npu_attention_update([p[1] for p in parts], [p[0] for p in parts], 1)
    torch.testing.assert_close(merged, whole, atol=1e-5, rtol=1e-5)
    assert (lse == math.inf).tolist() == [first + second == 0] * 6, "the sign of a query that saw nothing"
    torch.testing.assert_close(total, torch.where(lse == math.inf, -math.inf, lse))
    assert torch_npu.npu_attention_update([lse], [whole], 0)[1] is None


SCATTERS: list[Callable[..., None]] = [
    lambda *args: torch_npu.npu_scatter_pa_kv_cache(*args, cache_mode="Norm"),
    lambda *args: torch_npu._npu_reshape_and_cache(*args),
]


@pytest.mark.parametrize("scatter", SCATTERS)
def test_store_and_gather(scatter: Callable[..., None]) -> None:
    key, value = random(6, 2, 8), random(6, 2, 8, seed=1)
    caches = torch.full((2, BLOCKS, BLOCK, 2, 8), math.nan)
    slots = torch.tensor([5, 6, 7, 16, -1, 0], dtype=torch.int32)
    scatter(key, value, caches[0], caches[1], slots)
    for cache, rows in zip(caches, (key, value), strict=True):
        expected = torch.full((BLOCKS * BLOCK, 2, 8), math.nan)
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                expected[slot] = rows[row]
        torch.testing.assert_close(cache.flatten(0, 1), expected, equal_nan=True, rtol=0, atol=0)
    table = torch.tensor([[1, 4, 99], [0, 99, 99]], dtype=torch.int32)
    lengths, starts = torch.tensor([4, 1]), torch.tensor([1, 0])
    for gather in (
        lambda k, v: torch_npu.npu_gather_pa_kv_cache(*caches, table, lengths, k, v, seq_offset=starts),
        lambda k, v: torch_npu.atb.npu_paged_cache_load(*caches, table, lengths, seq_starts=starts, key=k, value=v),
    ):
        keys, values = torch.empty(5, 2, 8), torch.empty(5, 2, 8)
        gather(keys, values)
        assert torch.equal(keys, key[[0, 1, 2, 3, 5]])
        assert torch.equal(values, value[[0, 1, 2, 3, 5]])


def test_latent_keys_are_normed_turned_and_stored() -> None:
    kv, gamma, angles = random(3, 1, 1, 576), random(512, seed=1), random(3, 1, 1, 32, seed=2)
    doubled = torch.cat((angles, angles), -1)
    ropes, latents = torch.full((2, 4, 1, 64), math.nan), torch.full((2, 4, 1, 512), math.nan)
    index = torch.tensor([6, -1, 2])
    results = torch_npu.npu_kv_rmsnorm_rope_cache(
        kv, gamma, doubled.cos(), doubled.sin(), index, ropes, latents, epsilon=1e-6, cache_mode="PA", is_output_kv=True
    )
    latent = torch.nn.functional.rms_norm(kv[..., :512], (512,), gamma, 1e-6)
    rope = torch_npu.npu_interleave_rope(kv[..., 512:], doubled.cos(), doubled.sin())
    torch.testing.assert_close(results[3], latent)
    assert torch.equal(results[2], rope)
    for cache, rows in ((ropes, results[2]), (latents, results[3])):
        flat = cache.view(8, -1)
        assert torch.equal(flat[[6, 2]], rows.view(3, -1)[[0, 2]])
        assert flat.isnan().all(-1).tolist() == [True, True, False, True, True, True, False, True]


Q, K = random(4, 2, 8), random(BLOCKS, BLOCK, 16)
TABLE = torch.zeros(1, 2, dtype=torch.int32)
SLOTS = torch.arange(4, dtype=torch.int32)


def packed(**changed: Any) -> None:
    given = {"query": Q, "key": Q, "value": Q, "num_heads": 2, "input_layout": "TND"}
    ends = {"actual_seq_lengths": [4], "actual_seq_lengths_kv": [4]}
    torch_npu.npu_fused_infer_attention_score(**given | ends | changed)


def cached(**changed: Any) -> None:
    packed(**{"key": K, "value": K, "block_table": TABLE, "block_size": BLOCK} | changed)


def stored(**changed: Any) -> None:
    cache = torch.zeros(BLOCKS, BLOCK, 2, 8)
    given = {"key": Q, "value": Q, "key_cache": cache, "value_cache": cache.clone(), "slot_mapping": SLOTS}
    torch_npu.npu_scatter_pa_kv_cache(**given | {"cache_mode": "Norm"} | changed)


def latent(**changed: Any) -> None:
    keys = torch.zeros(BLOCKS, 1, BLOCK, 512)
    given = {"query": torch.zeros(1, 4, 1, 512), "key": keys, "value": keys, "query_rope": torch.zeros(1, 4, 1, 64)}
    given |= {"key_rope": torch.zeros(BLOCKS, 1, BLOCK, 64), "block_table": TABLE}
    rest = {"num_query_heads": 4, "num_key_value_heads": 1, "input_layout": "BNSD_NBSD", "block_size": BLOCK}
    torch_npu.npu_fused_infer_attention_score_v2(**given | rest | {"actual_seq_kvlen": [3]} | changed)


REFUSED: dict[str, Callable[[], None]] = {
    "input_layout: only 'TND'": lambda: packed(input_layout="BSH"),
    "sparse_mode: 0 and 3": lambda: packed(sparse_mode=4),
    "sparse_mode 3 needs the bool or int8 triangle": lambda: packed(sparse_mode=3),
    "a mask with sparse_mode 0": lambda: packed(atten_mask=MASK),
    "antiquant_mode: only the default": lambda: packed(antiquant_mode=1),
    "pre_tokens: only the default": lambda: packed(pre_tokens=4),
    "actual_seq_lengths: ends at 3, but the query has 4": lambda: packed(actual_seq_lengths=[3]),
    "actual_seq_lengths: must not fall": lambda: packed(actual_seq_lengths=[5, 4], actual_seq_lengths_kv=[4, 4]),
    "actual_seq_lengths_kv: ends at 5": lambda: packed(actual_seq_lengths_kv=[5]),
    "actual_seq_lengths_kv: 2, for 1 queries": lambda: packed(actual_seq_lengths_kv=[2, 4]),
    "num_heads: 2 heads of queries over 3": lambda: packed(num_key_value_heads=3),
    "must be equal": lambda: packed(key=Q.half()),
    "query_rope: is given together": lambda: packed(query_rope=random(4, 2, 64)),
    "query_rope: 64 wide, not 32": lambda: packed(query_rope=random(4, 2, 32), key_rope=random(4, 2, 32)),
    "block_size: 8, where the cache's is 4": lambda: cached(block_size=8),
    "row 0 names a block outside 0..11": lambda: cached(block_table=TABLE + 12),
    "row 0 names a block outside": lambda: cached(block_table=TABLE - 1),
    "block_table: 2 blocks of 4 for 9 tokens": lambda: cached(actual_seq_lengths_kv=[9]),
    "block_table: 1 rows, but a sequence 1": lambda: cached(actual_seq_lengths=[2, 4], actual_seq_lengths_kv=[4, 4]),
    "block_table: int32": lambda: cached(block_table=TABLE.long()),
    "cache_mode: only 'Norm'": lambda: stored(cache_mode="PA_NZ"),
    "slots: outside the cache's 0..47": lambda: stored(slot_mapping=SLOTS + 45),
    "slots: two rows for one slot": lambda: stored(slot_mapping=SLOTS // 2),
    "key: 4 rows for 3 slots": lambda: stored(slot_mapping=SLOTS[:3]),
    "value: torch.float16, where the cache is": lambda: stored(value=Q.half()),
    "key cache: contiguous": lambda: stored(key_cache=torch.zeros(BLOCKS, 2, BLOCK, 8).transpose(1, 2)),
    "only 'BNSD_NBSD'": lambda: latent(input_layout="TND"),
    "latent keys have one head": lambda: latent(num_key_value_heads=4),
    "num_query_heads: one of": lambda: latent(num_query_heads=3),
    "value: must be the latent keys": lambda: latent(value=torch.zeros(BLOCKS, 1, BLOCK, 512)),
    "learnable_sink: only the default": lambda: latent(learnable_sink=torch.zeros(4)),
    "lse: 1 to 16 parts: 2, 1": lambda: torch_npu.npu_attention_update([Q[0, 0]] * 2, [Q[0]], 0),
    "update_type": lambda: torch_npu.npu_attention_update([Q[0, 0, :2]], [Q[0]], 2),
    "D 9: 8, 16": lambda: torch_npu.npu_attention_update([torch.zeros(2)], [torch.zeros(2, 9)], 0),
}


@pytest.mark.parametrize("said", REFUSED)
def test_refuses(said: str) -> None:
    with pytest.raises(RefusedError) as refused:
        REFUSED[said]()
    assert said in str(refused.value)
