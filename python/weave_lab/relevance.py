"""Which experts matter for a task: the two scores of ESFT (arXiv 2407.01906) and the choice by threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from weave_lab.batches import as_batch, encode_example
from weave_lab.checkpoint import ExpertChoice
from weave_lab.model import MoELanguageModel, Routing
from weave_lab.tasks.protocol import Example

Score = Literal["token", "gate"]


@dataclass(frozen=True)
class Relevance:
    """Relevance of each layer's experts to a task.

    Attributes:
        token: float64 `[layers, experts]`, share of all top-k selections that fall on the expert.
        gate: float64 `[layers, experts]`, mean gate weight of the expert, 0 where it is not selected.

    Each row sums to one. Both are means over samples of means over a sample's tokens, so long samples do not outweigh
    short ones.
    """

    token: torch.Tensor
    gate: torch.Tensor


def sample_relevance(routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
    """Token and gate score of one layer over one sample's tokens, each float64 `[experts]` summing to one."""
    tokens, experts = routing.probabilities.shape
    top_k = routing.experts.shape[1]
    chosen = routing.experts.flatten()
    token = torch.bincount(chosen, minlength=experts).double() / (tokens * top_k)
    gate = torch.zeros(experts, dtype=torch.float64).index_add_(0, chosen, routing.weights.flatten().double()) / tokens
    return token, gate


@torch.no_grad()
def measure(model: MoELanguageModel, examples: Sequence[Example]) -> Relevance:
    """Runs the base model over a task's data, one example at a time, prompt and answer, and scores its experts."""
    layers, experts = model.shape.layers, model.shape.experts
    totals = torch.zeros(2, layers, experts, dtype=torch.float64)
    for example in examples:
        ids, weights = encode_example(example)
        _, routings = model(as_batch([(ids, weights)], len(ids)).inputs)
        for layer, routing in enumerate(routings):
            token, gate = sample_relevance(routing)
            totals[0, layer] += token
            totals[1, layer] += gate
    token_scores, gate_scores = (totals / len(examples)).unbind()
    return Relevance(token_scores, gate_scores)


def select(scores: torch.Tensor, threshold: float) -> ExpertChoice:
    """The fewest top-scored experts of each layer whose scores add up to `threshold` or more.

    Args:
        scores: `[layers, experts]`, rows summing to one.
        threshold: in (0, 1].

    Returns:
        Layer -> chosen expert ids, ascending. Of equal scores the lower id goes first.
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    choice: ExpertChoice = {}
    for layer, row in enumerate(scores):
        order = row.argsort(descending=True, stable=True)
        # rounding may leave the running sum of a whole row a hair below one
        reached = row[order].cumsum(0) >= threshold - 1e-9
        count = int(reached.int().argmax()) + 1 if bool(reached.any()) else len(row)
        choice[layer] = sorted(order[:count].tolist())
    return choice
