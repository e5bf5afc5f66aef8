"""What is refused at start-up on an NPU, one case a setting. The engine itself is not needed."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from npu_weave.engine.ascend.settings import ON_NPU
from npu_weave.engine.vllm import settings
from npu_weave.engine.vllm.refusal import Refusal

pytestmark = pytest.mark.engine

ROOT = Path(__file__).resolve().parents[2]


PARALLEL = {
    "enable_expert_parallel": False,
    "tensor_parallel_size": 1,
    "data_parallel_size": 1,
    "data_parallel_hybrid_lb": False,
    "data_parallel_external_lb": False,
    "distributed_executor_backend": "mp",
}


def config(additional: dict[str, Any] | None = None, experts: int = 64, **parallel: Any) -> Any:
    """The parts of a VllmConfig that are looked at."""
    return SimpleNamespace(
        additional_config=additional or {},
        parallel_config=SimpleNamespace(**{**PARALLEL, **parallel}),
        model_config=SimpleNamespace(get_num_experts=lambda: experts, quantization=None),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(enable_sp=False)),
        load_config=SimpleNamespace(load_format="auto"),
    )


class Case(NamedTuple):
    setting: str
    refused: Any
    served: Any
    variable: tuple[str, str] | None = None
    """An environment variable that refuses `served` as well."""


def with_part(name: str, **fields: Any) -> Any:
    made = config()
    setattr(made, name, SimpleNamespace(**fields))
    return made


def quantised(additional: dict[str, Any]) -> Any:
    made = config(additional)
    made.model_config.quantization = "ascend"
    return made


CASES = [
    Case(
        "unequal shares of experts",
        config(experts=10, enable_expert_parallel=True, tensor_parallel_size=4),
        config(experts=12, enable_expert_parallel=True, tensor_parallel_size=2, data_parallel_size=2),
    ),
    Case(
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING with --data-parallel-size > 1",
        None,
        config(data_parallel_size=2),
        ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1"),
    ),
    Case(
        "--data-parallel-hybrid-lb or --data-parallel-external-lb",
        config(data_parallel_size=2, data_parallel_hybrid_lb=True),
        config(data_parallel_size=2),
    ),
    Case(
        "external_launcher with --data-parallel-size > 1",
        config(data_parallel_size=2, distributed_executor_backend="external_launcher"),
        config(data_parallel_size=2),
    ),
    Case(
        "enable_flashcomm1 with --data-parallel-size > 1",
        config({"enable_flashcomm1": True}, data_parallel_size=2),
        config({"enable_flashcomm1": True}),
    ),
    Case("enable_fused_mc2", config({"enable_fused_mc2": 1}), config({}), ("VLLM_ASCEND_ENABLE_FUSED_MC2", "1")),
    Case(
        "eplb_config",
        config({"eplb_config": {"expert_map_path": "map.json"}}),
        config({"eplb_config": {"dynamic_eplb": False}}),
    ),
    Case("mix_placement", config({"mix_placement": True}), config({"mix_placement": False})),
    Case(
        "--quantization",
        with_part("model_config", quantization="compressed-tensors"),
        with_part("model_config", quantization="ascend"),
    ),
    Case(
        "fusion_ops_gmmswigluquant=false",
        quantised({"ascend_fusion_config": {"fusion_ops_gmmswigluquant": False}}),
        quantised({"ascend_fusion_config": {"fusion_ops_gmmswigluquant": True}}),
    ),
    Case(
        "pass_config.enable_sp",
        with_part("compilation_config", pass_config=SimpleNamespace(enable_sp=True)),
        config({"enable_flashcomm1": True}),
    ),
    Case(
        "enable_flashcomm2_parallel_size",
        config({"enable_flashcomm2_parallel_size": 2}),
        config({}),
        ("VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE", "2"),
    ),
    Case("enable_shared_expert_dp", config({"enable_shared_expert_dp": True}), config({})),
    Case("multistream_overlap_gate", config({"multistream_overlap_gate": True}), config({})),
    Case(
        "weight_prefetch_config",
        config({"weight_prefetch_config": {"enabled": True}}),
        config({"weight_prefetch_config": {"enabled": False}}),
    ),
    Case("xlite_graph_config", config({"xlite_graph_config": {"enabled": True}}), config({"xlite_graph_config": {}})),
    Case(
        "--load-format netloader or rfork",
        with_part("load_config", load_format="netloader"),
        with_part("load_config", load_format="safetensors"),
    ),
    Case("VLLM_USE_V2_MODEL_RUNNER=1", None, config({}), ("VLLM_USE_V2_MODEL_RUNNER", "1")),
]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in CASES:
        if case.variable:
            monkeypatch.delenv(case.variable[0], raising=False)


def refusal(case: Case) -> Refusal:
    return next(each for each in ON_NPU if each.setting == case.setting)


def test_every_refusal_has_a_case_and_words_of_its_own() -> None:
    assert [each.setting for each in ON_NPU] == [case.setting for case in CASES]
    every = settings.refusals("npu")
    assert len({each.setting for each in every}) == len({each.reason for each in every}) == len(every)
    assert all(len(each.reason) > 20 and len(each.remedy) > 8 for each in ON_NPU)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.setting)
def test_the_setting_is_refused_and_nothing_near_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    applies = refusal(case).applies
    assert not applies(case.served)
    assert case.refused is None or applies(case.refused)
    if case.variable:
        monkeypatch.setenv(case.variable[0], "0")
        assert not applies(case.served)
        monkeypatch.setenv(*case.variable)
        assert applies(case.served)


def test_experts_lie_on_the_ranks_of_both_kinds_of_parallelism() -> None:
    shares = next(each for each in ON_NPU if each.setting == "unequal shares of experts")
    assert shares.applies(config(experts=10, enable_expert_parallel=True, tensor_parallel_size=2, data_parallel_size=2))
    assert not shares.applies(config(experts=10, tensor_parallel_size=2, data_parallel_size=2))


def test_adapters_may_come_and_go_without_data_parallelism(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    assert not any(each.applies(config()) for each in ON_NPU)


def test_additional_config_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vllm-ascend has it."""
    monkeypatch.setenv("VLLM_ASCEND_ENABLE_FUSED_MC2", "1")
    fused = next(each for each in ON_NPU if each.setting == "enable_fused_mc2")
    assert not fused.applies(config({"enable_fused_mc2": 0})) and fused.applies(config({}))


def test_expert_parallelism_is_refused_on_a_cpu_only() -> None:
    on_cpu = {each.setting for each in settings.refusals("cpu")} - {each.setting for each in settings.refusals("npu")}
    assert on_cpu == {"--enable-expert-parallel", "--data-parallel-size > 1", "VLLM_CPU_SGL_KERNEL=1"}


def test_the_table_for_users_has_every_refusal() -> None:
    table = (ROOT / "docs" / "compatibility.md").read_text()
    rows = set(re.findall(r"^\| `?([^|`]+)`? \| refused", table, re.MULTILINE))
    assert rows == {each.setting for each in settings.refusals("npu")} | {
        each.setting for each in settings.refusals("cpu")
    }
