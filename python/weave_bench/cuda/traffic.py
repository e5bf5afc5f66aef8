"""Adapters, tokens and router logits for one layer: made up, with fixed seeds and the paper's statistics.

Not invented is how many experts the published adapters tune, on average and at most (the paper's table). Which ones
these are, and how skewed routers choose, is.
"""

from __future__ import annotations

import numpy as np
import torch

from npu_weave.residency.footprint_formula import ExpertSets
from npu_weave.residency.footprint_source import GEOMETRIES
from npu_weave.residency.footprint_synthetic import synthetic_adapters
from weave_bench.cuda.geometry import LayerShape
from weave_bench.cuda.step import Step

ADAPTERS = 20
REQUEST = 128
"""Tokens of a prompt: the paper's shortest. In decode, a token a request."""
POPULARITY = 0.5
"""Deviation of an expert's mean logit; that of a token's own part is 1."""
OWN = 1.0
"""By how much tokens of an adapter prefer its experts: these were chosen because its tokens do."""


def tuned_experts(layer: int | None = None) -> list[tuple[int, ...]]:
    """The experts that each of `ADAPTERS` adapters tunes among 64, in a layer of the ten published ones' statistics.

    Args:
        layer: of DeepSeek-V2-Lite; None for the one whose total is nearest to the mean of all. The second ten are the
            first ten again, with what they tune half of the layers on.
    """
    geometry = GEOMETRIES["deepseek-v2-lite"]
    sets: list[ExpertSets] = [experts for _, experts in synthetic_adapters(geometry)]
    layers = list(geometry.moe_layers)

    def other(one: int) -> int:
        return layers[(layers.index(one) + len(layers) // 2) % len(layers)]

    def both(one: int) -> list[tuple[int, ...]]:
        return [tuple(experts[at]) for at in (one, other(one)) for experts in sets]

    totals = {one: sum(map(len, both(one))) for one in layers}
    mean = sum(totals.values()) / len(totals)
    return both(min(layers, key=lambda one: abs(totals[one] - mean)) if layer is None else layer)


def request_slots(tokens: int, adapters: int, request: int, seed: int) -> torch.Tensor:
    """int32 ``[tokens]``: slots 1 ... `adapters` of requests of `request` tokens each.

    Requests are dealt to adapters as evenly as can be, in an order of chance: what touches most rows.
    """
    draw = np.random.default_rng(seed)
    requests = -(-tokens // request)
    dealt = np.concatenate([draw.permutation(adapters) for _ in range(-(-requests // adapters))])[:requests] + 1
    return torch.from_numpy(np.repeat(draw.permutation(dealt), request)[:tokens].astype(np.int32))


def logits(slots: torch.Tensor, shape: LayerShape, tuned: list[tuple[int, ...]], seed: int) -> torch.Tensor:
    """float32 ``[tokens, experts]``: popularity of the expert, preference of the adapter, and the token's own part.

    Args:
        tuned: of each adapter on this rank. On the other ranks it prefers as many, so that none has more of the tokens.
    """
    popularity = torch.randn(shape.experts, generator=torch.Generator().manual_seed(0)) * POPULARITY
    preference = torch.zeros(len(tuned) + 1, shape.experts)
    for slot, ids in enumerate(tuned, 1):
        preference[slot].view(shape.ranks, shape.share)[:, list(ids)] = OWN
    own = torch.randn(len(slots), shape.experts, generator=torch.Generator().manual_seed(seed))
    return own + popularity + preference[slots.long()]


def make_steps(
    shape: LayerShape,
    tuned: list[tuple[int, ...]],
    *,
    tokens: int,
    adapters: int,
    request: int,
    count: int,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Step]:
    """`count` steps with other tokens each, so that weights of one step are not in the cache for the next.

    Args:
        adapters: how many of the `tuned` ones requests use, the first; every token is of one of them.
        request: tokens of a request.
    """
    steps = []
    for number in range(count):
        seed = 1000 * tokens + 10 * adapters + number
        slots = request_slots(tokens, adapters, request, seed)
        there = torch.Generator(device).manual_seed(seed)
        hidden = torch.randn(tokens, shape.hidden, generator=there, device=device).to(dtype)
        steps.append(Step(hidden, logits(slots, shape, tuned, seed).to(device, dtype), slots.to(device)))
    return steps


def base_steps(steps: list[Step]) -> list[Step]:
    """The same tokens and logits, all of them for the base model."""
    return [Step(step.hidden, step.logits, torch.zeros_like(step.token_slots)) for step in steps]
