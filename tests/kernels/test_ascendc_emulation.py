"""What the emulated elementwise AscendC instructions compute, against numpy, over forms, types, masks and strides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulation.ascendc import build
from emulation.ascendc.launch import EmulatedKernels, NanRule, Violation
from emulation.ascendc.probes.plan import Form, Plan, run
from hypothesis import given, settings
from hypothesis import strategies as st

PROBES = Path(build.__file__).parent / "probes"
Dtype = type[np.generic]
Operation = Callable[..., np.ndarray]
ELEMENTS = 512
FLOATS: tuple[Dtype, ...] = (np.float32, np.float16)
NUMBERS: tuple[Dtype, ...] = (np.float32, np.float16, np.int32, np.int16)


@pytest.fixture(scope="module")
def elementwise() -> EmulatedKernels:
    return EmulatedKernels(PROBES / "elementwise.cpp")


def values(dtype: Dtype, seed: int = 0, count: int = ELEMENTS) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if issubclass(dtype, np.floating):
        return generator.normal(size=count).astype(dtype)
    return generator.integers(-90, 90, count).astype(dtype)


def exact(function: Operation) -> Operation:
    """In float32 and then rounded to the operands' type: IEEE arithmetic for half as well."""

    def wide(*operands: np.ndarray) -> np.ndarray:
        if operands[0].dtype != np.float16:
            return function(*operands).astype(operands[0].dtype)
        return function(*(operand.astype(np.float32) for operand in operands)).astype(np.float16)

    return wide


UNARY: tuple[tuple[str, Operation], ...] = (
    ("Exp", np.exp),
    ("Ln", lambda a: np.log(np.abs(a) + 1)),
    ("Abs", np.abs),
    ("Sqrt", lambda a: np.sqrt(np.abs(a))),
    ("Reciprocal", lambda a: 1 / a),
    ("Relu", lambda a: np.maximum(a, 0)),
)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", range(len(UNARY)), ids=[name for name, _ in UNARY])
def test_instructions_with_one_source(elementwise: EmulatedKernels, op: int, dtype: Dtype) -> None:
    name, function = UNARY[op]
    source, out = values(dtype), np.zeros(ELEMENTS, dtype)
    domain = {"Ln": np.abs(source) + dtype(1), "Sqrt": np.abs(source)}.get(name, source)
    counters = run(elementwise, "unary", Plan(op=op, count=300).of(dtype), domain, out)
    expected = exact(function if name not in ("Ln", "Sqrt") else {"Ln": np.log, "Sqrt": np.sqrt}[name])(domain)
    # The device's reciprocal is documented to be coarse, so the emulated one is not exact.
    tolerance = 1e-3 if name == "Reciprocal" or dtype is np.float16 else 1e-6
    np.testing.assert_allclose(out[:300], expected[:300], rtol=tolerance)
    assert not out[300:].any()
    assert counters.apis[name] == (1, -(-300 * out.itemsize // 256))
    if name == "Reciprocal" and dtype is np.float32:
        assert np.abs(out[:300] * source[:300] - 1).min() > 1e-4


SCALAR: tuple[Operation, ...] = (np.add, np.multiply, np.maximum, np.minimum)
BINARY: tuple[Operation, ...] = (np.add, np.subtract, np.multiply, np.maximum, np.minimum)


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("op", range(len(SCALAR)), ids=["Adds", "Muls", "Maxs", "Mins"])
def test_instructions_with_a_scalar(elementwise: EmulatedKernels, op: int, dtype: Dtype) -> None:
    source, out = values(dtype), np.zeros(ELEMENTS, dtype)
    run(elementwise, "scalar", Plan(op=op, count=ELEMENTS, scalar=3.0).of(dtype), source, out)
    np.testing.assert_array_equal(out, exact(SCALAR[op])(source, np.full_like(source, 3)))


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("op", range(len(BINARY)), ids=["Add", "Sub", "Mul", "Max", "Min"])
def test_instructions_with_two_sources(elementwise: EmulatedKernels, op: int, dtype: Dtype) -> None:
    a, b, out = values(dtype), values(dtype, 1), np.zeros(ELEMENTS, dtype)
    run(elementwise, "binary", Plan(op=op, count=ELEMENTS).of(dtype), a, b, out)
    np.testing.assert_array_equal(out, exact(BINARY[op])(a, b))


@pytest.mark.parametrize("dtype", FLOATS)
def test_division(elementwise: EmulatedKernels, dtype: Dtype) -> None:
    a, b, out = values(dtype), values(dtype, 1), np.zeros(ELEMENTS, dtype)
    run(elementwise, "divide", Plan(count=ELEMENTS).of(dtype), a, b, out)
    np.testing.assert_array_equal(out, exact(np.divide)(a, b))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int16, np.uint16])
