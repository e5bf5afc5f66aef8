"""reroute: the compiled kernel against the plain torch reference, the paper's example, and the refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import weave_ops
from weave_ops import reference

reroute = torch.ops.npu_weave.reroute
reroute_ = torch.ops.npu_weave.reroute_


def int32(*values: object) -> torch.Tensor:
    return torch.tensor(*values, dtype=torch.int32)


def in_place(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> torch.Tensor:
    reroute_(topk_ids, token_slots, expert_map)
    return topk_ids


FORMS: dict[str, Callable[..., torch.Tensor]] = {
    "kernel": reroute,
    "kernel_in_place": in_place,
    "direct": weave_ops.reroute_on_cpu,
    "reference": reference.reroute,
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Callable[..., torch.Tensor]:
    return FORMS[request.param]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_worked_example_of_the_expertweave_paper(form: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    """Figure 4 of arXiv 2508.17624: M=64, K=6, two adapters with E_max=8. The paper's AID -1 is slot 0 here."""
    expert_map = torch.arange(64, dtype=torch.int32).repeat(3, 1)
    for slot, (first, experts) in enumerate(((64, (3, 14, 47)), (72, (5, 13, 14, 27, 35, 57, 59))), start=1):
        for offset, expert in enumerate(experts):
            expert_map[slot, expert] = first + offset
    token_slots = int32([0, 1, 1, 2, 2])
    topk_ids = torch.tensor(
        [
            [15, 14, 45, 47, 3, 57],
            [31, 13, 62, 12, 34, 14],
            [26, 47, 31, 3, 58, 60],
            [13, 31, 14, 35, 15, 5],
            [57, 5, 3, 13, 27, 59],
        ],
        dtype=dtype,
    )
    out = form(topk_ids, token_slots, expert_map)
    assert out.dtype is dtype
    assert out.tolist() == [
        [15, 14, 45, 47, 3, 57],
        [31, 13, 62, 12, 34, 65],
        [26, 66, 31, 64, 58, 60],
        [73, 31, 74, 76, 15, 72],
        [77, 72, 3, 73, 75, 78],
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Valid arguments of any size, dtype and stride."""
    tokens, top_k = draw(st.integers(0, 70)), draw(st.integers(0, 9))
    slots, experts = draw(st.integers(1, 12)), draw(st.integers(1, 130))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))

    def strided(rows: int, columns: int, high: int, dtype: torch.dtype) -> torch.Tensor:
        row_step, column_step, offset = (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 2)))
        shape = (rows * row_step + offset, columns * column_step + offset)
        whole = torch.randint(0, high, shape, generator=generator).to(dtype)
        part = whole[offset::row_step, offset::column_step][:rows, :columns]
        if draw(st.booleans()):
            part = part.t().contiguous().t()
        return part

    topk_ids = strided(tokens, top_k, experts, dtype)
    token_slots = strided(tokens + draw(st.integers(0, 5)), 1, slots, torch.int32)[:, 0]
    expert_map = strided(slots, experts, 2**31 - 1, torch.int32)
    return topk_ids, token_slots, expert_map


@settings(max_examples=300, deadline=None)
@given(cases())
def test_kernel_equals_reference(case: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    topk_ids, token_slots, expert_map = case
    expected = reference.reroute(topk_ids, token_slots, expert_map)
    before = [tensor.clone() for tensor in case]
    out = reroute(topk_ids, token_slots, expert_map)
    assert out.dtype is topk_ids.dtype and out.is_contiguous()
    assert torch.equal(out, expected)
    assert all(torch.equal(now, was) for now, was in zip(case, before, strict=True))
    reroute_(topk_ids, token_slots, expert_map)
    assert torch.equal(topk_ids, expected)


@settings(max_examples=50, deadline=None)
@given(cases(), st.data())
def test_kernel_and_reference_refuse_the_same_token(
    case: tuple[torch.Tensor, torch.Tensor, torch.Tensor], data: st.DataObject
) -> None:
    topk_ids, token_slots, expert_map = case
    if topk_ids.numel() == 0:
        return
    token = data.draw(st.integers(0, topk_ids.shape[0] - 1))
    if data.draw(st.booleans()):
        token_slots[token] = data.draw(st.sampled_from([-1, expert_map.shape[0], 2**31 - 1, -(2**31)]))
    else:
        wrong = [-1, expert_map.shape[1], 2**31 - 1, -(2**31)]
        wrong += [2**32, 2**63 - 1, -(2**63)] if topk_ids.dtype is torch.int64 else []
        topk_ids[token, data.draw(st.integers(0, topk_ids.shape[1] - 1))] = data.draw(st.sampled_from(wrong))
    before = topk_ids.clone()
    for form in FORMS.values():
        with pytest.raises(IndexError, match=rf"token {token} has"):
            form(topk_ids, token_slots, expert_map)
        assert torch.equal(topk_ids, before)


def test_many_tokens_on_several_threads_equal_the_reference(form: Callable[..., torch.Tensor]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        generator = torch.Generator().manual_seed(7)
        topk_ids = torch.randint(0, 64, (40_000, 6), generator=generator, dtype=torch.int32)
        token_slots = torch.randint(0, 21, (40_000,), generator=generator, dtype=torch.int32)
        expert_map = torch.randint(0, 400, (21, 64), generator=generator, dtype=torch.int32)
        # Token by token: independent of the indexing of the reference.
        expected = torch.stack(
            [expert_map[slot].take(ids.long()) for slot, ids in zip(token_slots, topk_ids, strict=True)]
        )
        bad = topk_ids.clone()
        bad[39_999, 5] = bad[31_234, 0] = 64
        with pytest.raises(IndexError, match="token 31234"):
            form(bad, token_slots, expert_map)
        assert torch.equal(form(topk_ids, token_slots, expert_map), expected)
    finally:
        torch.set_num_threads(threads)


def test_entries_of_token_slots_beyond_the_tokens_are_not_read(form: Callable[..., torch.Tensor]) -> None:
    assert form(int32([[1, 0]]), int32([1, 99, -5]), int32([[0, 1], [7, 8]])).tolist() == [[8, 7]]


@pytest.mark.parametrize("shape", [(0, 6), (3, 0), (0, 0)])
def test_nothing_to_do_is_fine(form: Callable[..., torch.Tensor], shape: tuple[int, int]) -> None:
    out = form(torch.empty(shape, dtype=torch.int32), torch.zeros(8, dtype=torch.int32), int32([[0, 1]]))
    assert out.shape == shape


IDS, SLOTS, MAP = int32([[0, 1], [1, 0]]), int32([0, 1]), int32([[0, 1], [2, 3]])
REFUSALS = [
    ("topk_ids must be int32 or int64", TypeError, (IDS.float(), SLOTS, MAP)),
    ("topk_ids must be int32 or int64", TypeError, (IDS.to(torch.int16), SLOTS, MAP)),
    ("token_slots must be int32", TypeError, (IDS, SLOTS.long(), MAP)),
    ("expert_map must be int32", TypeError, (IDS, SLOTS, MAP.long())),
    ("topk_ids must be", ValueError, (IDS[0], SLOTS, MAP)),
    ("token_slots must have one dimension", ValueError, (IDS, SLOTS[None], MAP)),
    ("expert_map must be", ValueError, (IDS, SLOTS, MAP[0])),
    ("token_slots must have at least one entry", ValueError, (IDS, SLOTS[:1], MAP)),
]


@pytest.mark.parametrize(("message", "kind", "arguments"), REFUSALS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_refused(
    form: Callable[..., torch.Tensor],
    message: str,
    kind: type[Exception],
    arguments: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    device: str,
) -> None:
    if form is weave_ops.reroute_on_cpu and device == "meta":
        kind, message = RuntimeError, "must be on the CPU"
    with pytest.raises(kind, match=message):
        form(*(argument.to(device) for argument in arguments))


def test_in_place_refuses_ids_that_lie_over_each_other_or_over_the_map() -> None:
    with pytest.raises(RuntimeError, match="single memory location"):
        reroute_(int32([[0], [1]]).expand(2, 4), SLOTS, MAP)
    shared = int32([[0, 1], [2, 3], [0, 1]])
    with pytest.raises(RuntimeError, match="memory location"):
        reroute_(shared[1:], SLOTS, shared[:2])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("op", [reroute.default, reroute_.default])
def test_opcheck(op: torch._ops.OpOverload, dtype: torch.dtype) -> None:
    for topk_ids in (IDS.to(dtype), IDS.to(dtype).t(), torch.empty(0, 2, dtype=dtype)):
        torch.library.opcheck(op, (topk_ids.clone(), SLOTS, MAP))


def test_both_forms_compile_whole_with_dynamic_shapes() -> None:
    def step(topk_ids: torch.Tensor, token_slots: torch.Tensor, expert_map: torch.Tensor) -> torch.Tensor:
        ids = reroute(topk_ids + 0, token_slots, expert_map)
        again = topk_ids * 1
        reroute_(again, token_slots, expert_map)
        return ids * 1000 + again

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    expert_map = int32([[0, 1, 2], [0, 5, 2]])
    for tokens in (2, 3, 17):
        topk_ids = torch.arange(tokens * 2, dtype=torch.int32).view(tokens, 2) % 3
        token_slots = torch.arange(tokens, dtype=torch.int32) % 2
        expected = reference.reroute(topk_ids, token_slots, expert_map) * 1001
        assert torch.equal(compiled(topk_ids, token_slots, expert_map), expected)


def test_import_alone_registers_the_operators() -> None:
    code = (
        "import sys, weave_ops, torch; assert torch.ops.npu_weave.reroute.default and torch.ops.npu_weave.reroute_;"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('vllm', 'npu_weave')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert weave_ops.schema.SCHEMAS[0].startswith("reroute(")
