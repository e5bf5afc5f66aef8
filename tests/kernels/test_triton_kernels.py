"""The Triton kernels against the reference: under Triton's interpreter, and, where there is a GPU, compiled for it.

Without a GPU no tests are made for one here. That the kernels compile for one is tested in `test_triton_backend`.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fixtures.gating_cases import GatingCase, check_gating, gating_cases
from fixtures.triton_interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from weave_ops import gating_reference, reference
from weave_ops.triton import MODULE_OF

Kernels = Callable[..., tuple[Any, tuple[Any, ...]]]
"""Operator name and arguments -> what it returns, and the arguments afterwards; all on the CPU."""
NAN, INF = float("nan"), float("inf")
DEVICES = ["interpreter"] + ([pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else [])


def moved(arguments: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    """The arguments with their tensors on `device`, strides and shared memory kept."""
    storages: dict[int, torch.Tensor] = {}

    def move(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            elements = storage.nbytes() // tensor.element_size()
            whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage, 0, (elements,))
            storages[storage.data_ptr()] = whole.to(device)
        return storages[storage.data_ptr()].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    return tuple(move(value) if isinstance(value, torch.Tensor) else value for value in arguments)


def on_cuda(operator: str, *arguments: Any, **options: Any) -> tuple[Any, tuple[Any, ...]]:
    """By way of the dispatcher, unless there are options, which only the function behind it takes."""
    there = moved(arguments, "cuda")
    if options:
        result = getattr(importlib.import_module(MODULE_OF[operator]), operator)(*there, **options)
    else:
        result = getattr(torch.ops.npu_weave, operator)(*there)
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, (result, there))


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Kernels]:
    with Interpreter() as interpreter:
        yield interpreter.call


@pytest.fixture(scope="module", params=DEVICES)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return on_cuda if request.param == "cuda" else request.getfixturevalue("interpreted")


def int32(*values: object) -> torch.Tensor:
    return torch.tensor(*values, dtype=torch.int32)


def on_a_grid(*shape: int) -> torch.Tensor:
    """Logits of 25 values: two are the same, or differ by far more than rounding can."""
    return torch.randint(-12, 13, shape, generator=torch.Generator().manual_seed(7)) / 4


def numbers(end: int, *shape: int) -> torch.Tensor:
    """int32, from 0 up to `end`."""
    return torch.randint(0, end, shape, generator=torch.Generator().manual_seed(7), dtype=torch.int32)


def strided(draw: st.DrawFn, whole: torch.Tensor) -> torch.Tensor:
    """The same matrix, with other strides and perhaps with gaps."""
    row_step, column_step = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 3), (2, 2)]))
    rows, columns = whole.shape
    wide = whole.new_zeros(rows * row_step, columns * column_step)
    if draw(st.booleans()):
        wide = wide.t().contiguous().t()
    return wide[::row_step, ::column_step].copy_(whole)


# --- gating_reroute


def gating(logits: torch.Tensor, top_k: int, **how: Any) -> tuple[Any, ...]:
    """Arguments of ``gating_reroute``, the plain ones where `how` names no other."""
    experts = logits.shape[-1]
    how = {
        "correction_bias": None, "scoring": "softmax", "renormalize": False, "n_group": 1, "topk_group": 1,
        "scale": 1.0, "slots": torch.zeros(logits.shape[0], dtype=torch.int32),
        "table": torch.arange(experts, dtype=torch.int32)[None],
    } | how  # fmt: skip
    return (
        logits, how["correction_bias"], top_k, how["scoring"], how["renormalize"], how["n_group"], how["topk_group"],
        how["scale"], how["slots"], how["table"],
    )  # fmt: skip


def assert_as_reference(kernels: Kernels, arguments: tuple[Any, ...], **options: Any) -> None:
    expected_weights, expected_ids = gating_reference.gating_reroute(*arguments)
    (weights, ids), after = kernels("gating_reroute", *arguments, **options)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    assert weights.is_contiguous() and ids.is_contiguous()
    torch.testing.assert_close(ids, expected_ids, rtol=0, atol=0)
    torch.testing.assert_close(weights, expected_weights, rtol=2e-6, atol=0, equal_nan=True)
    for was, now in zip(arguments, after, strict=True):
        assert not isinstance(was, torch.Tensor) or torch.equal(bits(was), bits(now))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@settings(max_examples=60)
@given(case=gating_cases(most_tokens=6))
def test_gating_equals_the_reference(kernels: Kernels, case: GatingCase) -> None:
    check_gating(case, lambda *arguments: kernels("gating_reroute", *arguments)[0])


@settings(max_examples=20)
@given(data=st.data())
def test_every_argument_may_have_any_strides(kernels: Kernels, data: st.DataObject) -> None:
    """And token_slots may go on after the last token, with anything."""
    logits, bias = on_a_grid(5, 24), numbers(3, 24, 1) * 4.0
    slots, table = int32([[1], [0], [2], [1], [0], [-1], [99]]), numbers(999, 3, 24)
    logits, bias, slots, table = (strided(data.draw, each) for each in (logits, bias, slots, table))
    how = {"correction_bias": bias[:, 0], "scoring": "sigmoid", "renormalize": True, "n_group": 2, "topk_group": 1}
    assert_as_reference(kernels, gating(logits, 4, slots=slots[:, 0], table=table, **how))


@pytest.mark.parametrize("size", [1, 2, 7, 8])
@pytest.mark.parametrize("n_group", [3, 5, 6])
def test_groups_of_any_number_and_size(kernels: Kernels, n_group: int, size: int) -> None:
    """Neither a power of two: no lane that is left over may count as a group or as an expert."""
    logits, bias = on_a_grid(3, n_group * size), numbers(3, n_group * size) * 4.0 - 12.0
    for scoring, biased in itertools.product(gating_reference.SCORINGS, [False] + [True] * (size > 1)):
        how = {"scoring": scoring, "n_group": n_group, "topk_group": 2, "correction_bias": bias if biased else None}
        assert_as_reference(kernels, gating(logits, 2 * size, **how))


@pytest.mark.parametrize("experts", [64, 160, 512])
def test_any_number_of_programs_goes_through_all_tokens(kernels: Kernels, experts: int) -> None:
    """One token, full blocks of tokens, and one token more: 512 lanes make a block."""
    block = 512 // (256 if experts == 160 else experts)
    table = numbers(999, 4, experts)
    for tokens, programs in [(1, 1), (block, 1), (block + 1, 1), (block + 1, 2), (3 * block + 1, 2)]:
        logits = on_a_grid(tokens, experts)
        how = {"n_group": 8, "topk_group": 3} if experts == 160 else {}
        slots = torch.arange(tokens, dtype=torch.int32) % 4
        assert_as_reference(kernels, gating(logits, 4, slots=slots, table=table, **how), programs=programs)


@pytest.mark.parametrize(
    "how", [{}, {"n_group": 4, "topk_group": 2}, {"n_group": 4, "topk_group": 2, "bias": 1}], ids=str
)
@pytest.mark.parametrize("scoring", gating_reference.SCORINGS)
def test_nan_and_infinities_are_ranked_and_weighed_as_by_the_reference(
    kernels: Kernels, scoring: str, how: dict[str, int]
) -> None:
    """Every pair of special logits, in one group and in two; with a bias, every one of those besides."""
    specials = [NAN, INF, -INF, 0.0, 100.0, -100.0]
    logits = torch.tensor([0.5, -1.0, 0.25, 2.0, 0.5, -0.75, 1.0, 0.0, 1.5, -2.0, 3.0, 0.125]).repeat(74, 1)
    for token, (first, second) in enumerate(itertools.product(specials, specials)):
        logits[token, 1], logits[token, 2] = first, second
        logits[36 + token, 1], logits[36 + token, 7] = first, second
    logits[72], logits[73] = -INF, NAN
    groups = {name: value for name, value in how.items() if name != "bias"}
    for special in (NAN, INF, -INF, 0.0) if "bias" in how else (0.0,):
        bias = torch.tensor([0.0, 0.125, 0.5, 0.25, special, 0.0, 0.375, 0.0, special, 0.0, 0.0, -0.25])
        more = {"correction_bias": bias} if "bias" in how else {}
        assert_as_reference(kernels, gating(logits, 6, scoring=scoring, **groups, **more))


def test_of_equal_scores_the_lower_id_comes_first(kernels: Kernels) -> None:
    def ids(logits: torch.Tensor, top_k: int, **how: Any) -> list[list[int]]:
        return kernels("gating_reroute", *gating(logits, top_k, **how))[0][1].tolist()

    assert ids(torch.zeros(1, 12), 12) == [list(range(12))]
    assert ids(torch.zeros(1, 12), 5, n_group=4, topk_group=2) == [[0, 1, 2, 3, 4]]
    assert ids(torch.zeros(1, 12), 5, n_group=4, topk_group=2, correction_bias=torch.zeros(12)) == [[0, 1, 2, 3, 4]]
    assert ids(torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 0.0]]), 4) == [[1, 3, 2, 4]]
    saturated = torch.tensor([[10.0, 40.0, 90.0, INF, 30.0]])
    assert ids(saturated, 3, scoring="sigmoid") == [[1, 2, 3]]


@pytest.mark.parametrize("scoring", gating_reference.SCORINGS)
def test_small_weights_are_as_exact_as_large_ones(kernels: Kernels, scoring: str) -> None:
    """Compared with float64: exp of a large number is where a GPU's own has few bits left."""
    logits = -torch.arange(0, 84, 1.3)[None]
    (weights, ids), _ = kernels("gating_reroute", *gating(logits, logits.shape[1], scoring=scoring))
    exact = logits.double().softmax(dim=-1) if scoring == "softmax" else logits.double().sigmoid()
    assert ids.tolist() == [list(range(logits.shape[1]))]
    torch.testing.assert_close(weights.double(), exact, rtol=2e-6, atol=0)


