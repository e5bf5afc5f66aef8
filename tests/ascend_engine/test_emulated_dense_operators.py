"""Norms, activations, rotary embeddings and products of the emulated torch_npu, against torch and written-out loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_npu
from hypothesis import given
from hypothesis import strategies as st
from torch_npu.strict import RefusedError

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPES
def test_rms_norm(dtype: torch.dtype) -> None:
    x, gamma = random(3, 5, 16, dtype=dtype), random(16, seed=1, dtype=dtype)
    normed, scale = torch_npu.npu_rms_norm(x, gamma, 1e-5)
    expected = torch.nn.functional.rms_norm(x.double(), (16,), gamma.double(), 1e-5)
    torch.testing.assert_close(normed, expected.to(dtype))
    torch.testing.assert_close(scale, torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5))


@DTYPES
def test_add_rms_norm_rounds_the_sum_before_the_norm(dtype: torch.dtype) -> None:
    x, y, gamma = random(4, 16, dtype=dtype), random(4, 16, seed=1, dtype=dtype), random(16, seed=2, dtype=dtype)
    normed, _, total = torch_npu.npu_add_rms_norm(x, y, gamma, 1e-6)
    assert torch.equal(total, x + y)
    assert torch.equal(normed, torch_npu.npu_rms_norm(x + y, gamma, 1e-6)[0])


@DTYPES
def test_swiglu(dtype: torch.dtype) -> None:
    x = random(3, 8, dtype=dtype)
    expected = [[a / (1 + math.exp(-a)) * b for a, b in zip(row[:4], row[4:], strict=True)] for row in x.tolist()]
    torch.testing.assert_close(torch_npu.npu_swiglu(x), torch.tensor(expected).to(dtype))
    torch.testing.assert_close(torch_npu.npu_swiglu(x.t(), dim=0).t(), torch.tensor(expected).to(dtype))


def rotated(vector: list[float], angles: list[float], neox: bool) -> list[float]:
    """The pairs of a vector turned by their angles, as complex numbers."""
    half = len(vector) // 2
    place = [(i, i + half) if neox else (2 * i, 2 * i + 1) for i in range(half)]
    result = list(vector)
    for (a, b), angle in zip(place, angles, strict=True):
        turned = complex(vector[a], vector[b]) * complex(math.cos(angle), math.sin(angle))
        result[a], result[b] = turned.real, turned.imag
    return result


@given(st.booleans(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 100))
def test_rotary_embedding(neox: bool, heads: int, tokens: int, seed: int) -> None:
    size, limit = 8, 32
    angles = random(limit, size // 2, seed=seed)
    cache = torch.cat((angles.cos(), angles.sin()), -1)
    positions = torch.randint(0, limit, (tokens,), generator=torch.Generator().manual_seed(seed))
    query, key = random(tokens, heads * size, seed=seed + 1), random(tokens, size, seed=seed + 2)
    expected = [
        [rotated(head.tolist(), angles[p].tolist(), neox) for head in row.view(-1, size)]
        for row, p in zip(query, positions.tolist(), strict=True)
    ]
    untouched = key.clone()
    torch_npu._npu_rotary_embedding(positions, query, key, size, cache, neox)
    torch.testing.assert_close(query.view(tokens, heads, size), torch.tensor(expected))
    assert not torch.equal(key, untouched)


def test_rotary_mul_and_interleave_turn_the_same_pairs() -> None:
    """A pair's cosine is given twice; interleaving puts the first of all pairs before the second of all."""
    x, angles = random(2, 3, 1, 64), random(2, 1, 1, 32, seed=1)
    doubled = torch.cat((angles, angles), -1)
    by_halves = torch_npu.npu_interleave_rope(x, doubled.cos(), doubled.sin())
    repeated = angles.repeat_interleave(2, -1)
    by_pairs = torch_npu.npu_rotary_mul(x, repeated.cos(), repeated.sin(), rotary_mode="interleave")
    torch.testing.assert_close(by_halves, torch.cat((by_pairs[..., 0::2], by_pairs[..., 1::2]), -1))
    expected = rotated(x[1, 2, 0].tolist(), angles[1, 0, 0].tolist(), neox=False)
    torch.testing.assert_close(by_pairs[1, 2, 0], torch.tensor(expected))
    halves = torch_npu.npu_rotary_mul(x, doubled.cos(), doubled.sin())
    torch.testing.assert_close(
        halves[1, 2, 0], torch.tensor(rotated(x[1, 2, 0].tolist(), angles[1, 0, 0].tolist(), True))
    )


