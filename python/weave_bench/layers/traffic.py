"""Adapters, and how the tokens of each are routed: what steps are made of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from npu_weave.residency.footprint_synthetic import PAPER_ADAPTERS, synthetic_adapters
from npu_weave.residency.plan_base import base_from_config
from npu_weave.residency.plan_paper import PAPER_MODEL

Logits = npt.NDArray[np.float32]

EXPERTS, TOP_K = 64, 6
SKEW = 0.5
"""Of made-up routing: the expert of rank r is wanted as r ** -SKEW. A batch of 32 tokens of one domain then touches 58
experts of 64, and the tuned experts of an adapter get 0.2 to 0.3 of its tokens' choices; in the real traces of two
domains of the ESFT adapters it is 53 to 55, and 0.22."""

ORDER = (
    "gate-math", "token-intent", "gate-law", "token-summary", "token-translation",
    "gate-intent", "token-math", "gate-summary", "token-law", "gate-translation",
)  # fmt: skip
"""Of the paper's adapters: the first five tune 6.0 experts a layer on average, all ten 6.5."""


class Tenant(NamedTuple):
    """An adapter: its name, and the experts it tunes in each measured layer, ascending."""

    name: str
    experts: Sequence[tuple[int, ...]]


class Traffic(Protocol):
    """Where adapters and the routing of their tokens come from.

    Attributes:
        source: in words.
        tenants: the adapters, in the order in which they are added.
    """

    source: str
    tenants: Sequence[Tenant]

    def logits(self, tenant: int, tokens: int, draw: np.random.Generator) -> list[Logits]:
        """Router logits of one request: for each layer float32 ``[tokens, EXPERTS]``."""


def spread_layers(count: int, of: int) -> list[int]:
    """`count` positions among `of`, evenly spread."""
    return [(2 * position + 1) * of // (2 * count) for position in range(count)]


class MadeUpTraffic:
    """The ten adapters of the paper twice, by their published counts, and skewed routing of its own for each.

    Which experts an adapter tunes is made up; its tokens want these the most, as the experts that ESFT tunes are the
    ones that a domain's tokens choose most. The choice of one token is a draw without replacement (Plackett-Luce).
    """

    source = "made up: published counts of tuned experts, routing with a power law over experts"

    def __init__(self, layers: int, *, adapters: int) -> None:
        geometry = base_from_config(PAPER_MODEL, title="DeepSeek-V2-Lite").geometry
        sets = dict(synthetic_adapters(geometry))
        measured = [geometry.moe_layers[at] for at in spread_layers(layers, len(geometry.moe_layers))]
        assert set(ORDER) == set(PAPER_ADAPTERS), "the paper's ten"
        tenants = []
        self._wish: list[list[Logits]] = []
        for number in range(adapters):
            name, again = ORDER[number % len(ORDER)], number // len(ORDER)
            shuffle = random.Random(f"{name} {again}")
            experts = []
            for layer in measured:
                tuned = sets[name][layer]
                experts.append(tuple(sorted(shuffle.sample(range(EXPERTS), len(tuned)))) if again else tuple(tuned))
            tenants.append(Tenant(f"{name} {again + 1}" if again else name, experts))
            self._wish.append([_wish(tuned, shuffle) for tuned in experts])
        self.tenants: Sequence[Tenant] = tenants

    def logits(self, tenant: int, tokens: int, draw: np.random.Generator) -> list[Logits]:
        """See `Traffic.logits`."""
        return [(wish + draw.gumbel(size=(tokens, EXPERTS))).astype(np.float32) for wish in self._wish[tenant]]


def _wish(tuned: Sequence[int], shuffle: random.Random) -> Logits:
    """Log of how much each expert is wanted: a power law, the tuned ones first, in an order of chance otherwise."""
    first, others = list(tuned), [expert for expert in range(EXPERTS) if expert not in tuned]
    shuffle.shuffle(first)
    shuffle.shuffle(others)
    wish = np.empty(EXPERTS, dtype=np.float32)
    wish[first + others] = -SKEW * np.log(np.arange(1, EXPERTS + 1))
    return wish


def rows_needed(tenants: Sequence[Tenant]) -> list[int]:
    """Adapter rows of each layer when all `tenants` are loaded and none of their experts are alike."""
    return [sum(map(len, layer)) for layer in zip(*(tenant.experts for tenant in tenants), strict=True)]
