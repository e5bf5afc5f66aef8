"""vllm-ascend as it is, without npu-weave, serves FRACTAL_NZ and W8A8_DYNAMIC on the emulated torch_npu.

The answers of a quantised model differ from those of the plain one by hardly more than bfloat16 rounds. So what is
compared is every call of every layer's experts, with the same in numpy from the tensors of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fixtures.ascend_engine import Answer, answers, ascend_engine, in_own_process
from fixtures.quantised_models import quantise_checkpoint
from fixtures.tiny_models import EXPERTS, LAYERS, TinyFamily, expert_names
from fixtures.weave_ascend import CHIPS, NEWEST_RELEASE
from safetensors.torch import load_file

PROMPTS = ("hello world", "the quick brown fox", "0123456789" * 8)
COUNT = 4
PARALLEL = {"tensor_parallel_size": 2, "enable_expert_parallel": True}


class Call(NamedTuple):
    """What a layer's experts were given, ``[T, H]``, ``[T, K]`` and ``[T, K]``, and made of it, ``[T, H]``."""

    method: str
    hidden: list[list[float]]
    ids: list[list[int]]
    weights: list[list[float]]
    result: list[list[float]]


def record_calls(worker: Any) -> None:
    """For collective_rpc: from now on, each rank keeps the calls of its experts on itself."""
    from vllm_ascend.ops.fused_moe.moe_comm_method import MoECommMethod

    worker.expert_calls = calls = []
    plain = MoECommMethod.fused_experts

    def recording(method: Any, fused_experts_input: Any) -> Any:
        given = fused_experts_input
        before = [kept.tolist() for kept in (given.hidden_states, given.topk_ids, given.topk_weights)]
        done = plain(method, given)
        calls.append((type(method).__name__, *before, done.routed_out.tolist()))
        return done

    MoECommMethod.fused_experts = recording


def calls_of(worker: Any) -> list[tuple[Any, ...]]:
    """For collective_rpc, after `record_calls`."""
    return worker.expert_calls


def formats_of(worker: Any) -> dict[str, int]:
    """For collective_rpc: the format of each weight that is a matrix."""
    import torch_npu

    named = worker.get_model().named_parameters()
    return {name: torch_npu.get_npu_format(weight) for name, weight in named if weight.dim() > 1}


class Served(NamedTuple):
    answers: list[Answer]
    calls: list[list[Call]]
    formats: dict[str, int]


def serve(model: Path, chip: str, settings: dict[str, Any]) -> Served:
    """For `in_own_process`: answers of the stock engine in bfloat16, and each rank's calls of experts."""
    import os

    os.environ.update(EMULATED_CANN_SOC=CHIPS[chip], VLLM_ALLOW_INSECURE_SERIALIZATION="1")
    with ascend_engine(model, dtype="bfloat16", **settings) as llm:
        llm.collective_rpc(record_calls)
        found = answers(llm, PROMPTS, COUNT)
        calls = [[Call(*call) for call in rank] for rank in llm.collective_rpc(calls_of)]
        return Served(found, calls, llm.collective_rpc(formats_of)[0])


@pytest.mark.skipif(not NEWEST_RELEASE, reason="the same code in both releases, and engines take half a minute")
def test_blocks_give_the_same_answers_to_the_bit(families: Callable[..., TinyFamily]) -> None:
    base = families("qwen3_moe", 0).base
    plain = in_own_process(serve, base, "A2", {})
    blocked = in_own_process(serve, base, "A2", {"additional_config": {"weight_nz_mode": 2}})
    parts = ("w13_weight", "w2_weight", "qkv_proj.weight", "o_proj.weight", "mlp.gate.weight")
    in_blocks = {name for name in blocked.formats if name.endswith(parts)}
    assert len(in_blocks) == LAYERS * len(parts)
    assert {name for name, form in blocked.formats.items() if form == 29} == in_blocks
    assert set(plain.formats.values()) == {2}
    assert blocked.answers == plain.answers