def test_an_empty_batch(kernels: Kernels) -> None:
    (weights, ids), _ = kernels("gating_reroute", *gating(torch.empty(0, 8), 2))
    assert (weights.shape, ids.shape, weights.dtype, ids.dtype) == ((0, 2), (0, 2), torch.float32, torch.int32)


def test_a_token_of_no_slot_gets_no_row_and_no_weight(kernels: Kernels) -> None:
    logits, table = on_a_grid(6, 20), torch.arange(60, dtype=torch.int32).view(3, 20)
    slots = int32([0, 3, 1, -1, 2, 2**31 - 1])
    (weights, ids), _ = kernels("gating_reroute", *gating(logits, 3, slots=slots, table=table))
    bad, good = [1, 3, 5], [0, 2, 4]
    assert ids[bad].tolist() == [[-1] * 3] * 3 and weights[bad].isnan().all()
    expected = gating_reference.gating_reroute(*gating(logits[good], 3, slots=slots[good], table=table))
    torch.testing.assert_close((weights[good], ids[good]), expected, rtol=2e-6, atol=0)


# --- reroute and reroute_


@st.composite
def reroutings(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, top_k = draw(st.integers(0, 70)), draw(st.integers(0, 17))
    slots, experts = draw(st.integers(1, 12)), draw(st.integers(1, 130))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    topk_ids = torch.randint(0, experts, (tokens, top_k), generator=generator, dtype=dtype)
    token_slots = torch.randint(0, slots, (tokens + draw(st.integers(0, 5)), 1), generator=generator, dtype=torch.int32)
    token_slots[tokens:] = 2**31 - 1
    expert_map = torch.randint(0, 2**31 - 1, (slots, experts), generator=generator, dtype=torch.int32)
    return strided(draw, topk_ids), strided(draw, token_slots)[:, 0], strided(draw, expert_map)


@settings(max_examples=60)
@given(arguments=reroutings())
def test_reroute_equals_the_reference(kernels: Kernels, arguments: tuple[torch.Tensor, ...]) -> None:
    expected = reference.reroute(*arguments)
    out, after = kernels("reroute", *arguments)
    assert out.dtype is arguments[0].dtype and out.is_contiguous()
    assert torch.equal(out, expected)
    assert all(torch.equal(now, was) for now, was in zip(after, arguments, strict=True))
    out, after = kernels("reroute_", *arguments)
    assert out is None
    assert torch.equal(after[0], expected)
    assert all(torch.equal(now, was) for now, was in zip(after[1:], arguments[1:], strict=True))


def test_rerouting_goes_through_all_tokens_with_any_number_of_programs(kernels: Kernels) -> None:
    table = numbers(400, 21, 64)
    for tokens, programs in [(1, 1), (64, 1), (65, 1), (65, 2), (1000, 3), (1000, None)]:
        topk_ids = numbers(64, tokens, 6)
        slots = numbers(21, tokens)
        expected = reference.reroute(topk_ids, slots, table)
        assert torch.equal(kernels("reroute", topk_ids, slots, table, programs=programs)[0], expected)
        assert torch.equal(kernels("reroute_", topk_ids, slots, table, programs=programs)[1][0], expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_token_with_a_wrong_slot_or_id_gets_no_row_at_all(kernels: Kernels, dtype: torch.dtype) -> None:
    """The ids and the slots lie at the ends of int32, and of int64: none may wrap into the map."""
    table = torch.arange(12, dtype=torch.int32).view(3, 4)
    wrong = [-1, 4, 2**31 - 1, -(2**31)] + ([2**32, 2**32 + 1, 2**63 - 1, -(2**63)] if dtype is torch.int64 else [])
    topk_ids = torch.tensor([[1, 0, 3]] * (len(wrong) + 6), dtype=dtype)
    topk_ids[range(len(wrong)), [rank % 3 for rank in range(len(wrong))]] = torch.tensor(wrong, dtype=dtype)
    slots = int32([1] * len(wrong) + [-1, 3, 2**31 - 1, -(2**31), 0, 2])
    expected = [[-1] * 3] * (len(wrong) + 4) + [[1, 0, 3], [9, 8, 11]]
    assert kernels("reroute", topk_ids, slots, table)[0].tolist() == expected
    assert kernels("reroute_", topk_ids, slots, table)[1][0].tolist() == expected


@pytest.mark.parametrize("guard", ["start", "end"])
def test_nothing_outside_of_the_arguments_is_read_or_written(interpreted: Kernels, guard: str) -> None:
    """Not even with slots and ids outside of the map, which lie one step away from it or far."""
    wrong = [-1, 3, 2**31 - 1, -(2**31)]
    slots, table = int32([0, 2, 1, *wrong]), torch.arange(60, dtype=torch.int32).view(3, 20)
    logits, bias = on_a_grid(7, 20), torch.zeros(20)
    for arguments in (
        gating(logits, 5, slots=slots, table=table),
        gating(logits.half(), 3, slots=slots, table=table, correction_bias=bias, n_group=4, topk_group=2),
    ):
        _, ids = interpreted("gating_reroute", *arguments, guard=guard)[0]
        assert (ids[:3] >= 0).all() and (ids[3:] == -1).all()
    topk_ids = torch.tensor([[0, 19, 1], [1, 2, 3], [5, 4, -1], [20, 0, 0], [0, 2**31 - 1, 0], [0] * 3, [0] * 3])
    slots[3:5] = 0
    expected = [[0, 19, 1], [41, 42, 43]] + [[-1] * 3] * 5
    for dtype in (torch.int32, torch.int64):
        assert interpreted("reroute", topk_ids.to(dtype), slots, table, guard=guard)[0].tolist() == expected
        assert interpreted("reroute_", topk_ids.to(dtype), slots, table, guard=guard)[1][0].tolist() == expected


# --- what is refused

IDS, SLOTS, MAP = int32([[0, 1], [1, 0]]), int32([0, 1]), int32([[0, 1], [2, 3]])
TABLE = torch.zeros(1, 8, dtype=torch.int32)
REROUTE_REFUSALS: list[tuple[torch.Tensor, ...]] = [
    (IDS.float(), SLOTS, MAP),
    (IDS, SLOTS.long(), MAP),
    (IDS, SLOTS, MAP.long()),
    (IDS[0], SLOTS, MAP),
    (IDS, SLOTS[None], MAP),
    (IDS, SLOTS, MAP[0]),
    (IDS, SLOTS[:1], MAP),
]
GATING_REFUSALS: list[dict[str, Any]] = [
    {"logits": torch.zeros(2, 8, dtype=torch.float64)},
    {"logits": torch.zeros(8)},
    {"top_k": 0},
    {"top_k": 9},
    {"scoring": "tanh"},
    {"n_group": 3},
    {"n_group": 2, "topk_group": 3},
    {"n_group": 4, "topk_group": 1, "top_k": 3},
    {"n_group": 8, "topk_group": 4, "correction_bias": torch.zeros(8)},
    {"correction_bias": torch.zeros(7)},
    {"correction_bias": torch.zeros(8, dtype=torch.float64)},
    {"table": TABLE[:, :7]},
    {"table": TABLE.long()},
    {"slots": torch.zeros(1, dtype=torch.int32)},
    {"slots": torch.zeros(2)},
]


def assert_refused_alike(kernels: Kernels, operator: str, arguments: tuple[Any, ...]) -> None:
    oracle = gating_reference.gating_reroute if operator == "gating_reroute" else reference.reroute
    with pytest.raises((TypeError, ValueError)) as expected:
        oracle(*arguments)
    with pytest.raises(expected.type) as refused:
        kernels(operator, *arguments)
    assert str(refused.value) == str(expected.value)


def test_what_the_reference_refuses_is_refused_with_its_words(kernels: Kernels) -> None:
    for operator, arguments in itertools.product(("reroute", "reroute_"), REROUTE_REFUSALS):
        assert_refused_alike(kernels, operator, arguments)
    for how in GATING_REFUSALS:
        arguments = {"logits": torch.zeros(2, 8), "top_k": 2, "table": TABLE} | how
        assert_refused_alike(kernels, "gating_reroute", gating(**arguments | {"slots": how.get("slots", SLOTS)}))


def test_arguments_on_two_devices_are_refused(interpreted: Kernels) -> None:
    refusal = "must be on cpu as the other arguments, got meta"
    for position, operator in itertools.product((1, 2), ("reroute", "reroute_")):
        arguments = [IDS, SLOTS, MAP]
        arguments[position] = arguments[position].to("meta")
        with pytest.raises(RuntimeError, match=refusal):
            interpreted(operator, *arguments)
    for elsewhere in ("correction_bias", "slots", "table"):
        arguments = {"slots": SLOTS, "table": TABLE, "correction_bias": torch.zeros(8)}
        arguments[elsewhere] = arguments[elsewhere].to("meta")
        with pytest.raises(RuntimeError, match=refusal):
            interpreted("gating_reroute", *gating(torch.zeros(2, 8), 2, **arguments))


def test_in_place_refuses_ids_that_lie_over_each_other_or_over_the_map(kernels: Kernels) -> None:
    shared = int32([[0, 1], [2, 3], [0, 1]])
    for arguments in [
        (int32([[0], [1]]).expand(2, 4), SLOTS, MAP),
        (shared[1:], SLOTS, shared[:2]),
        (shared[:2], shared.view(-1)[:2], MAP),
    ]:
        with pytest.raises(RuntimeError, match="memory location"):
            kernels("reroute_", *arguments)
    beside = torch.zeros(8, dtype=torch.int32)
    assert kernels("reroute_", beside[:2].view(1, 2), beside[2:3], beside[4:].view(2, 2))[1][0].tolist() == [[0, 0]]
