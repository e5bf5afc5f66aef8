"""Adapters, tokens and router logits for one layer: made up, with fixed seeds and the paper's statistics.

What is known of real traffic and not invented: how many experts the published adapters tune (the paper's table), and
that arrivals fall on adapters by a power law. Which experts these are and how skewed routers choose is invented.
"""

from __future__ import annotations

import numpy as np
import torch

from npu_weave.residency.footprint_formula import ExpertSets
from npu_weave.residency.footprint_source import GEOMETRIES
from npu_weave.residency.footprint_synthetic import synthetic_adapters
from weave_bench.cuda.geometry import LayerShape
from weave_bench.cuda.layer import Step

ADAPTERS = 20
ALPHA = 0.5
"""Shape of the shares: 1 is uniform, less is more skewed (the paper's alpha)."""
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


def shares(adapters: int, alpha: float = ALPHA) -> np.ndarray:
    """float64 ``[adapters]``: each adapter's share of requests, descending, from a power law of shape `alpha`."""
    edges: np.ndarray = (np.arange(adapters + 1) / adapters) ** alpha
    return np.diff(edges)


def request_slots(tokens: int, adapters: int, request: int, seed: int) -> torch.Tensor:
    """int32 ``[tokens]``: slots 1 ... `adapters` of requests of `request` tokens each, drawn by `shares`."""
    draw = np.random.default_rng(seed)
    slots = draw.choice(adapters, size=-(-tokens // request), p=shares(adapters)) + 1
    return torch.from_numpy(np.repeat(slots, request)[:tokens].astype(np.int32))


def logits(slots: torch.Tensor, shape: LayerShape, tuned: list[tuple[int, ...]], seed: int) -> torch.Tensor:
    """float32 ``[tokens, experts]``: popularity of the expert, preference of the adapter, and the token's own part."""
    popularity = torch.randn(shape.experts, generator=torch.Generator().manual_seed(0)) * POPULARITY
    preference = torch.zeros(len(tuned) + 1, shape.experts)
    for slot, ids in enumerate(tuned, 1):
        preference[slot, list(ids)] = OWN
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
        adapters: how many of the `tuned` ones requests use; every token is of one of them.
    """
    steps = []
    for number in range(count):
        seed = 1000 * tokens + 10 * adapters + number
        slots = request_slots(tokens, adapters, request, seed)
        hidden = torch.randn(tokens, shape.hidden, generator=torch.Generator().manual_seed(seed))
        routed = logits(slots, shape, tuned, seed)
        steps.append(Step(hidden.to(device, dtype), routed.to(device, dtype), slots.to(device)))
    return steps


def base_steps(steps: list[Step]) -> list[Step]:
    """The same tokens and logits, all of them for the base model."""
    return [Step(step.hidden, step.logits, torch.zeros_like(step.token_slots)) for step in steps]
