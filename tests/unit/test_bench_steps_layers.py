"""What surrounds the timed layers: their number, equal answers, rerouting in parts. Needs vLLM, starts none."""

from __future__ import annotations

import pytest
import torch
from fixtures.plain_layers import EXPERTS, make_bank, no_bank_outlives_its_test, packed
from fixtures.token_slots import fill

from npu_weave.errors import IntegrityError
from npu_weave.experts.routing import LayerRouting
from npu_weave.experts.token_slots import TokenSlots
from weave_bench.layers.bench import FULL, MEMORY_LEFT, QUICK, check_equal, layers_that_fit, memory_needed
from weave_bench.layers.engine_layers import ROW_BYTES
from weave_bench.layers.parity import compared
from weave_bench.layers.separate import reroute_in_parts

pytestmark = pytest.mark.engine
__all__ = ["no_bank_outlives_its_test"]

CPU = torch.device("cpu")


def test_memory_is_that_of_all_rows() -> None:
    """Two layers with 100 adapter rows each, two of base experts alone, two virtual copies of one and three padded."""
    assert memory_needed(2, 100, 30) == (2 * 164 + 2 * 64 + (2 + 3) * 94) * ROW_BYTES
    assert ROW_BYTES == 3 * 2048 * 1408 * 2


@pytest.mark.parametrize(("more", "meant"), [(-1, 1), (0, 2), (1 << 40, 3)])
def test_as_many_layers_as_fit_are_measured(more: int, meant: int) -> None:
    assert layers_that_fit(3, 100, 30, available=memory_needed(2, 100, 30) + MEMORY_LEFT + more) == meant


def test_at_least_one_layer_is_measured() -> None:
    assert layers_that_fit(3, 100, 30, available=0) == 1


def test_the_full_run_has_what_was_asked_for() -> None:
    assert FULL.pairs >= 60 and set(FULL.adapters) == {1, 5, 10, 20} and set(FULL.decode) == {1, 4, 16, 32}
    assert {shape.tokens for shape in FULL.shapes if shape.kind == "prefill"} == {128, 256}
    assert set(QUICK.adapters) <= set(FULL.adapters) and QUICK.pairs < FULL.pairs


def test_rerouting_in_parts_is_rerouting() -> None:
    bank = make_bank()
    bank.install(1, packed({0: [0, 2]}, seed=1))
    bank.install(2, packed({0: [2, 3]}, seed=2))
    slots = TokenSlots(16, CPU)
    routing = LayerRouting(bank.layers[0], slots)
    fill(slots, [at % 3 for at in range(12)])
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(EXPERTS, generator=generator)[:2] for _ in range(14)]).int()
    rows = reroute_in_parts(routing, ids)
    assert rows.dtype == ids.dtype and torch.equal(rows, routing.reroute(ids))
    assert (rows >= EXPERTS).any()
    with pytest.raises(IntegrityError, match="TOKENS_MISALIGNED"):
        reroute_in_parts(routing, ids[:5])


def test_different_answers_are_not_timed() -> None:
    one = torch.ones(3)
    check_equal([one], [one.clone()], "same")
    with pytest.raises(RuntimeError, match="these: answers differ"):
        check_equal([one, one], [one, one + 1e-6], "these")


def test_noise_is_what_copies_of_the_same_differ_by() -> None:
    """Each round: npu-weave over one memory, and three copies; the third lies in slow memory."""
    row = compared({"step": "decode"}, [([10.0], [10.0, 10.0, 12.5]), ([20.0], [20.0, 20.0, 25.0])])
    ratio, noise = row.values["ratio"], row.values["noise"]
    assert (ratio.median, ratio.repeats) == (1.0, 6) and (noise.median, noise.repeats) == (1.0, 12)
    assert (noise.low, noise.high) == pytest.approx((0.8, 1.25)), "a third each 0.8, 1 and 1.25"


def test_copies_of_npu_weaves_own_memory_are_noise_too() -> None:
    row = compared({"step": "decode"}, [([10.0, 20.0], [10.0, 10.0])])
    ratio, noise = row.values["ratio"], row.values["noise"]
    assert (ratio.median, ratio.repeats) == (1.5, 4) and noise.repeats == 4
    assert (noise.low, noise.high) == (0.875, 1.25), "of 0.5, 1, 1 and 2"
