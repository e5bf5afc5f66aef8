"""The layer that the part ``gpu`` measures: under Triton's interpreter here, and compiled for GPUs that are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from fixtures.interpreted_moe_layer import (
    DECODE_PLAN,
    SHAPE,
    SHARED,
    SMALL_PLAN,
    SPARE_ROWS,
    TUNED,
    Call,
    Sizes,
    disagreeing,
    far_rows_product,
    layer_error,
    measured,
    process,
    shared_memory,
    sorted_blocks,
    without_slot,
    without_tokens,
)

from weave_bench.cuda.geometry import LayerShape
from weave_bench.cuda.plan import Plan
from weave_bench.results import Spread

EMULATED = pytest.mark.skipif(torch.cuda.is_available(), reason="a real libcuda is loaded: see test_driver_cuda")


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Call]:
    with process(interpreted=True) as call:
        yield call


@pytest.mark.parametrize("tile", ["FEW", "SOME", "MANY"])
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(tokens=1, hidden=40, width=24, top_k=1, rows=3, used=1),
        Sizes(tokens=7, hidden=96, width=40, top_k=3, rows=12, used=5),
        Sizes(tokens=70, hidden=200, width=136, top_k=2, rows=9, used=3),  # blocks of several tiles a row
        Sizes(tokens=33, hidden=128, width=64, top_k=6, rows=30, used=22),
    ],
)
def test_it_equals_a_loop_over_tokens_and_reads_no_row_without_any(interpreted: Call, sizes: Sizes, tile: str) -> None:
    assert interpreted(layer_error, sizes, torch.float32, tile) < 1e-5
    assert interpreted(layer_error, sizes, torch.float16, tile) < 2e-3


def test_rows_of_other_ranks_are_left_to_them(interpreted: Call) -> None:
    sizes = Sizes(tokens=23, hidden=72, width=40, top_k=4, rows=14, used=9)
    assert interpreted(layer_error, sizes, torch.float32, "FEW", True) < 1e-5


def test_a_token_without_a_slot_is_nan_and_alone(interpreted: Call) -> None:
    found = interpreted(without_slot)
    assert found.isnan().any(dim=1).tolist() == [False, True, False] and bool(found[1].isnan().all())
    assert torch.equal(found[0], found[2])


def test_no_tokens_are_no_work(interpreted: Call) -> None:
    assert interpreted(without_tokens) == (0, 16)


def test_offsets_do_not_overflow(interpreted: Call) -> None:
    found, meant = interpreted(far_rows_product)
    assert torch.equal(found, meant)


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([[3, 1], [1, 0], [3, 7], [-1, 9]]),  # 9 and -1 are other ranks'
        torch.arange(8).view(4, 2),
        torch.zeros(300, 8, dtype=torch.int64),  # more than one look, one row
        torch.randint(0, 8, (1500, 1), generator=torch.Generator().manual_seed(0)),
    ],
)
def test_every_assignment_is_in_one_block_of_its_row(interpreted: Call, rows: torch.Tensor) -> None:
    blocks, room = interpreted(sorted_blocks, rows.int(), 8, 16)
    flat = rows.flatten().tolist()
    assert len(blocks) <= room
    assert [row for row, _ in blocks] == sorted(row for row, _ in blocks)
    assert all(flat[one] == row for row, taken in blocks for one in taken)
    assert all(taken and len(taken) <= 16 and taken == sorted(taken) for _, taken in blocks)
    assert sorted(one for _, taken in blocks for one in taken) == [at for at, row in enumerate(flat) if 0 <= row < 8]
    needed = Counter(row for row in flat if 0 <= row < 8)
    assert len(blocks) == sum(-(-count // 16) for count in needed.values())


def test_there_is_room_for_the_worst_spread(interpreted: Call) -> None:
    """One row has all but one place of its last block empty, as has every other."""
    rows = torch.tensor([0] * 17 + [1] + [2] + [3] * 33, dtype=torch.int32).view(-1, 1)
    blocks, room = interpreted(sorted_blocks, rows, 4, 16)
    assert len(blocks) == 7 == room


@pytest.mark.parametrize(
    ("shape", "driver", "plan"),
    [(SHAPE, "host", SMALL_PLAN), pytest.param(SHARED, "cuda", DECODE_PLAN, marks=EMULATED)],
    ids=["host", "emulated libcuda"],
)
def test_a_layer_is_measured_over_virtual_memory_with_holes(
    interpreted: Call, shape: LayerShape, driver: str, plan: Plan
) -> None:
    error, mapped, rows, tables = interpreted(measured, shape, driver, plan)
    assert error < 1e-5
    assert (mapped, rows) == (shape.share + sum(map(len, TUNED)), shape.share + SPARE_ROWS * len(TUNED))
    of_each = len(list(plan.cases())) // 2
    assert len(tables["gpu-overhead"]) == 2 * of_each
    assert Counter(row.labels["compared"] for row in tables["gpu-parity"]) == {
        "virtual / padded": 2 * of_each,
        "base tokens / base model alone": of_each,
        "one adapter / its merged model": of_each,
    }
    assert [row.labels["adapters"] for row in tables["gpu-separate"]] == [4] * of_each
    for row in tables["gpu-overhead"]:
        assert row.values["adapters"] == Spread(8.0, 8.0, 8.0, plan.turns)
        assert row.labels["adapters"] == 4 or row.values["row ratio"] == 1


def test_ways_that_differ_are_not_compared(interpreted: Call) -> None:
    with pytest.raises(RuntimeError, match="'adapters' and 'padded'"):
        interpreted(disagreeing)


@pytest.mark.parametrize(("capability", "most"), [(80, 163 << 10), (90, 227 << 10)])
def test_kernels_compile_and_fit_into_shared_memory(
    capability: int, most: int, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with process(interpreted=False) as call:
        found = call(shared_memory, capability)
    assert len(found) == 15
    assert {name: size for name, size in found.items() if size > most} == {}
