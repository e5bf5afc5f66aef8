"""The emulated torch_npu computes what it was asked for, or refuses and says what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch_npu
from torch_npu import custom_operators, strict
from torch_npu.strict import RefusedError, check, operator

X = torch.ones(2, 4)


@operator("double(Tensor x, *, int times=1, float? scale=None, str mode='add', Tensor[]? more=None) -> Tensor")
def double(x: torch.Tensor, times: int) -> torch.Tensor:
    check(times > 0, "times", f"must be positive, not {times}")
    return x * 2**times


def test_computes_with_defaults_and_arguments() -> None:
    assert torch.equal(double(X), X * 2)
    assert torch.equal(double(X, times=3, scale=None, mode="add", more=None), X * 8)


@pytest.mark.parametrize(
    ("positional", "named", "said"),
    [
        ((), {}, "torch_npu.double: x: is missing"),
        ((X, 2), {}, "torch_npu.double: arguments: at most 1 by position"),
        ((X,), {"x": X}, "torch_npu.double: x: given twice"),
        ((X,), {"tims": 2}, "torch_npu.double: tims: no such parameter"),
        (([1.0],), {}, "torch_npu.double: x: Tensor, not list"),
        ((X,), {"times": 1.5}, "torch_npu.double: times: int, not float 1.5"),
        ((X,), {"times": True}, "torch_npu.double: times: int, not bool"),
        ((X,), {"times": 0}, "torch_npu.double: times: must be positive, not 0"),
        ((X,), {"scale": 0.5}, "torch_npu.double: scale: only the default (None) is emulated, not 0.5"),
        ((X,), {"mode": "mul"}, "torch_npu.double: mode: only the default (add) is emulated, not 'mul'"),
        ((X,), {"more": [X]}, "torch_npu.double: more: only the default (None) is emulated"),
    ],
)
def test_refuses(positional: tuple[Any, ...], named: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(said)):
        double(*positional, **named)


def test_a_function_may_not_take_what_the_schema_does_not_have() -> None:
    with pytest.raises(TypeError, match=r"torch_npu\.halve has no parameter y"):
        operator("halve(Tensor x) -> Tensor")(lambda x, y: x)


@pytest.mark.parametrize("name", ["npu_anti_quant", "_npu_paged_attention"])
def test_an_operator_that_nobody_wrote_refuses_by_name(name: str) -> None:
    assert hasattr(torch_npu, name), "vllm-ascend asks for the operators of newer releases in this way"
    with pytest.raises(RefusedError, match=rf"torch_npu\.{name} is not emulated"):
        getattr(torch_npu, name)(X)
    with pytest.raises(RefusedError, match=rf"torch_npu\.{name}\.out is not emulated"):
        getattr(torch_npu, name).out(X)


def test_what_is_no_operator_is_not_there() -> None:
    assert not hasattr(torch_npu, "anything")
    with pytest.raises(AttributeError, match="no float4_e2m1fn_x2"):
        torch_npu.float4_e2m1fn_x2  # noqa: B018


def test_every_operator_is_exported_under_its_name() -> None:
    custom = {schema.partition("(")[0] for schema in custom_operators.OPERATORS}
    for name in set(strict.OPERATORS) - custom - {"npu_paged_cache_load", "double", "halve"}:
        assert not isinstance(getattr(torch_npu, name), strict.NotEmulated), name
    for name in custom:
        assert hasattr(torch.ops._C_ascend, name)


def test_calls_are_counted() -> None:
    before = strict.CALLS.get("npu_swiglu", 0)
    torch_npu.npu_swiglu(X)
    assert strict.CALLS["npu_swiglu"] == before + 1
