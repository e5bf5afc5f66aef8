"""The part ``gpu`` without a GPU: what it says it would measure, its traffic, its order and its arithmetic."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from npu_weave.residency.footprint_synthetic import PAPER_ADAPTERS
from weave_bench import gpu
from weave_bench.cuda.geometry import DEEPSEEK_V2_LITE, DEEPSEEK_V3, LayerShape, Router
from weave_bench.cuda.limits import Limits, Work, floor
from weave_bench.cuda.plan import FULL, QUICK
from weave_bench.cuda.tables import TABLES, make_table, overhead_row, parity_rows, separate_row
from weave_bench.cuda.timing import in_turn
from weave_bench.cuda.traffic import ADAPTERS, base_steps, logits, make_steps, request_slots, tuned_experts
from weave_bench.cuda.weights import rows_needed
from weave_bench.results import Spread

CPU = torch.device("cpu")
GIB = 1 << 30


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("quick", [False, True])
def test_without_a_gpu_it_says_what_it_would_measure(
    without_gpu: None, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    part = gpu.measure(quick=quick)
    assert (part.name, part.quick, list(part.tables)) == ("gpu", quick, [])
    plan = QUICK if quick else FULL
    for name, reason in zip(TABLES, part.left_out, strict=False):
        assert reason.startswith(f"{name}: ") and reason.endswith("Reason: no GPU is visible here.")
        assert f"{plan.turns} pairs" in reason
    assert all(f" {tokens}" in part.left_out[0] for tokens in (*plan.decode, *plan.prefill, *plan.adapters))
    engine = part.left_out[len(TABLES)]
    assert engine.startswith("gpu-engine: a whole engine") and engine.endswith("Reason: no GPU is visible here.")


def test_it_says_what_is_missing(without_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in (gpu.what_is_missing() or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gpu.what_is_missing() == "triton is not installed here"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert gpu.what_is_missing() is None


def test_a_layer_is_shared_by_more_ranks_until_one_fits() -> None:
    h100 = 79 * GIB
    lite, v3 = gpu.fitted(DEEPSEEK_V2_LITE, h100), gpu.fitted(DEEPSEEK_V3, h100)
    assert lite == DEEPSEEK_V2_LITE and v3 == DEEPSEEK_V3
    halved = gpu.fitted(DEEPSEEK_V3, 48 * GIB)
    assert halved is not None and halved.share == 32
    assert rows_needed(halved, gpu.tuned_here(halved)) * halved.row_bytes + gpu.ROOM <= 48 * GIB
    assert max(max(ids, default=0) for ids in gpu.tuned_here(halved)) < 32
    assert gpu.fitted(DEEPSEEK_V3, 8 * GIB) is None


def test_adapters_tune_as_many_experts_as_the_published_ones() -> None:
    tuned = tuned_experts()
    assert len(tuned) == ADAPTERS
    for ids, most in zip(tuned, [figures.most for figures in PAPER_ADAPTERS.values()] * 2, strict=True):
        assert 1 <= len(ids) <= most and len(set(ids)) == len(ids) and set(ids) <= set(range(64))
    mean = 2 * sum(figures.mean for figures in PAPER_ADAPTERS.values())
    assert abs(sum(map(len, tuned)) - mean) < 2
    assert tuned == tuned_experts() != tuned_experts(layer=1)


@pytest.mark.parametrize(("tokens", "request_tokens"), [(64, 1), (1024, 128), (300, 128), (1, 1)])
def test_requests_are_dealt_evenly(tokens: int, request_tokens: int) -> None:
    slots = request_slots(tokens, 5, request_tokens, seed=3)
    assert slots.shape == (tokens,) and slots.dtype == torch.int32
    pieces = slots.split(request_tokens)
    assert all(len(piece.unique()) == 1 for piece in pieces)
    counts = Counter(int(piece[0]) for piece in pieces)
    assert set(counts) <= set(range(1, 6))
    dealt = [counts[slot] for slot in range(1, 6)]
    assert max(dealt) - min(dealt) <= 1
    assert torch.equal(slots, request_slots(tokens, 5, request_tokens, seed=3))


def test_tokens_prefer_what_their_adapter_tunes_on_every_rank_alike() -> None:
    shape = LayerShape("small", 8, 16, 16, Router(2, "softmax", False), ranks=2)
    tuned = [(0,), (3,)]
    slots = torch.tensor([0, 1, 2], dtype=torch.int32)
    more = logits(slots, shape, tuned, seed=1) - logits(torch.zeros_like(slots), shape, tuned, seed=1)
    expected = torch.tensor([[0, 0, 0, 0] * 2, [1, 0, 0, 0] * 2, [0, 0, 0, 1] * 2], dtype=torch.float32)
    torch.testing.assert_close(more, expected)


def test_base_steps_differ_in_slots_alone() -> None:
    shape = LayerShape("small", 8, 16, 16, Router(2, "softmax", False))
    steps = make_steps(shape, [(1,)], tokens=4, adapters=1, request=1, count=2, device=CPU)
    assert not torch.equal(steps[0].hidden, steps[1].hidden)
    for step, base in zip(steps, base_steps(steps), strict=True):
        assert base.hidden is step.hidden and base.logits is step.logits
        assert step.token_slots.tolist() == [1] * 4 and base.token_slots.tolist() == [0] * 4


def test_ways_are_timed_in_turn_and_none_is_always_first() -> None:
    called: list[str] = []

    def timer(name: str) -> float:
        called.append(name)
        return float(len(called))

    times = in_turn({name: lambda name=name: timer(name) for name in "abc"}, turns=2, warm_up=1)
    assert "".join(called) == "abccbaabc"
    assert times == {"a": [6, 7], "b": [5, 8], "c": [4, 9]}


def test_the_floor_is_memory_or_arithmetic() -> None:
    shape = LayerShape("small", 8, 100, 10, Router(2, "softmax", False))
    few = Work(rows=4, assignments=2, tokens=1)
    moved = 4 * (3 * 100 * 10 * 2) + 2 * 100 * 2
    assert floor(few, shape, Limits(bytes=10, operations=1e9)) == moved / 10
    assert floor(few, shape, Limits(bytes=1e9, operations=3)) == 2 * 6 * 100 * 10 / 3


def test_overhead_is_taken_within_turns() -> None:
    times = {"base": [10.0, 20.0, 40.0], "adapters": [15.0, 30.0, 60.0]}
    work = {"base": Work(4, 8, 2), "adapters": Work(5, 8, 2)}
    row = overhead_row({"tokens": 2}, times, work, {"base": 5.0, "adapters": 6.0})
    assert row.values["time ratio"] == Spread(1.5, 1.5, 1.5, 3)
    assert row.values["row ratio"] == 1.25 and (row.values["base rows"], row.values["adapter rows"]) == (4, 5)
    over = row.values["time / rows"]
    assert isinstance(over, Spread) and over.median == pytest.approx(1.2)
    reached, base_reached = row.values["reached"], row.values["base reached"]
    assert isinstance(reached, Spread) and reached.median == pytest.approx(20)
    assert isinstance(base_reached, Spread) and base_reached.median == pytest.approx(25)
    assert set(row.values) == set(make_table("gpu-overhead", [row]).columns)


def test_a_rank_that_nothing_is_sent_to_has_no_row_ratio() -> None:
    times = {"base": [1.0], "adapters": [1.0]}
    row = overhead_row({}, times, {"base": Work(0, 0, 1), "adapters": Work(0, 0, 1)}, {"base": 1.0, "adapters": 1.0})
    assert row.values["row ratio"] is None and row.values["time / rows"] is None


def test_parity_and_separate_rows_are_of_the_pairs_measured() -> None:
    times = {"base": [2.0, 2.0], "adapters": [3.0, 4.0], "padded": [3.0, 2.0]}
    (row,) = parity_rows({"tokens": 1}, times, 5)
    assert row.labels == {"compared": "virtual / padded", "tokens": 1, "adapters": 5}
    assert row.values["ratio"] == Spread(1.5, 1.25, 1.75, 2)
    assert set(row.values) == set(make_table("gpu-parity", [row]).columns)
    rest = {"base alone": [4.0, 4.0], "merged": [6.0, 8.0]}
    others = {each.labels["compared"]: each.values["ratio"] for each in parity_rows({}, times | rest, 1)}
    assert (
        others["base tokens / base model alone"] == others["one adapter / its merged model"] == Spread(0.5, 0.5, 0.5, 2)
    )
    separate = separate_row({}, times | {"reroute": [4.0, 5.0], "separate": [6.0, 8.0]})
    assert separate.values["layers"] == Spread(2.0, 2.0, 2.0, 2)
    assert separate.values["reroute adds"] == Spread(1.0, 1.0, 1.0, 2)
    assert set(separate.values) == set(make_table("gpu-separate", [separate]).columns)
