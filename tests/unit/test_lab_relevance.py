"""Expert relevance and selection against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from weave_lab.model import ModelShape, MoELanguageModel, Routing
from weave_lab.relevance import measure, sample_relevance, select
from weave_lab.tasks import by_name, generate


def test_scores_of_a_sample_by_hand():
    # three tokens, four experts, top-2; expert 3 is never chosen
    routing = Routing(
        probabilities=torch.full((3, 4), 0.25),
        experts=torch.tensor([[0, 1], [0, 2], [0, 1]]),
        weights=torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.9, 0.1]]),
    )
    token, gate = sample_relevance(routing)
    assert token.tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])
    assert gate.tolist() == pytest.approx([2.15 / 3, 0.35 / 3, 0.5 / 3, 0])


def test_select_takes_the_fewest_top_experts_that_reach_the_threshold():
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert select(scores, 0.4) == {0: [1], 1: [0, 1]}
    assert select(scores, 0.5) == {0: [1, 3], 1: [0, 1]}
    assert select(scores, 0.75) == {0: [1, 2, 3], 1: [0, 1, 2]}
    assert select(scores, 1.0) == {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}


def test_select_prefers_the_lower_id_among_equals():
    assert select(torch.tensor([[0.2, 0.3, 0.3, 0.2]]), 0.3) == {0: [1]}


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1])
def test_select_refuses_a_senseless_threshold(threshold):
    with pytest.raises(ValueError, match="threshold"):
        select(torch.tensor([[0.5, 0.5]]), threshold)


def test_measure_averages_over_samples_not_tokens():
    torch.manual_seed(0)
    model = MoELanguageModel(ModelShape(hidden=32, layers=2, experts=8, top_k=2, expert_width=32, heads=1, kv_heads=1))
    short, long = sorted(generate(by_name("cipher"), 40), key=lambda example: len(example.prompt))[::39]
    assert len(long.prompt) > len(short.prompt)
    both = measure(model, [short, long])
    alone = [measure(model, [example]) for example in (short, long)]
    torch.testing.assert_close(both.token, (alone[0].token + alone[1].token) / 2)
    torch.testing.assert_close(both.gate, (alone[0].gate + alone[1].gate) / 2)
    for scores in (both.token, both.gate):
        torch.testing.assert_close(scores.sum(1), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)
