"""Rotary position embeddings."""

from __future__ import annotations

import torch

from torch_npu.strict import check, operator


def rotate_halves(x: torch.Tensor) -> torch.Tensor:
    """``(-second half, first half)`` of the last dimension."""
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rotate_pairs(x: torch.Tensor) -> torch.Tensor:
    """``(-odd, even)``, pair by pair, of the last dimension."""
    return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)


def evens_then_odds(x: torch.Tensor) -> torch.Tensor:
    """The last dimension in the order 0, 2, 4, ..., 1, 3, 5, ..."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), -1)


def interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the pairs of the last dimension and leaves the first of all pairs before the second of all.

    Args:
        x: ``[B, N, S, D]``.
        cos, sin: ``[B, 1 or N, S, D]``, the values of a pair twice: in ``d`` and ``D / 2 + d``.
    """
    for name, angle in (("cos", cos), ("sin", sin)):
        check(angle.dim() == 4, name, f"[B, N, S, D], not {tuple(angle.shape)}")
        fits = angle.shape[0] == x.shape[0] and angle.shape[1] in (1, x.shape[1]) and angle.shape[2:] == x.shape[2:]
        check(fits, name, f"shape {tuple(angle.shape)} does not go with x, {tuple(x.shape)}")
    halves = evens_then_odds(x.float())
    return (halves * cos.float() + rotate_halves(halves) * sin.float()).to(x.dtype)


@operator("npu_interleave_rope(Tensor x, Tensor cos, Tensor sin) -> Tensor")
def npu_interleave_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    check(x.dim() == 4, "x", f"[B, N, S, D], not {tuple(x.shape)}")
    check(x.shape[-1] == 64, "x", f"D must be 64, not {x.shape[-1]}")
    return interleaved(x, cos, sin)


@operator("npu_rotary_mul(Tensor input, Tensor r1, Tensor r2, str rotary_mode='half', Tensor? rotate=None) -> Tensor")
def npu_rotary_mul(input: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, rotary_mode: str) -> torch.Tensor:
    """``input * r1 + rotated(input) * r2``, with cos and sin of all of the last dimension."""
    check(rotary_mode in ("half", "interleave"), "rotary_mode", f"'half' or 'interleave', not {rotary_mode!r}")
    check(input.dim() == 4, "input", f"four dimensions, not {tuple(input.shape)}")
    for name, factor in (("r1", r1), ("r2", r2)):
        fits = factor.dim() == 4 and all(a in (1, b) for a, b in zip(factor.shape[:3], input.shape[:3], strict=True))
        check(fits and factor.shape[3] == input.shape[3], name, f"shape {tuple(factor.shape)} for {tuple(input.shape)}")
    rotated = rotate_halves if rotary_mode == "half" else rotate_pairs
    values = input.float()
    return (values * r1.float() + rotated(values) * r2.float()).to(input.dtype)


@operator(
    "_npu_rotary_embedding(Tensor positions, Tensor(a!) query, Tensor(b!) key, int head_size, Tensor cos_sin_cache, "
    "bool is_neox_style) -> ()"
)
def _npu_rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox_style: bool,
) -> None:
    """Rotates query and key, ``[T, heads * head_size]``, in place.

    `positions` ``[T]`` chooses rows of the cache, ``[max position, head_size]``: the cosines, then the sines.
    """
    check(not positions.is_floating_point() and positions.dim() == 1, "positions", "integers [T]")
    check(cos_sin_cache.dim() == 2, "cos_sin_cache", f"[positions, size], not {tuple(cos_sin_cache.shape)}")
    check(
        cos_sin_cache.shape[1] == head_size, "cos_sin_cache", f"{cos_sin_cache.shape[1]} wide, for heads of {head_size}"
    )
    if positions.numel():
        low, high = int(positions.min()), int(positions.max())
        check(
            low >= 0 and high < len(cos_sin_cache), "positions", f"{low}..{high} of {len(cos_sin_cache)} in the cache"
        )
    cos, sin = cos_sin_cache[positions.long()].float().chunk(2, -1)
    for name, tensor in (("query", query), ("key", key)):
        check(tensor.is_contiguous(), name, "must be contiguous")
        check(tensor.numel() % (len(positions) * head_size or 1) == 0, name, f"not [T, heads * {head_size}]")
        heads = tensor.view(len(positions), -1, head_size)
        tensor.copy_(_rotated_heads(heads, cos[:, None], sin[:, None], is_neox_style).view_as(tensor))


def _rotated_heads(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, is_neox_style: bool) -> torch.Tensor:
    if is_neox_style:
        first, second = heads.float().chunk(2, -1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    else:
        first, second = heads[..., 0::2].float(), heads[..., 1::2].float()
        rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2)
    return rotated.to(heads.dtype)
