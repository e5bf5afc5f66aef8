"""Quantised operators of the emulated torch_npu, against loops over rows and numpy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch_npu
from hypothesis import given
from hypothesis import strategies as st
from torch_npu import formats
from torch_npu.strict import RefusedError

SEEDS = st.integers(0, 999)
C = torch.ops._C_ascend


def integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def positive(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) / 100 + 1e-4).to(dtype)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def check_quantised(rows: np.ndarray, found: torch.Tensor, scales: torch.Tensor) -> None:
    """The scale takes the largest of a row to 127, and every element is within half a step of the real one."""
    assert (found.dtype, scales.dtype) == (torch.int8, torch.float32)
    np.testing.assert_allclose(as_numpy(scales), np.abs(rows).max(-1) / 127, rtol=1e-5)
    steps = as_numpy(scales)[..., None]
    assert (np.abs(as_numpy(found) * steps - rows) <= 0.501 * steps).all()
    assert (found.abs().amax(-1) == 127).all()


def swiglu(projected: np.ndarray) -> np.ndarray:
    gate, up = np.split(projected, 2, axis=-1)
    return gate / (1 + np.exp(-gate)) * up


@given(SEEDS, st.sampled_from([(4, 9), (2, 3, 8)]), st.sampled_from([torch.bfloat16, torch.float16]))
def test_dynamic_quant(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random(*shape, seed=seed, dtype=dtype)
    found, scales = torch_npu.npu_dynamic_quant(x, dst_type=torch.int8)
    assert (found.shape, scales.shape) == (x.shape, x.shape[:-1])
    check_quantised(as_numpy(x), found, scales)
    assert torch.equal(torch_npu.npu_dynamic_quant(x)[0], found)


def test_what_dynamic_quant_rounds() -> None:
    x = torch.tensor([[127, -127, 2.5, 3.5, -0.5, 0.75], [0] * 6], dtype=torch.bfloat16)
    found, scales = torch_npu.npu_dynamic_quant(x)
    assert found.tolist() == [[127, -127, 2, 4, 0, 1], [0] * 6]
    assert scales.tolist() == [1, 0]


@given(SEEDS, st.sampled_from([torch.bfloat16, torch.float16]), st.booleans(), st.sampled_from(["", "int", "float"]))
def test_quant_matmul(seed: int, dtype: torch.dtype, blocked: bool, biased: str) -> None:
    x, weight = integers(3, 40, seed=seed), integers(40, 20, seed=seed + 1)
    scale = positive(20, seed=seed, dtype=torch.float32 if dtype == torch.float16 else dtype)
    by_row, bias = positive(3, seed=seed + 2) / 100, random(20, seed=seed, dtype=torch.float32)
    summed = x.long().numpy() @ weight.long().numpy()
    expected = summed * as_numpy(scale) * as_numpy(by_row)[:, None]
    named = {}
    if biased == "int":
        named = {"bias": (bias * 1000).to(torch.int32)}
        expected = (summed + named["bias"].numpy()) * as_numpy(scale) * as_numpy(by_row)[:, None]
    elif biased:
        named, expected = {"bias": bias.to(dtype)}, expected + as_numpy(bias.to(dtype))
    held = formats.in_blocks(weight) if blocked else weight
    found = torch_npu.npu_quant_matmul(x, held, scale, pertoken_scale=by_row, output_dtype=dtype, **named)
    assert found.dtype == dtype
    np.testing.assert_allclose(as_numpy(found), expected, rtol=2**-8, atol=1e-6)


COUNTS = [2, 0, 3]


@given(SEEDS, st.sampled_from([torch.bfloat16, torch.float16]), st.booleans(), st.booleans(), st.booleans())
def test_grouped_matmul(seed: int, dtype: torch.dtype, blocked: bool, by_rows: bool, cumulative: bool) -> None:
    x, weight = integers(7, 40, seed=seed), integers(3, 40, 20, seed=seed + 1)
    scale = positive(3, 20, seed=seed, dtype=torch.float32 if dtype == torch.float16 else dtype) / 100
    row_scale = positive(7, seed=seed + 2)
    counts = torch.tensor(COUNTS)
    held = formats.in_blocks(weight) if blocked else weight
    named = {"group_type": 0, "split_item": 2, "group_list_type": int(not cumulative)}
    named["group_list"] = counts.cumsum(0) if cumulative else counts
    scaling = {"per_token_scale": [row_scale]} if by_rows else {}
    (found,) = torch_npu.npu_grouped_matmul([x], [held], scale=[scale], output_dtype=dtype, **scaling, **named)
    (sums,) = torch_npu.npu_grouped_matmul([x], [held], output_dtype=torch.int32, **named)
    assert (found.dtype, sums.dtype) == (dtype, torch.int32)
    for row, expert in enumerate([0, 0, 2, 2, 2]):
        exact = x[row].long() @ weight[expert].long()
        assert torch.equal(sums[row].long(), exact)
        expected = exact.numpy() * as_numpy(scale[expert]) * (row_scale[row].item() if by_rows else 1)
        np.testing.assert_allclose(as_numpy(found[row]), expected, rtol=2**-8, atol=1e-6)
    assert not found[5:].any() and not sums[5:].any()


def test_sums_of_products_are_exact() -> None:
    """Beyond 2**24 float32 has no odd numbers."""
    x, weight = torch.full((1, 4096), 127, dtype=torch.int8), torch.full((1, 4096, 32), 127, dtype=torch.int8)
    x[0, 0], weight[0, 0] = 1, 1
    named = {"group_list": torch.tensor([1]), "group_list_type": 1, "split_item": 2, "group_type": 0}
    (sums,) = torch_npu.npu_grouped_matmul([x], [weight], output_dtype=torch.int32, **named)
    assert sums.unique().tolist() == [4095 * 127 * 127 + 1]


@given(SEEDS, st.sampled_from([torch.float32, torch.bfloat16]))
def test_projection_activation_and_quantisation(seed: int, dtype: torch.dtype) -> None:
    x, weight = integers(7, 40, seed=seed), integers(3, 40, 24, seed=seed + 1)
    scale, row_scale = positive(3, 24, seed=seed, dtype=dtype), positive(7, seed=seed + 2)
    ends = torch.tensor(COUNTS).cumsum(0)
    found, scales, _ = C.grouped_matmul_swiglu_quant_weight_nz(x, formats.in_blocks(weight), scale, row_scale, ends)
    assert (found.shape, scales.shape) == ((7, 12), (7,))
    for row, expert in enumerate([0, 0, 2, 2, 2]):
        projected = (x[row].long() @ weight[expert].long()).numpy() * as_numpy(scale[expert]) * row_scale[row].item()
        check_quantised(swiglu(projected)[None], found[row : row + 1], scales[row : row + 1])
    assert not found[5:].any() and not scales[5:].any()
    # the same in two steps, with the sums in between
    (sums,) = torch_npu.npu_grouped_matmul(
        [x], [weight], group_list=ends, group_list_type=0, split_item=3, group_type=0, output_dtype=torch.int32
    )
    stepwise = C.npu_dequant_swiglu_quant(
        sums, weight_scale=scale.float(), activation_scale=row_scale, group_index=torch.tensor(COUNTS), quant_mode=1
    )
    assert (stepwise[0] - found).abs().max() <= 1  # scales of rows and columns apply in another order
    torch.testing.assert_close(stepwise[1], scales)


ROUTINGS: list[Callable[..., Any]] = [
    lambda *args, **named: torch_npu.npu_moe_init_routing_v2(*args, **named),
    lambda *args, **named: C.npu_moe_init_routing_custom(*args, **named),
]
IDS = torch.tensor([[3, 1], [0, 3], [2, 1]], dtype=torch.int32)
BY_EXPERT = {"expert_num": 4, "expert_tokens_num_flag": True, "expert_tokens_num_type": 1}


@pytest.mark.parametrize("route", ROUTINGS)
def test_routing_quantises(route: Callable[..., Any]) -> None:
    x = random(3, 8)
    rows, row_of, counts, scales = route(x, IDS, quant_mode=1, active_expert_range=[1, 4], **BY_EXPERT)
    tokens = [0, 2, 2, 0, 1]  # experts 1, 1, 2, 3, 3
    assert counts.tolist() == [2, 1, 2]
    assert row_of.tolist() == [3, 0, -1, 4, 2, 1]
    assert (rows.shape, scales.shape) == ((6, 8), (6,))
    check_quantised(as_numpy(x[tokens]), rows[:5], scales[:5])
    assert not rows[5:].any() and not scales[5:].any()


@pytest.mark.parametrize("route", ROUTINGS)
def test_routing_takes_scales_along(route: Callable[..., Any]) -> None:
    x, by_token = integers(3, 8), positive(3)
    rows, _, _, scales = route(x, IDS, scale=by_token, quant_mode=-1, active_expert_range=[1, 4], **BY_EXPERT)
    assert torch.equal(rows[:5], x[[0, 2, 2, 0, 1]])
    assert scales.tolist() == [*by_token[[0, 2, 2, 0, 1]].tolist(), 0]
    assert route(x, IDS, quant_mode=-1, **BY_EXPERT)[3].numel() == 0


def grouped(**changed: Any) -> None:
    given = {"x": [integers(5, 8)], "weight": [integers(3, 8, 4)], "scale": [positive(3, 4, dtype=torch.bfloat16)]}
    given |= {"per_token_scale": [positive(5)], "output_dtype": torch.bfloat16, "group_list": torch.tensor(COUNTS)}
    torch_npu.npu_grouped_matmul(**given | {"group_list_type": 1, "split_item": 2, "group_type": 0} | changed)


def product(**changed: Any) -> None:
    given = {"x1": integers(5, 8), "x2": integers(8, 4), "scale": positive(4), "pertoken_scale": positive(5)}
    torch_npu.npu_quant_matmul(**given | {"output_dtype": torch.bfloat16} | changed)


def projection(**changed: Any) -> None:
    given = {"x": integers(5, 8), "weight": formats.in_blocks(integers(3, 8, 4)), "weight_scale": positive(3, 4)}
    given |= {"x_scale": positive(5), "group_list": torch.tensor([2, 2, 5])}
    C.grouped_matmul_swiglu_quant_weight_nz(**given | changed)


def activation(**changed: Any) -> None:
    given = {"x": torch.ones(5, 4, dtype=torch.int32), "weight_scale": positive(3, 4), "quant_mode": 1}
    given |= {"activation_scale": positive(5), "group_index": torch.tensor(COUNTS)}
    C.npu_dequant_swiglu_quant(**given | changed)


def route(**changed: Any) -> None:
    torch_npu.npu_moe_init_routing_v2(**{"x": random(3, 8), "expert_idx": IDS} | BY_EXPERT | changed)


HALF, FLOAT, BFLOAT = torch.float16, torch.float32, torch.bfloat16
REFUSED: dict[str, Callable[[], Any]] = {
    "input: float16 or bfloat16": lambda: torch_npu.npu_dynamic_quant(positive(2, 3)),
    "input: float16 or bfloat16 [..., H], not torch.bfloat16 (3,)": lambda: torch_npu.npu_dynamic_quant(random(3)),
    "dst_type: torch.int8 is": lambda: torch_npu.npu_dynamic_quant(random(2, 3), dst_type=torch.float8_e4m3fn),
    "dst_type: a torch.dtype is emulated, not 1": lambda: torch_npu.npu_dynamic_quant(random(2, 3), dst_type=1),
    "smooth_scales: only": lambda: torch_npu.npu_dynamic_quant(random(2, 3), smooth_scales=random(3)),
    "quant_mode: only": lambda: torch_npu.npu_dynamic_quant(random(2, 3), quant_mode="pertensor"),
    "output_dtype: bfloat16, float16 and int32": lambda: grouped(output_dtype=FLOAT),
    "output_dtype: bfloat16, float16 and int32 are emulated, not torch.int8": lambda: grouped(output_dtype=None),
    "scale: one tensor torch.bfloat16 [3, 4]": lambda: grouped(scale=[positive(3, 4)]),
    "scale: one tensor torch.float32 [3, 4]": lambda: grouped(output_dtype=HALF),
    "scale: one tensor torch.bfloat16": lambda: grouped(scale=[positive(3, 5, dtype=BFLOAT)]),
    "scale: one tensor": lambda: grouped(scale=None),
    "scale: none where": lambda: grouped(output_dtype=torch.int32),
    "per_token_scale: none where": lambda: grouped(output_dtype=torch.int32, scale=None),
    "per_token_scale: float32 [5]": lambda: grouped(per_token_scale=[positive(4)]),
    "per_token_scale: float32 [5], not torch.bfloat16": lambda: grouped(per_token_scale=[positive(5, dtype=BFLOAT)]),
    "weight: torch.int8, where x is torch.bfloat16": lambda: grouped(x=[random(5, 8)]),
    "bias: is not emulated for int8": lambda: grouped(bias=[positive(3, 4)]),
    "offset: only the default": lambda: grouped(offset=[positive(3, 4)]),
    "x1: int8": lambda: product(x1=random(5, 8)),
    "x2: int8 [8, N]": lambda: product(x2=integers(7, 4)),
    "output_dtype: bfloat16 and float16": lambda: product(output_dtype=None),
    "scale: [4] or [1]": lambda: product(scale=positive(3)),
    "scale: [4] or [1] of (torch.float32,)": lambda: product(scale=positive(4, dtype=BFLOAT), output_dtype=HALF),
    "pertoken_scale: only products": lambda: product(pertoken_scale=None),
    "pertoken_scale: float32 [5]": lambda: product(pertoken_scale=positive(6)),
    "bias: [4] of": lambda: product(bias=positive(5)),
    "weight: must be in FRACTAL_NZ": lambda: projection(weight=integers(3, 8, 4)),
    "x: int8, not": lambda: projection(x=random(5, 8)),
    "weight: an even number": lambda: projection(weight=formats.in_blocks(integers(3, 8, 5))),
    "weight_scale: floating point [3, 4]": lambda: projection(weight_scale=positive(3, 3)),
    "x_scale: float32 [5]": lambda: projection(x_scale=positive(5, 1)),
    "group_list: 6 rows in all": lambda: projection(group_list=torch.tensor([2, 2, 6])),
    "swiglu_limit: only": lambda: projection(swiglu_limit=7.0),
    "x: int32 [rows, 2N]": lambda: activation(x=integers(5, 4)),
    "quant_mode: 1 is emulated": lambda: activation(quant_mode=0),
    "activate_left: only True": lambda: activation(activate_left=False),
    "group_index: is needed": lambda: activation(group_index=None),
    "weight_scale: float32, not": lambda: activation(weight_scale=positive(3, 4, dtype=BFLOAT)),
    "activation_scale: is needed": lambda: activation(activation_scale=None),
    "group_list: 6 rows in all, but x": lambda: activation(group_index=torch.tensor([1, 1, 4])),
    "quant_mode: -1 and 1": lambda: route(quant_mode=0),
    "x: torch.int8 cannot be quantised": lambda: route(x=integers(3, 8), quant_mode=1),
    "scale: of smoothing": lambda: route(scale=positive(1, 8), quant_mode=1),
    "scale: float32 [3]": lambda: route(scale=positive(4)),
}


@pytest.mark.parametrize("said", REFUSED)
def test_refuses(said: str) -> None:
    grouped(), product(), projection(), activation(), route()
    with pytest.raises(RefusedError) as refused:
        REFUSED[said]()
    assert said in str(refused.value)
