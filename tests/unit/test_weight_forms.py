"""Experts in the forms of vllm-ascend, against loops and against how ModelSlim quantises. No engine, no NPU."""

from __future__ import annotations

import pytest
import torch
from fixtures.quantised_models import quantise as as_modelslim

from npu_weave.adapters.adapter import ExpertTensors
from npu_weave.engine.ascend.weight_forms import Unquantised, W8A8Dynamic, quantise
from npu_weave.memory import fractal_nz
from npu_weave.memory.npu_tensor import NpuFormat

pytestmark = pytest.mark.engine

H, I = 48, 40  # noqa: E741  (the paper's letters)
BOTH_BLOCKED = {name: NpuFormat.FRACTAL_NZ for name in ("w13_weight", "w2_weight")}
BOTH_PLAIN = {name: NpuFormat.ND for name in ("w13_weight", "w2_weight")}


def experts(count: int, dtype: torch.dtype = torch.bfloat16) -> list[ExpertTensors]:
    generator = torch.Generator().manual_seed(7)

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).to(dtype)

    return [ExpertTensors(matrix(I, H), matrix(I, H), matrix(H, I)) for _ in range(count)]


def half(rank: int) -> object:
    return lambda tensor, dimension: tensor.chunk(2, dimension)[rank]


def whole(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    return tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quantised_as_modelslim_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = (torch.randn(64, 96, generator=generator) * torch.logspace(-3, 2, 64)[:, None]).to(dtype)
    weight[5] = 0
    weight[6, 3] = 100 * weight[6].abs().max()
    ours, scale = quantise(weight)
    theirs, their_scale = as_modelslim(weight)
    assert torch.equal(ours, theirs) and torch.equal(scale.float(), their_scale)
    assert scale.dtype == dtype and not ours[5].any()
    assert int(ours.abs().max()) == 127
    # what it stands for is as near as a step of that size allows, and the roundings in the weights' type
    error = (ours.float() * scale.float() - weight.float()).abs()
    assert bool((error <= scale.float() * (0.51 + 127 * torch.finfo(dtype).eps)).all())


def test_unquantised_rows_are_transposed_with_gate_before_up() -> None:
    made = experts(3)
    form = Unquantised(torch.bfloat16, BOTH_PLAIN)
    packed = form.processed(form.stored(made, whole))
    for place, expert in enumerate(made):
        for out in range(I):
            assert torch.equal(packed["w13_weight"][place, :, out], expert.gate[out])
            assert torch.equal(packed["w13_weight"][place, :, I + out], expert.up[out])
        assert torch.equal(packed["w2_weight"][place], expert.down.T)
    blocked = Unquantised(torch.bfloat16, BOTH_BLOCKED)
    for name, weight in blocked.processed(blocked.stored(made, whole)).items():
        assert weight.shape == fractal_nz.storage_shape(tuple(packed[name].shape), torch.bfloat16)
        assert torch.equal(fractal_nz.unpack(weight, tuple(packed[name].shape)), packed[name])


def test_unquantised_experts_take_the_engines_type() -> None:
    form = Unquantised(torch.float32, BOTH_PLAIN)
    packed = form.processed(form.stored(experts(1), whole))
    assert {weight.dtype for weight in packed.values()} == {torch.float32}


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_share_the_scales_of_a_matrix_quantised_whole(rank: int) -> None:
    made = experts(2)
    form = W8A8Dynamic(torch.bfloat16, BOTH_BLOCKED)
    stored = form.stored(made, half(rank))  # type: ignore[arg-type]
    mine = slice(rank * I // 2, (rank + 1) * I // 2)
    for place, expert in enumerate(made):
        gate, up, down = (as_modelslim(each) for each in expert)
        assert torch.equal(stored["w13_weight"][place], torch.cat([gate[0][mine], up[0][mine]]))
        assert torch.equal(stored["w13_weight_scale"][place].float(), torch.cat([gate[1][mine], up[1][mine]]))
        assert torch.equal(stored["w2_weight"][place], down[0][:, mine])
        assert torch.equal(stored["w2_weight_scale"][place].float(), down[1])
    assert not any(stored[name].any() for name in ("w13_weight_offset", "w2_weight_offset"))


def test_quantised_rows_are_blocked_and_scales_flat() -> None:
    form = W8A8Dynamic(torch.bfloat16, BOTH_BLOCKED)
    stored = form.stored(experts(2), whole)
    packed = form.processed(stored)
    assert list(packed) == list(form.fields)
    assert torch.equal(fractal_nz.unpack(packed["w13_weight"], (2, H, 2 * I)), stored["w13_weight"].transpose(1, 2))
    assert torch.equal(fractal_nz.unpack(packed["w2_weight"], (2, I, H)), stored["w2_weight"].transpose(1, 2))
    scales = packed["w13_weight_scale_fp32"], packed["w2_weight_scale"]
    assert [(tuple(each.shape), each.dtype) for each in scales] == [
        ((2, 2 * I), torch.float32),
        ((2, H), torch.bfloat16),
    ]
    assert torch.equal(scales[0], stored["w13_weight_scale"][..., 0].float())
    assert torch.equal(scales[1], stored["w2_weight_scale"][..., 0])
