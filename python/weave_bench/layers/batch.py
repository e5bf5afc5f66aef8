"""Steps: which requests share one, and what the MoE layers get of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from weave_bench.layers.traffic import Traffic

HIDDEN = 2048


class Shape(NamedTuple):
    """Requests in a step, and the tokens that each of them has in it."""

    kind: str
    requests: int
    tokens_each: int

    @property
    def tokens(self) -> int:
        """Of the step."""
        return self.requests * self.tokens_each


def decode(batch: int) -> Shape:
    """A step of `batch` requests, one token each."""
    return Shape("decode", batch, 1)


def prefill(tokens: int, *, requests: int = 8) -> Shape:
    """A step of `tokens` prompt tokens in equal parts of `requests` requests."""
    return Shape("prefill", requests, tokens // requests)


class Step(NamedTuple):
    """One step.

    Attributes:
        hidden: bfloat16 ``[tokens, HIDDEN]``, the same for every layer.
        logits: for each layer bfloat16 ``[tokens, EXPERTS]``.
        revisions: int64 ``[requests]``, the adapter of each request, from 1 on.
        tokens: int32 ``[requests]``.
    """

    hidden: torch.Tensor
    logits: Sequence[torch.Tensor]
    revisions: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]

    @property
    def of_base(self) -> npt.NDArray[np.int64]:
        """`revisions`, were all requests the base model's."""
        return np.zeros_like(self.revisions)


def make_step(traffic: Traffic, shape: Shape, adapters: int, seed: int) -> Step:
    """Requests of the first `adapters` adapters, as evenly as can be, in an order of chance."""
    draw = np.random.default_rng([seed, shape.requests, shape.tokens_each, adapters])
    dealt = np.concatenate([draw.permutation(adapters) for _ in range(-(-shape.requests // adapters))])
    tenants = draw.permutation(dealt[: shape.requests])
    requests = [traffic.logits(int(tenant), shape.tokens_each, draw) for tenant in tenants]
    logits = [torch.from_numpy(np.concatenate(parts)).to(torch.bfloat16) for parts in zip(*requests, strict=True)]
    hidden = torch.from_numpy(draw.standard_normal((shape.tokens, HIDDEN), dtype=np.float32)).to(torch.bfloat16)
    tokens = np.full(shape.requests, shape.tokens_each, dtype=np.int32)
    return Step(hidden, logits, (tenants + 1).astype(np.int64), tokens)
