"""What the part `steps` counts, deals and compares; nothing here is timed, and no engine is imported."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import weave_ops  # noqa: F401  (registers torch.ops.npu_weave)
from npu_weave.experts.expert_map import ExpertMap
from weave_bench.layers.allocations import tensor_allocations
from weave_bench.layers.batch import decode, make_step, prefill
from weave_bench.layers.locks import locks_of, waits_for
from weave_bench.layers.pairing import Way, microseconds, time_pair, time_round
from weave_bench.layers.rows import distinct_rows
from weave_bench.layers.traffic import EXPERTS, TOP_K, MadeUpTraffic, rows_needed, spread_layers
from weave_bench.layers.weights import fill_experts


@pytest.fixture(scope="module")
def traffic() -> MadeUpTraffic:
    return MadeUpTraffic(3, adapters=20)


def chosen(logits: torch.Tensor) -> torch.Tensor:
    return logits.topk(TOP_K, dim=-1).indices.int()


class Clock:
    """Stands still but for what is added to it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> None:
        self.now += seconds


def test_rows_are_counted_once_a_layer() -> None:
    layers = [torch.tensor([[1, 2], [2, 3]]), torch.tensor([[1, 1], [1, 1]])]
    assert distinct_rows(layers) == 3 + 1
    assert distinct_rows([]) == 0


def test_rerouted_rows_are_those_of_the_slots() -> None:
    """Two tokens that want the same expert touch one row as base tokens and two as tokens of two adapters."""
    experts = ExpertMap(2, torch.arange(8, dtype=torch.int32), torch.device("cpu"))
    experts.publish(1, {5: 8})
    experts.publish(2, {5: 9, 6: 10})
    ids = torch.tensor([[5, 1], [5, 1]], dtype=torch.int32)
    touched = {
        slots: distinct_rows([torch.ops.npu_weave.reroute(ids, torch.tensor(slots, dtype=torch.int32), experts.table)])
        for slots in ((0, 0), (1, 1), (1, 2), (0, 2))
    }
    assert touched == {(0, 0): 2, (1, 1): 2, (1, 2): 3, (0, 2): 3}


def test_twenty_adapters_have_the_published_counts_and_fit_the_kernel() -> None:
    traffic = MadeUpTraffic(26, adapters=20)
    means = {tenant.name: sum(map(len, tenant.experts)) / 26 for tenant in traffic.tenants}
    assert means["gate-intent"] == pytest.approx(9.5, abs=0.02)
    assert means["gate-intent 2"] == means["gate-intent"]
    assert max(rows_needed(traffic.tenants)) + EXPERTS <= 372
    first, second = (next(t for t in traffic.tenants if t.name == name) for name in ("token-law", "token-law 2"))
    assert [len(experts) for experts in first.experts] == [len(experts) for experts in second.experts]
    assert first.experts != second.experts


def test_tokens_want_the_tuned_experts_of_their_adapter(traffic: MadeUpTraffic) -> None:
    tenant = next(number for number, each in enumerate(traffic.tenants) if each.name == "gate-intent")
    tuned = traffic.tenants[tenant].experts[1]
    own, other = (
        chosen(torch.from_numpy(traffic.logits(number, 2000, np.random.default_rng(1))[1]))
        for number in (tenant, tenant + 1)
    )
    share = [torch.isin(ids, torch.tensor(tuned)).float().mean().item() * EXPERTS / len(tuned) for ids in (own, other)]
    assert share[0] > 1.5 > share[1]


def test_skew_touches_fewer_experts_than_chance(traffic: MadeUpTraffic) -> None:
    draw = np.random.default_rng(2)
    counts = [distinct_rows([chosen(torch.from_numpy(traffic.logits(0, 32, draw)[0]))]) for _ in range(100)]
    by_chance = EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** 32)
    assert 54 < np.mean(counts) < by_chance - 1


@pytest.mark.parametrize(("count", "of", "meant"), [(1, 26, [13]), (2, 26, [6, 19]), (26, 26, list(range(26)))])
def test_measured_layers_are_spread_over_the_model(count: int, of: int, meant: list[int]) -> None:
    assert spread_layers(count, of) == meant


def test_requests_are_dealt_evenly_over_adapters(traffic: MadeUpTraffic) -> None:
    step = make_step(traffic, decode(32), 5, seed=3)
    dealt = np.bincount(step.revisions)
    assert dealt[0] == 0 and sorted(dealt[1:]) == [6, 6, 6, 7, 7]
    assert step.hidden.shape == (32, 2048) and [tuple(each.shape) for each in step.logits] == [(32, EXPERTS)] * 3
    assert not step.of_base.any()


def test_a_step_is_the_same_at_every_call_and_another_for_another_seed(traffic: MadeUpTraffic) -> None:
    one, same, other = (make_step(traffic, prefill(128), 20, seed) for seed in (1, 1, 2))
    assert torch.equal(one.hidden, same.hidden) and torch.equal(one.logits[2], same.logits[2])
    assert not torch.equal(one.logits[2], other.logits[2])
    assert one.tokens.sum() == 128 == len(one.hidden)


@pytest.mark.parametrize("swap", [False, True])
def test_a_pair_is_told_by_its_ways_whichever_goes_first(swap: bool) -> None:
    clock, order = Clock(), []

    def way(name: str, seconds: float) -> Way:
        return Way(lambda: clock.takes(50.0), lambda: (order.append(name), clock.takes(seconds)))

    found = time_pair(way("a", 0.002), way("b", 0.003), swap=swap, between=lambda: clock.takes(100.0), clock=clock)
    assert found == pytest.approx((2.0, 3.0))
    assert order == (["b", "a"] if swap else ["a", "b"])


def test_a_round_begins_where_it_is_told_and_goes_through_all() -> None:
    clock, order = Clock(), []

    def way(number: int) -> Way:
        return Way(lambda: clock.takes(50.0), lambda: (order.append(number), clock.takes(number * 1e-3)))

    found = time_round([way(1), way(2), way(3)], begin=1, between=lambda: clock.takes(100.0), clock=clock)
    assert found == pytest.approx([1.0, 2.0, 3.0]) and order == [2, 3, 1]


def test_microseconds_are_those_of_one_call() -> None:
    """Of the usual one: somebody else had the processor during the third."""
    clock, seconds = Clock(), iter([5e-6, 4e-6, 9e-3, 5e-6, 6e-6])
    assert microseconds(lambda: clock.takes(next(seconds)), 5, clock) == pytest.approx(5.0)


def test_no_two_experts_have_the_same_weights() -> None:
    weight = torch.empty(4, 8, 16, dtype=torch.bfloat16)
    fill_experts(weight, seed=1)
    assert all(not torch.equal(weight[one], weight[other]) for one in range(4) for other in range(one))
    again = torch.empty_like(weight)
    fill_experts(again, seed=1)
    assert torch.equal(weight, again)


def test_allocations_of_tensors_are_seen() -> None:
    out = torch.empty(100)
    assert tensor_allocations(lambda: torch.mul(out, out, out=out)) == []
    assert tensor_allocations(lambda: [torch.empty(100), torch.empty(50)]) == [400, 200]


class Guarded:
    """Something of this package with a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_waiting_for_a_lock_is_seen() -> None:
    thing = Guarded()
    package = Guarded.__module__.split(".")[0]
    assert any(lock is thing.lock for lock in locks_of(package))
    assert not waits_for([thing.lock], lambda: None)
    assert waits_for([thing.lock], lambda: thing.lock.acquire(timeout=0.5), patience=0.1)


def test_what_fails_beside_held_locks_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        waits_for([], lambda: 1 / 0)
