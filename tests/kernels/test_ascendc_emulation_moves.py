"""What the emulated AscendC copies, conversions, fills, gathers, sorts, reductions and choices give, against numpy."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from emulation.ascendc import build
from emulation.ascendc.launch import EmulatedKernels, Violation, updates
from emulation.ascendc.probes.plan import BFLOAT16, BLOCK_BYTES, TYPES, Form, Plan, run
from hypothesis import given, settings
from hypothesis import strategies as st

PROBES = Path(build.__file__).parent / "probes"
Dtype = type[np.generic]
RINT, FLOOR, CEIL, ROUND, TRUNC = range(1, 6)


@pytest.fixture(scope="module")
def moves() -> EmulatedKernels:
    return EmulatedKernels(PROBES / "rearranging.cpp")


@pytest.fixture(scope="module")
def copying() -> EmulatedKernels:
    return EmulatedKernels(PROBES / "copying.cpp")


def normal(count: int, seed: int = 0, dtype: Dtype = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(dtype)


class Copy(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("count", "bytes", "source_stride", "target_stride")),
        *((name, ctypes.c_uint32) for name in ("pad", "left", "right")),
        ("value", ctypes.c_int32),
        *((name, ctypes.c_uint32) for name in ("gm_bytes", "ub_bytes")),
    )


def run_copy(kernels: EmulatedKernels, name: str, gm: np.ndarray, ub: np.ndarray, **fields: int) -> None:
    plan = Copy(**fields, gm_bytes=gm.nbytes, ub_bytes=ub.nbytes)
    kernels.launch(name, 1, updates(torch.from_numpy(gm)), updates(torch.from_numpy(ub)), plan)


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(0, 5), elements=st.integers(0, 40), gap=st.integers(0, 9), gap_blocks=st.integers(0, 2),
    pad=st.booleans(), left=st.integers(0, 16), right=st.integers(0, 16),
)  # fmt: skip
def test_copies_in_with_padding(
    copying: EmulatedKernels, count: int, elements: int, gap: int, gap_blocks: int, pad: bool, left: int, right: int
) -> None:
    """Strides run from end to start: bytes in global memory, blocks in the buffer. Without padding, the run's first
    element fills up its last block."""
    if not pad:
        left = right = 0
    gm, ub = np.arange(1, 401, dtype=np.int16), np.full(2048, -1, np.int16)
    expected = ub.copy()
    used = left + elements + right
    whole = -(-used // 16) * 16
    for row in range(count if elements else 0):
        values = gm[row * (elements + gap) :][:elements]
        at = row * (whole + 16 * gap_blocks)
        expected[at : at + whole] = -7 if left or right else values[0]
        expected[at + left : at + left + elements] = values
    run_copy(
        copying, "copy_in", gm, ub, count=count, bytes=2 * elements, source_stride=2 * gap, target_stride=gap_blocks,
        pad=pad, left=left, right=right, value=-7,
    )  # fmt: skip
    np.testing.assert_array_equal(ub, expected)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 5), elements=st.integers(0, 40), gap=st.integers(0, 9), gap_blocks=st.integers(0, 2))
def test_copies_out_drop_what_fills_the_last_block(
    copying: EmulatedKernels, count: int, elements: int, gap: int, gap_blocks: int
) -> None:
    gm, ub = np.full(400, -1, np.int16), np.arange(1, 2049, dtype=np.int16)
    expected = gm.copy()
    whole = -(-elements // 16) * 16
    for row in range(count):
        expected[row * (elements + gap) :][:elements] = ub[row * (whole + 16 * gap_blocks) :][:elements]
    run_copy(
        copying, "copy_out", gm, ub, count=count, bytes=2 * elements, source_stride=gap_blocks, target_stride=2 * gap
    )
    np.testing.assert_array_equal(gm, expected)


def test_copies_of_whole_blocks(copying: EmulatedKernels) -> None:
    """Lengths and strides of DataCopy are in blocks on both sides."""
    gm, ub = np.arange(1, 401, dtype=np.int16), np.zeros(256, np.int16)
    run_copy(copying, "copy_blocks_in", gm, ub, count=3, bytes=2, source_stride=1, target_stride=3)
    expected = np.zeros((3, 5, 16), np.int16)
    expected[:, :2] = gm[: 3 * 48].reshape(3, 3, 16)[:, :2]
    np.testing.assert_array_equal(ub[:240], expected.reshape(-1))
    back = np.zeros(400, np.int16)
    run_copy(copying, "copy_blocks_out", back, ub, count=3, bytes=2, source_stride=3, target_stride=1)
    np.testing.assert_array_equal(back[:144].reshape(3, 3, 16)[:, :2], expected[:, :2])


ROUNDINGS = {
    RINT: np.rint,
    FLOOR: np.floor,
    CEIL: np.ceil,
    ROUND: lambda a: np.copysign(np.floor(np.abs(a) + 0.5), a),
    TRUNC: np.trunc,
}


@pytest.mark.parametrize("mode", ROUNDINGS)
@pytest.mark.parametrize("source", [np.float32, np.float16])
@pytest.mark.parametrize("target", [np.int32, np.int16])
def test_casts_to_integers(moves: EmulatedKernels, source: Dtype, target: Dtype, mode: int) -> None:
    values = np.concatenate([normal(200) * 20, np.arange(-8, 9) / 2]).astype(source)
    out = np.zeros(len(values), target)
    plan = Plan(type=TYPES[source], to_type=TYPES[target], mode=mode, count=len(values))
    run(moves, "cast", plan, values, out)
    np.testing.assert_array_equal(out, ROUNDINGS[mode](values.astype(np.float64)).astype(target))


@pytest.mark.parametrize(
    ("source", "target"),
    [(np.float16, np.float32), (np.int32, np.float32), (np.int32, np.int64), (np.int64, np.int32),
     (np.int32, np.int16), (np.int16, np.float32), (np.int16, np.float16), (np.uint8, np.float16)],
)  # fmt: skip
def test_casts_that_keep_the_value(moves: EmulatedKernels, source: Dtype, target: Dtype) -> None:
    values, out = np.arange(100).astype(source), np.zeros(100, target)
    run(moves, "cast", Plan(type=TYPES[source], to_type=TYPES[target], count=100), values, out)
    np.testing.assert_array_equal(out, values.astype(target))


def test_casts_of_what_an_integer_cannot_hold_are_refused(moves: EmulatedKernels) -> None:
    for source, target, mode, value in (
        (np.int32, np.int16, 0, 40000), (np.int64, np.int32, 0, 2**40), (np.float32, np.int32, TRUNC, 3e9),
        (np.float32, np.int32, TRUNC, np.nan),
    ):  # fmt: skip
        plan = Plan(type=TYPES[source], to_type=TYPES[target], mode=mode, count=8)
        with pytest.raises(Violation, match=r"Cast: (integer result|number): expected one that"):
            run(moves, "cast", plan, np.full(8, value, source), np.zeros(8, target))


def test_a_cast_steps_by_the_wider_type(moves: EmulatedKernels) -> None:
    """The mask counts lanes of the wider type, so a repeat of 64 takes 4 blocks of halves and gives 8 of floats."""
    values, out = normal(256, dtype=np.float16), np.zeros(512, np.float32)
    plan = Plan(
        type=TYPES[np.float16], to_type=TYPES[np.float32], form=Form.MASK, low=40, repeats=3, dst_repeat=12,
        src_repeat=4,
    )  # fmt: skip
    expected = out.copy()
    expected[plan.reached(4, 1, 12)] = values[plan.reached(2, 1, 4, widest=4)]
    run(moves, "cast", plan, values, out)
    np.testing.assert_array_equal(out, expected)


def test_bfloat16_reaches_float_and_back_as_torch_has_it(moves: EmulatedKernels) -> None:
    numbers = torch.cat([torch.randn(500), torch.tensor([0.0, -0.0, float("inf"), 1 + 2**-8, 1 + 3 * 2**-8, 3e38])])
    narrow, back = np.zeros(len(numbers), np.int16), np.zeros(len(numbers), np.float32)
    plan = Plan(type=TYPES[np.float32], to_type=BFLOAT16, mode=RINT, count=len(numbers))
    run(moves, "cast", plan, numbers.numpy(), narrow)
    expected = numbers.to(torch.bfloat16)
    np.testing.assert_array_equal(narrow, expected.view(torch.int16).numpy())
    run(moves, "cast", replace(plan, type=BFLOAT16, to_type=TYPES[np.float32], mode=0), narrow, back)
    np.testing.assert_array_equal(back, expected.float().numpy())


def test_half_rounds_to_the_nearest_even(moves: EmulatedKernels) -> None:
    values, out = normal(300) * 100, np.zeros(300, np.float16)
    run(moves, "cast", Plan(type=TYPES[np.float32], to_type=TYPES[np.float16], count=300), values, out)
    np.testing.assert_array_equal(out, values.astype(np.float16))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.int16])
def test_fills(moves: EmulatedKernels, dtype: Dtype) -> None:
    lanes = 256 // np.dtype(dtype).itemsize
    for plan in (Plan(op=0, count=77), Plan(op=3, count=77), Plan(op=4, count=77)):
        out = np.zeros(1024, dtype)
        run(moves, "fill", replace(plan, scalar=5).of(dtype), out)
        expected = {0: np.full(77, 5), 3: np.arange(77) + 5, 4: np.arange(77) * 3 + 5}[plan.op]
        np.testing.assert_array_equal(out, np.concatenate([expected, np.zeros(1024 - 77)]).astype(dtype))
    for plan in (Plan(op=1, form=Form.MASK, low=lanes - 5), Plan(op=2, form=Form.BITS, low=0x69A5, high=lanes // 128)):
        out, plan = np.zeros(1024, dtype), replace(plan, repeats=3, dst_block=1, dst_repeat=10, scalar=5)
        run(moves, "fill", plan.of(dtype), out)
        expected = np.zeros(1024, dtype)
        expected[plan.reached(out.itemsize, 1, 10)] = 5
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
def test_brcb_fills_a_block_with_each_element(moves: EmulatedKernels, dtype: Dtype) -> None:
    width = BLOCK_BYTES // np.dtype(dtype).itemsize
    values, out = np.arange(1, 17).astype(dtype), np.zeros(64 * width, dtype)
    run(moves, "brcb", Plan(repeats=2, dst_block=2, dst_repeat=20).of(dtype), values, out)
    expected = np.zeros((64, width), dtype)
    for element in range(16):
        expected[element // 8 * 20 + element % 8 * 2] = values[element]
    np.testing.assert_array_equal(out, expected.reshape(-1))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
def test_gather_reads_at_byte_offsets(moves: EmulatedKernels, dtype: Dtype) -> None:
    size = np.dtype(dtype).itemsize
    values = np.arange(1, 401).astype(dtype)
    places = np.random.default_rng(0).integers(0, 390, 300)
    offsets, out = (places * size).astype(np.uint32), np.zeros(300, dtype)
    run(moves, "gather", Plan(mode=4 * size, count=280).of(dtype), values, offsets, out)
    np.testing.assert_array_equal(out[:280], values[places[:280] + 4])
    assert not out[280:].any()


def test_gather_with_a_mask_a_repeat(moves: EmulatedKernels) -> None:
    values, out = normal(400), np.zeros(512, np.float32)
    places = np.random.default_rng(0).integers(0, 400, 192)
    plan = Plan(form=Form.MASK, low=30, repeats=3, dst_repeat=9)
    run(moves, "gather", plan, values, (places * 4).astype(np.uint32), out)
    expected = np.zeros(512, np.float32)
    expected[plan.reached(4, 1, 9)] = values[places.reshape(3, 64)[:, :30].reshape(-1)]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("pattern", range(1, 8))
@pytest.mark.parametrize("counter", [0, 1])
def test_gather_mask_packs_what_its_pattern_takes(moves: EmulatedKernels, pattern: int, counter: int) -> None:
    """Counter mode: `count` elements of each repeat; else all 64."""
    values, out, kept = normal(512), np.zeros(512, np.float32), np.zeros(4, np.int64)
    plan = Plan(op=pattern, mode=counter, count=22 if counter else 0, repeats=3, src_repeat=16)
    run(moves, "gather_mask", plan, values, out, kept)
    rows = values.reshape(4, 128)[:3, : 22 if counter else 64]
    start, step = {1: (0, 2), 2: (1, 2), 7: (0, 1)}.get(pattern, (pattern - 3, 4))
    expected = rows[:, start::step].reshape(-1)
    assert kept[0] == len(expected)
    np.testing.assert_array_equal(out[: len(expected)], expected)
    assert not out[len(expected) :].any()


def tree(values: np.ndarray) -> np.ndarray:
    """Neighbours added in pairs, then the pairs: the documented order of a sum within a repeat."""
    while values.shape[-1] > 1:
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]


@pytest.mark.parametrize("op", range(6))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mask", [10, 64])
def test_reductions(moves: EmulatedKernels, op: int, dtype: Dtype, mask: int) -> None:
    """ops 0 to 2: maximum, minimum and sum of a repeat; 3 to 5: of each of its blocks."""
    lanes, width = 256 // np.dtype(dtype).itemsize, BLOCK_BYTES // np.dtype(dtype).itemsize
    rows = normal(5 * lanes, dtype=dtype).reshape(5, lanes)
    out = np.zeros(64, dtype)
    only_value = 2
    run(moves, "reduce", Plan(op=op, mode=only_value, low=mask, repeats=5, dst_repeat=1).of(dtype), rows, out)
    groups = rows.reshape(5, 1, lanes) if op < 3 else rows.reshape(5, 8, width)
    active = (np.arange(lanes) < mask).reshape(groups.shape[1:])
    neutral = {0: -np.inf, 1: np.inf, 2: 0}[op % 3]
    kept = np.where(active, groups, dtype(neutral)).astype(dtype)
    expected = (kept.max(-1), kept.min(-1), tree(kept))[op % 3]
    expected = np.where(active.any(-1), expected, 0).astype(dtype).reshape(-1)
    np.testing.assert_array_equal(out[: len(expected)], expected)
    assert not out[len(expected) :].any()


@pytest.mark.parametrize("order", range(4))
def test_a_maximum_names_its_first_place(moves: EmulatedKernels, order: int) -> None:
    """Orders: value and index, index and value, value, index. The index is an integer's bits."""
    rows, out = np.round(normal(192) * 2).reshape(3, 64), np.zeros(16, np.float32)
    run(moves, "reduce", Plan(op=0, mode=order, low=64, repeats=3, dst_repeat=1), rows, out)
    value, index = rows.max(1), rows.argmax(1).astype(np.uint32).view(np.float32)
    columns = ([value, index], [index, value], [value], [index])[order]
    expected = np.stack(columns, 1).reshape(-1)
    np.testing.assert_array_equal(out[: len(expected)].view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sort32_is_stable_and_descending(moves: EmulatedKernels, dtype: Dtype) -> None:
    values = np.round(normal(96) * 3).astype(dtype)
    indices, out = np.random.default_rng(1).permutation(96).astype(np.uint32), np.zeros((96, 2), np.uint32)
    run(moves, "sort", Plan(repeats=3).of(dtype), values, indices, out)
    for group in np.arange(96).reshape(3, 32):
        order = group[np.argsort(-values[group].astype(np.float64), kind="stable")]
        np.testing.assert_array_equal(out[group, 1], indices[order])
        np.testing.assert_array_equal(out[group].view(dtype)[:, 0], values[order])


@pytest.mark.parametrize(("valid", "lists", "repeats"), [(3, 2, 1), (7, 3, 1), (15, 4, 1), (15, 4, 3)])
def test_merges_are_stable_across_lists(moves: EmulatedKernels, valid: int, lists: int, repeats: int) -> None:
    length = 24
    values = np.round(normal(repeats * lists * length) * 3).reshape(repeats, lists, length)
    values = -np.sort(-values, axis=-1)
    pairs = np.zeros((repeats, lists, length, 2), np.float32)
    pairs[..., 0] = values
    pairs[..., 1] = np.arange(values.size, dtype=np.uint32).view(np.float32).reshape(values.shape)
    out = np.zeros((repeats, lists * length, 2), np.float32)
    counters = run(moves, "merge", Plan(mode=valid, count=length, src_block=length, repeats=repeats), pairs, out)
    for repeat in range(repeats):
        row = pairs[repeat].reshape(-1, 2)
        order = np.argsort(-row[:, 0], kind="stable")
        np.testing.assert_array_equal(out[repeat].view(np.uint32), row[order].view(np.uint32))
    assert counters.merged_pairs == values.size


COMPARISONS = (np.less, np.greater, np.equal, np.less_equal, np.greater_equal, np.not_equal)


@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scalar", [False, True])
def test_comparisons_give_bits_and_select_takes_by_them(
    moves: EmulatedKernels, mode: int, dtype: Dtype, scalar: bool
) -> None:
    count = 256
    a, b = np.round(normal(count)).astype(dtype), np.round(normal(count, 1)).astype(dtype)
    bits = np.zeros(count // 8, np.uint8)
    run(moves, "compare", Plan(op=int(scalar), mode=mode, count=count, scalar=1).of(dtype), a, b, bits)
    chosen = COMPARISONS[mode](a, dtype(1) if scalar else b)
    np.testing.assert_array_equal(np.unpackbits(bits, bitorder="little").astype(bool), chosen)
    for select in range(3):  # the first bits for every repeat; a scalar; two tensors
        out = np.zeros(count, dtype)
        run(moves, "select_by_mask", Plan(mode=select, count=count, scalar=9).of(dtype), bits, a, b, out)
        lanes = 256 // out.itemsize
        taken = np.tile(chosen[:lanes], count // lanes) if select == 0 else chosen
        np.testing.assert_array_equal(out, np.where(taken, a, dtype(9) if select == 1 else b))
