"""Made-up sets of experts with the statistics of the adapters in the ExpertWeave paper (arXiv 2508.17624)."""

from __future__ import annotations

import random
from typing import NamedTuple

from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.residency.footprint_formula import ExpertSets


class ExpertStatistics(NamedTuple):
    """Tuned experts a layer, over the MoE layers of DeepSeek-V2-Lite."""

    most: int
    mean: float


PAPER_ADAPTERS: dict[str, ExpertStatistics] = {
    "gate-math": ExpertStatistics(12, 7.04),
    "gate-intent": ExpertStatistics(12, 9.50),
    "gate-summary": ExpertStatistics(11, 7.73),
    "gate-law": ExpertStatistics(12, 7.35),
    "gate-translation": ExpertStatistics(13, 4.69),
    "token-math": ExpertStatistics(9, 6.12),
    "token-intent": ExpertStatistics(8, 7.12),
    "token-summary": ExpertStatistics(8, 5.15),
    "token-law": ExpertStatistics(10, 6.58),
    "token-translation": ExpertStatistics(6, 3.85),
}


def synthetic_adapters(geometry: MoEGeometry) -> tuple[tuple[str, ExpertSets], ...]:
    """Ten adapters whose largest and mean number of experts a layer are the paper's; the same at every call.

    Which layers have many and which experts they are is made up: the paper tells neither. The geometry must have at
    least 13 experts.
    """
    return tuple((name, _expert_sets(name, figures, geometry)) for name, figures in PAPER_ADAPTERS.items())


def _expert_sets(name: str, figures: ExpertStatistics, geometry: MoEGeometry) -> ExpertSets:
    draw = random.Random(name)
    layers = geometry.moe_layers
    counts = dict.fromkeys(layers, 1)
    counts[draw.choice(layers)] = figures.most
    missing = round(figures.mean * len(layers)) - sum(counts.values())
    for _ in range(missing):
        layer = draw.choice([layer for layer in layers if counts[layer] < figures.most])
        counts[layer] += 1
    experts = range(geometry.num_experts)
    return {layer: tuple(sorted(draw.sample(experts, count))) for layer, count in counts.items()}