@pytest.mark.parametrize("op", [0, 1], ids=["ShiftLeft", "ShiftRight"])
def test_shifts(elementwise: EmulatedKernels, op: int, dtype: Dtype) -> None:
    """Right is arithmetic for signed types."""
    source, out = values(np.int32).astype(dtype), np.zeros(ELEMENTS, dtype)
    run(elementwise, "shift", Plan(op=op, count=ELEMENTS, scalar=5).of(dtype), source, out)
    np.testing.assert_array_equal(out, source << dtype(5) if op == 0 else source >> dtype(5))


@pytest.mark.parametrize("op", range(3), ids=["And", "Or", "Not"])
def test_bits(elementwise: EmulatedKernels, op: int) -> None:
    a, b, out = values(np.int16), values(np.int16, 1), np.zeros(ELEMENTS, np.int16)
    run(elementwise, "bitwise", Plan(op=op, count=ELEMENTS).of(np.int16), a, b, out)
    np.testing.assert_array_equal(out, (a & b, a | b, ~a)[op])


STRIDES = st.sampled_from([0, 1, 2, 3])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any form, mask and strides whose operands fit into 4,096 elements and do not write a block twice."""
    form = draw(st.sampled_from(list(Form)))
    width = draw(st.sampled_from([64, 128]))
    mode = draw(st.integers(0, 1)) if form is Form.REGISTER else 0
    dst_block = draw(st.sampled_from([1, 2]))
    low = draw(st.integers(1, width)) if form is Form.MASK else draw(st.integers(1, 2**64 - 1))
    if form is Form.REGISTER and mode == 1:
        low = draw(st.integers(1, 4 * width))
    return Plan(
        type=0 if width == 64 else 1,
        form=form,
        mode=mode,
        count=draw(st.integers(0, 500)),
        repeats=draw(st.integers(0, 4)),
        low=low,
        high=draw(st.integers(0, 2**64 - 1)) if width == 128 and mode == 0 else 0,
        dst_block=dst_block,
        src_block=draw(STRIDES),
        src1_block=draw(STRIDES),
        dst_repeat=8 * dst_block + draw(STRIDES),
        src_repeat=draw(st.integers(0, 12)),
        src1_repeat=draw(st.integers(0, 12)),
    )


@settings(max_examples=150, deadline=None)
@given(plan=plans())
def test_every_form_reaches_the_documented_elements(elementwise: EmulatedKernels, plan: Plan) -> None:
    dtype = FLOATS[plan.type]
    a, b, out = values(dtype, 0, 4096), values(dtype, 1, 4096), values(dtype, 2, 4096)
    if plan.form is Form.COUNT:  # that form has no strides of its own
        plan = replace(plan, dst_block=1, src_block=1, src1_block=1, dst_repeat=8, src_repeat=8, src1_repeat=8)
    size = out.itemsize
    expected = out.copy()
    expected[plan.reached(size, plan.dst_block, plan.dst_repeat)] = exact(np.add)(
        a[plan.reached(size, plan.src_block, plan.src_repeat)],
        b[plan.reached(size, plan.src1_block, plan.src1_repeat)],
    )
    run(elementwise, "binary", plan, a, b, out)
    np.testing.assert_array_equal(out, expected)


def test_a_row_of_sums_takes_its_own_last_value(elementwise: EmulatedKernels) -> None:
    rows, out = values(np.float32).reshape(8, 64), values(np.float32, 1, 64)
    expected = out.copy()
    for row in rows:
        expected = row + expected
    plan = Plan(form=Form.MASK, low=64, repeats=8, dst_repeat=0, src_repeat=8, src1_repeat=0)
    run(elementwise, "accumulate", plan, rows, out)
    np.testing.assert_array_equal(out, expected)


def test_the_form_with_a_count_leaves_normal_mode_and_a_full_mask(elementwise: EmulatedKernels) -> None:
    source, out = np.zeros(256, np.float32), np.zeros(256, np.float32)
    run(elementwise, "mask_after_count", Plan(count=256, repeats=2), source, out)
    np.testing.assert_array_equal(out, np.repeat([2.0, 1.0], 128))


def test_the_rule_for_nan_can_be_chosen(elementwise: EmulatedKernels) -> None:
    a, b = np.array([1, np.nan] * 4, np.float32), np.zeros(8, np.float32)
    plan = Plan(op=3, count=8)
    with pytest.raises(Violation, match="Max: order of NaN"):
        run(elementwise, "binary", plan, a, b, np.zeros(8, np.float32))
    for rule, expected in ((NanRule.HIGHEST, np.nan), (NanRule.LOWEST, 0.0)):
        out = np.zeros(8, np.float32)
        with elementwise.nan(rule):
            run(elementwise, "binary", plan, a, b, out)
        np.testing.assert_array_equal(out, np.array([1, expected] * 4, np.float32))
