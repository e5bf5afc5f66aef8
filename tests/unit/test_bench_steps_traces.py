"""Recorded routing and configurations of ESFT adapters, from files made up here in the form of the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from weave_bench.layers.traces import RecordedTraffic, fewest
from weave_bench.layers.traffic import EXPERTS, TOP_K

LAYERS, TOKENS = 4, 20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two tasks. Task a tunes experts (l, l + 1) in model layer l, and prefers expert 7; b prefers expert 9."""
    draw = np.random.default_rng(0)
    for task, favourite in (("a", 7), ("b", 9)):
        ids = np.stack([draw.permutation(EXPERTS)[:TOP_K] for _ in range(TOKENS * LAYERS)]).astype(np.uint8)
        gates = draw.random((TOKENS, LAYERS, TOP_K)).astype(np.float16)
        np.savez(tmp_path / f"routing_{task}.npz", expert_ids=ids.reshape(TOKENS, LAYERS, TOP_K), gate_weights=gates)
        layers = [str(layer) for layer in range(1, LAYERS + 1)]
        tuned = {layer: [int(layer) + 1, int(layer)] for layer in layers}
        scores = {
            layer: {str(expert): 0.2 if expert == favourite else 0.001 for expert in range(64)} for layer in layers
        }
        (tmp_path / f"expert_cfg_token_{task}.json").write_text(json.dumps({"experts": tuned}))
        (tmp_path / f"expert_scores_{task}.json").write_text(json.dumps({"gate_scores": scores}))
    return tmp_path


def test_adapters_are_the_configured_ones_then_repeated(directory: Path) -> None:
    traffic = RecordedTraffic(directory, 2, adapters=6)
    assert [tenant.name for tenant in traffic.tenants] == [
        "token-a", "token-b", "gate-a", "gate-b", "token-a 2", "token-b 2",
    ]  # fmt: skip
    assert traffic.tenants[0].experts == [(2, 3), (4, 5)], "places 1 and 3 of the trace are model layers 2 and 4"
    assert traffic.tenants[2].experts == [(7,), (7,)]
    assert traffic.tenants[4].experts == traffic.tenants[0].experts
    assert "a, b" in traffic.source


def test_top_k_of_the_logits_is_what_was_recorded(directory: Path) -> None:
    traffic = RecordedTraffic(directory, LAYERS, adapters=2)
    with np.load(directory / "routing_b.npz") as trace:
        ids = torch.from_numpy(trace["expert_ids"].astype(np.int64))
    logits = traffic.logits(1, TOKENS, np.random.default_rng(1))
    assert len(logits) == LAYERS
    for layer, found in enumerate(logits):
        top = torch.from_numpy(found).to(torch.bfloat16).topk(TOP_K, dim=-1).indices
        assert torch.equal(top.sort().values, ids[:, layer].sort().values)


def test_tokens_of_a_request_are_consecutive(directory: Path) -> None:
    traffic = RecordedTraffic(directory, LAYERS, adapters=1)
    whole = traffic.logits(0, TOKENS, np.random.default_rng(1))[0]
    part = traffic.logits(0, 5, np.random.default_rng(2))[0]
    assert any(np.array_equal(whole[first : first + 5], part) for first in range(TOKENS - 4))


def test_a_directory_without_traces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no routing_"):
        RecordedTraffic(tmp_path, 2, adapters=1)


@pytest.mark.parametrize(
    ("share", "meant"), [(0.4, [3]), (0.5, [3]), (0.51, [3, 0]), (0.9, [3, 0, 1]), (2.0, [3, 0, 1, 2])]
)
def test_the_fewest_experts_that_reach_a_share(share: float, meant: list[int]) -> None:
    assert fewest({"0": 0.3, "1": 0.15, "2": 0.05, "3": 0.5}, share) == meant
