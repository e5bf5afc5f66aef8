"""What multi-head latent attention needs beside attention itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_npu import formats
from torch_npu.operators.normalisation import rms_norm
from torch_npu.operators.paged_cache import PADDING
from torch_npu.operators.rotary import interleaved
from torch_npu.strict import check, operator

LATENT_SIZE, ROPE_SIZE = 512, 64


@operator(
    "npu_kv_rmsnorm_rope_cache(Tensor kv, Tensor gamma, Tensor cos, Tensor sin, Tensor index, Tensor(a!) k_cache, "
    "Tensor(b!) ckv_cache, *, Tensor? k_rope_scale=None, Tensor? c_kv_scale=None, Tensor? k_rope_offset=None, "
    "Tensor? c_kv_offset=None, Tensor? v=None, float epsilon=1e-05, str cache_mode='Norm', bool is_output_kv=False) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
def npu_kv_rmsnorm_rope_cache(
    kv: torch.Tensor,
    gamma: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    index: torch.Tensor,
    k_cache: torch.Tensor,
    ckv_cache: torch.Tensor,
    epsilon: float,
    cache_mode: str,
    is_output_kv: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Norms the latent part of `kv`, rotates the rest, and writes both to their paged caches.

    Args:
        kv: ``[B, 1, S, 512 + 64]``; `cos`, `sin` ``[B, 1, S, 64]``.
        index: int64 ``[B * S]``, the slot of each token; -1 stores nothing.
        k_cache, ckv_cache: ``[blocks, block size, 1, 64]`` and ``[..., 512]``; written in place.

    Returns both caches and, if `is_output_kv`, the rotated and the normed part, ``[B, 1, S, 64]`` and ``[..., 512]``.
    """
    check(cache_mode == "PA", "cache_mode", f"only 'PA' is emulated, not {cache_mode!r}")
    right = kv.dim() == 4 and kv.shape[1] == 1 and kv.shape[3] == LATENT_SIZE + ROPE_SIZE
    check(right, "kv", f"[B, 1, S, {LATENT_SIZE + ROPE_SIZE}], not {tuple(kv.shape)}")
    check(tuple(gamma.shape) == (LATENT_SIZE,), "gamma", f"[{LATENT_SIZE}], not {tuple(gamma.shape)}")
    tokens = kv.shape[0] * kv.shape[2]
    right = index.dtype == torch.int64 and tuple(index.shape) == (tokens,)
    check(right, "index", f"int64 [{tokens}], not {index.dtype} {tuple(index.shape)}")
    latent, rope = kv.split([LATENT_SIZE, ROPE_SIZE], -1)
    latent = rms_norm(latent, gamma, epsilon)[0]
    rope = interleaved(rope, cos, sin)
    stored = index != PADDING
    for name, rows, cache in (("k_cache", rope, k_cache), ("ckv_cache", latent, ckv_cache)):
        width = rows.shape[-1]
        right = cache.dim() == 4 and tuple(cache.shape[2:]) == (1, width) and cache.is_contiguous()
        check(right, name, f"contiguous [blocks, block size, 1, {width}], not {tuple(cache.shape)}")
        check(cache.dtype == kv.dtype, name, f"{cache.dtype}, where kv is {kv.dtype}")
        slots, count = index[stored], cache.shape[0] * cache.shape[1]
        check(bool(((slots >= 0) & (slots < count)).all()), "index", f"outside the cache's 0..{count - 1}")
        cache.view(count, width)[slots] = rows.reshape(tokens, width)[stored]
    return (k_cache, ckv_cache, rope, latent) if is_output_kv else (k_cache, ckv_cache, None, None)


@operator(
    "npu_transpose_batchmatmul(Tensor input, Tensor weight, *, Tensor? bias=None, Tensor? scale=None, "
    "int[]? perm_x1=None, int[]? perm_x2=None, int[]? perm_y=None, int? batch_split_factor=1) -> Tensor"
)
def npu_transpose_batchmatmul(
    input: torch.Tensor,
    weight: torch.Tensor,
    perm_x1: Sequence[int] | None,
    perm_x2: Sequence[int] | None,
    perm_y: Sequence[int] | None,
) -> torch.Tensor:
    """``permuted(permuted(input) @ permuted(weight))`` of batches of matrices; `perm_y` is (1, 0, 2) by default."""
    for name, permutation in (("perm_x1", perm_x1), ("perm_x2", perm_x2), ("perm_y", perm_y)):
        right = permutation is None or sorted(permutation) == [0, 1, 2]
        check(right, name, f"a permutation of 0, 1, 2, not {permutation}")
    check(input.dim() == 3 and weight.dim() == 3, "input", "both factors have three dimensions")
    check(input.dtype == weight.dtype, "weight", f"{weight.dtype}, where the input is {input.dtype}")
    weight = formats.in_order(weight, "weight")
    left, right_factor = input.permute(tuple(perm_x1 or (0, 1, 2))), weight.permute(tuple(perm_x2 or (0, 1, 2)))
    fits = left.shape[0] == right_factor.shape[0] and left.shape[2] == right_factor.shape[1]
    check(fits, "weight", f"{tuple(left.shape)} @ {tuple(right_factor.shape)}")
    product = torch.bmm(left.float(), right_factor.float()).to(input.dtype)
    return product.permute(tuple(perm_y or (1, 0, 2))).contiguous()