SETUPS = {"one NPU": ("A2", {}, True, {"AllGatherCommImpl"})}
if NEWEST_RELEASE:
    SETUPS["expert parallel"] = ("A3", PARALLEL, False, {"MC2CommImpl", "AlltoAllCommImpl"})


@pytest.mark.parametrize("setup", SETUPS)
def test_quantised_experts(setup: str, families: Callable[..., TinyFamily], tmp_path: Path) -> None:
    chip, settings, experts_only, methods = SETUPS[setup]
    base = quantise_checkpoint(families("qwen3_moe", 0).base, tmp_path / "w8a8", experts_only=experts_only)
    described = json.loads((base / "quant_model_description.json").read_text())
    assert (described["model.layers.0.self_attn.q_proj.weight"] == "FLOAT") == experts_only
    served = in_own_process(serve, base, chip, settings | {"quantization": "ascend"})
    stacks = {name: form for name, form in served.formats.items() if name.endswith(("w13_weight", "w2_weight"))}
    assert (len(stacks), set(stacks.values())) == (2 * LAYERS, {29})
    state = load_file(base / "model.safetensors")
    layers = [[_expert(state, layer, expert) for expert in range(EXPERTS)] for layer in range(LAYERS)]
    errors: dict[Rounding, list[float]] = {_rounded: [], _as_it_is: []}
    for calls in served.calls:
        assert {call.method for call in calls} == methods
        for number, call in enumerate(calls):
            for rounding, found in errors.items():
                found += _errors(call, layers[number % LAYERS], rounding)
    assert np.median(errors[_rounded]) < 0.005 and max(errors[_rounded]) < 0.02, "more than bfloat16 rounds"
    assert np.median(errors[_as_it_is]) > 0.01, "nothing was quantised, or the comparison cannot tell"


class Expert(NamedTuple):
    """int8 matrices ``[out, in]`` and their scales ``[out]``."""

    w13: np.ndarray
    w13_scale: np.ndarray
    w2: np.ndarray
    w2_scale: np.ndarray


def _expert(state: dict[str, torch.Tensor], layer: int, expert: int) -> Expert:
    gate, up, down = expert_names("qwen3_moe", layer, expert)
    w13 = torch.cat([state[gate], state[up]]).long().numpy()
    scale = torch.cat([state[f"{gate}_scale"], state[f"{up}_scale"]])[:, 0]
    return Expert(
        w13, scale.double().numpy(), state[down].long().numpy(), state[f"{down}_scale"][:, 0].double().numpy()
    )


Rounding = Callable[[np.ndarray], tuple[np.ndarray, float]]


def _rounded(row: np.ndarray) -> tuple[np.ndarray, float]:
    scale = float(np.abs(row).max() / 127)
    return np.rint(row / (scale or 1)).astype(np.int64), scale


def _as_it_is(row: np.ndarray) -> tuple[np.ndarray, float]:
    return row, 1.0


def _through(expert: Expert, row: np.ndarray, rounding: Rounding) -> np.ndarray:
    """One token ``[H]`` through one expert."""
    whole, scale = rounding(row)
    gate, up = np.split(expert.w13 @ whole * expert.w13_scale * scale, 2)
    whole, scale = rounding(gate / (1 + np.exp(-gate)) * up)
    return expert.w2 @ whole * expert.w2_scale * scale


def _errors(call: Call, experts: list[Expert], rounding: Rounding) -> list[float]:
    """The largest error of each token's result, relative to its largest element."""
    errors = []
    for row, ids, weights, result in zip(call.hidden, call.ids, call.weights, call.result, strict=True):
        if not any(result):  # padding of a rank's share
            continue
        chosen = zip(ids, weights, strict=True)
        expected = sum(weight * _through(experts[expert], np.array(row), rounding) for expert, weight in chosen)
        errors.append(float(np.abs(np.array(result) - expected).max() / np.abs(expected).max()))
    return errors
