"""Which settings of vllm-ascend cannot be served exactly, and are refused at start-up besides vLLM's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from npu_weave.engine.vllm.refusal import Refusal
from npu_weave.engine.vllm.settings import runtime_loading


def _value(config: Any, key: str, variable: str | None = None) -> Any:
    """A setting of vllm-ascend: from additional config, else from its environment variable, else None."""
    additional = config.additional_config if isinstance(config.additional_config, dict) else {}
    if key in additional:
        return additional[key]
    text = os.environ.get(variable, "") if variable else ""
    return int(text) if text.strip().lstrip("-").isdigit() else text or None


def _is_on(key: str, variable: str | None = None) -> Callable[[Any], bool]:
    return lambda config: bool(_value(config, key, variable))


def _part_is_on(key: str, *fields: str) -> Callable[[Any], bool]:
    """Whether one of `fields` is set in the object under `key`."""

    def applies(config: Any) -> bool:
        part = _value(config, key)
        return isinstance(part, dict) and any(part.get(field) for field in fields)

    return applies


def _compiles_sequence_parallelism(config: Any) -> bool:
    passes = getattr(config.compilation_config, "pass_config", None)
    return bool(getattr(passes, "enable_sp", False) or getattr(passes, "enable_sequence_parallelism", False))


def _data_parallel(config: Any) -> bool:
    return bool(config.parallel_config.data_parallel_size > 1)


def _load_format(config: Any) -> str:
    value = config.load_config.load_format
    return str(getattr(value, "value", value))


_FLASHCOMM1 = "VLLM_ASCEND_ENABLE_FLASHCOMM1"

ON_NPU: tuple[Refusal, ...] = (
    Refusal(
        "unequal shares of experts",
        lambda config: bool(
            config.parallel_config.enable_expert_parallel
            and config.model_config.get_num_experts()
            % (config.parallel_config.tensor_parallel_size * config.parallel_config.data_parallel_size)
        ),
        "ranks of expert parallelism would hold different numbers of experts",
        "choose --tensor-parallel-size and --data-parallel-size whose product divides the number of experts",
    ),
    Refusal(
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING with --data-parallel-size > 1",
        lambda config: _data_parallel(config) and runtime_loading(),
        "ranks share their steps, and adapters that come and go would do so at different times on each",
        "name every adapter at start (--adapter), and drop VLLM_ALLOW_RUNTIME_LORA_UPDATING and --adapter-root",
    ),
    Refusal(
        "--data-parallel-hybrid-lb or --data-parallel-external-lb",
        lambda config: bool(
            config.parallel_config.data_parallel_hybrid_lb or config.parallel_config.data_parallel_external_lb
        ),
        "several servers would load adapters, each on its own ranks and at its own time",
        "serve all ranks from one server; other machines join with --headless",
    ),
    Refusal(
        "external_launcher with --data-parallel-size > 1",
        lambda config: (
            _data_parallel(config) and config.parallel_config.distributed_executor_backend == "external_launcher"
        ),
        "ranks without requests take part in the others' steps in another way, never proved exact with adapters",
        "leave --distributed-executor-backend to vLLM",
    ),
    Refusal(
        "enable_flashcomm1 with --data-parallel-size > 1",
        lambda config: _data_parallel(config) and bool(_value(config, "enable_flashcomm1", _FLASHCOMM1)),
        "sequence parallelism gathers the ranks' tokens in another way, never proved exact with adapters",
        "drop enable_flashcomm1 and VLLM_ASCEND_ENABLE_FLASHCOMM1",
    ),
    Refusal(
        "enable_fused_mc2",
        _is_on("enable_fused_mc2", "VLLM_ASCEND_ENABLE_FUSED_MC2"),
        "one kernel dispatches, multiplies and combines, with weight lists that cannot have holes",
        "drop enable_fused_mc2 and VLLM_ASCEND_ENABLE_FUSED_MC2; MC2 itself is used",
    ),
    Refusal(
        "eplb_config",
        _part_is_on("eplb_config", "dynamic_eplb", "expert_map_path", "num_redundant_experts"),
        "expert load balancing places and moves expert rows on its own",
        "drop eplb_config",
    ),
    Refusal(
        "mix_placement",
        _is_on("mix_placement"),
        "shared experts become rows among the routed ones",
        "drop mix_placement",
    ),
    Refusal(
        "--quantization",
        lambda config: config.model_config.quantization not in (None, "ascend"),
        "of quantised checkpoints, those of ModelSlim with W8A8_DYNAMIC experts are served",
        "serve an unquantised checkpoint, or one of ModelSlim",
    ),
    Refusal(
        "fusion_ops_gmmswigluquant=false",
        lambda config: (
            config.model_config.quantization == "ascend"
            and (_value(config, "ascend_fusion_config") or {}).get("fusion_ops_gmmswigluquant") is False
        ),
        "the scales of quantised experts are cast whole, rows without memory included",
        "drop fusion_ops_gmmswigluquant",
    ),
    Refusal(
        "pass_config.enable_sp",
        _compiles_sequence_parallelism,
        "compiled sequence parallelism was never proved exact with adapters",
        "use enable_flashcomm1 instead",
    ),
    Refusal(
        "enable_flashcomm2_parallel_size",
        _is_on("enable_flashcomm2_parallel_size", "VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE"),
        "the output projection leaves ranks with parts of the sequence",
        "drop enable_flashcomm2_parallel_size and VLLM_ASCEND_FLASHCOMM2_PARALLEL_SIZE",
    ),
    Refusal(
        "enable_shared_expert_dp",
        _is_on("enable_shared_expert_dp"),
        "it turns sequence parallelism on for the layers with shared experts",
        "drop enable_shared_expert_dp",
    ),
    Refusal(
        "multistream_overlap_gate",
        _is_on("multistream_overlap_gate"),
        "experts are chosen elsewhere, on a stream of their own",
        "drop multistream_overlap_gate",
    ),
    Refusal(
        "weight_prefetch_config",
        _part_is_on("weight_prefetch_config", "enabled"),
        "expert weights are prefetched by size, into rows without memory",
        "drop weight_prefetch_config",
    ),
    Refusal(
        "xlite_graph_config",
        _part_is_on("xlite_graph_config", "enabled"),
        "xlite runs MoE layers in a runtime of its own",
        "drop xlite_graph_config",
    ),
    Refusal(
        "--load-format netloader or rfork",
        lambda config: _load_format(config) in ("netloader", "rfork"),
        "other engines would be sent whole parameters, holes included",
        "load the base model from files",
    ),
    Refusal(
        "VLLM_USE_V2_MODEL_RUNNER=1",
        lambda config: os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0") not in ("", "0"),
        "the second model runner sets a step's adapters another way",
        "unset VLLM_USE_V2_MODEL_RUNNER",
    ),
)