def test_products() -> None:
    x, weight, total = random(2, 4), random(2, 3, seed=1), torch.ones(4, 3)
    torch_npu._npu_matmul_add_fp32(x, weight, total)
    torch.testing.assert_close(total, 1 + x.t() @ weight)
    left, right = random(5, 2, 3), random(5, 3, 4, seed=1)
    expected = torch.einsum("bij,bjk->ibk", left, right)
    torch.testing.assert_close(torch_npu.npu_transpose_batchmatmul(left, right, perm_y=(1, 0, 2)), expected)
    from_rows = left.transpose(0, 1).contiguous()
    torch.testing.assert_close(torch_npu.npu_transpose_batchmatmul(from_rows, right, perm_x1=(1, 0, 2)), expected)


@given(st.integers(1, 12), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_top_k_top_p(k: int, p: float, seed: int) -> None:
    logits = random(1, 12, seed=seed)
    masked = torch_npu.npu_top_k_top_p(logits, k=torch.tensor([k], dtype=torch.int32), p=torch.tensor([p]))
    order = logits[0].argsort(descending=True).tolist()[:k]
    chances = logits[0, order].softmax(-1).tolist()
    kept = {order[i] for i in range(k) if i == 0 or sum(chances[:i]) < p - 1e-5}
    surely = {order[i] for i in range(k) if i == 0 or sum(chances[:i]) < p + 1e-5}
    found = {i for i, value in enumerate(masked[0].tolist()) if value > -math.inf}
    assert kept <= found <= surely
    assert all(masked[0, i] == logits[0, i] for i in found)


X, G = random(2, 16), random(16)
CACHE, POSITIONS = random(8, 16), torch.tensor([0, 7])
REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "gamma of another size": ("npu_rms_norm: gamma", lambda: torch_npu.npu_rms_norm(X, G[:8])),
    "gamma of another type": ("npu_rms_norm: gamma", lambda: torch_npu.npu_rms_norm(X, G.half())),
    "no epsilon": ("npu_rms_norm: epsilon", lambda: torch_npu.npu_rms_norm(X, G, 0.0)),
    "sum of two shapes": ("npu_add_rms_norm: x2", lambda: torch_npu.npu_add_rms_norm(X, X[:1], G)),
    "sum of two types": ("npu_add_rms_norm: x2", lambda: torch_npu.npu_add_rms_norm(X, X.half(), G)),
    "odd halves": ("npu_swiglu: input", lambda: torch_npu.npu_swiglu(X[:, :15])),
    "no such dimension": ("npu_swiglu: dim", lambda: torch_npu.npu_swiglu(X, dim=2)),
    "position behind the cache": (
        "positions: 0..8 of 8",
        lambda: torch_npu._npu_rotary_embedding(POSITIONS + torch.tensor([0, 1]), X, X, 16, CACHE, True),
    ),
    "negative position": ("positions", lambda: torch_npu._npu_rotary_embedding(POSITIONS - 1, X, X, 16, CACHE, True)),
    "cache of other heads": (
        "cos_sin_cache: 16 wide",
        lambda: torch_npu._npu_rotary_embedding(POSITIONS, X, X, 8, CACHE, True),
    ),
    "copied query": (
        "query: must be contiguous",
        lambda: torch_npu._npu_rotary_embedding(POSITIONS, random(2, 32)[:, ::2], X, 16, CACHE, True),
    ),
    "unknown rotation": (
        "rotary_mode",
        lambda: torch_npu.npu_rotary_mul(X[None, None], X[None, None], X[None, None], "quarter"),
    ),
    "cosines of other tokens": (
        "cos: shape",
        lambda: torch_npu.npu_interleave_rope(random(2, 1, 1, 64), random(3, 1, 1, 64), random(2, 1, 1, 64)),
    ),
    "wide interleave": ("x: D must be 64", lambda: torch_npu.npu_interleave_rope(*[random(2, 1, 1, 32)] * 3)),
    "factors that do not fit": (
        "weight",
        lambda: torch_npu.npu_transpose_batchmatmul(random(2, 3, 4), random(2, 3, 4)),
    ),
    "no permutation": (
        "perm_y",
        lambda: torch_npu.npu_transpose_batchmatmul(random(2, 3, 4), random(2, 4, 3), perm_y=(0, 0, 1)),
    ),
    "sum in half precision": (
        "C: float32",
        lambda: torch_npu._npu_matmul_add_fp32(X, X, torch.zeros(16, 16, dtype=torch.float16)),
    ),
    "k in int64": ("k: int32", lambda: torch_npu.npu_top_k_top_p(X, k=torch.tensor([1, 1]))),
    "p of one row": ("p:", lambda: torch_npu.npu_top_k_top_p(X, p=torch.tensor([0.5]))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    said, call = REFUSED[case]
    with pytest.raises(RefusedError, match=said):
        call()
