"""Which vLLM settings cannot be served exactly, and are refused at start-up."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from npu_weave.adapters.catalog import open_catalog
from npu_weave.adapters.geometry import SUPPORTED_MODEL_TYPES, MoEGeometry
from npu_weave.config import WeaveConfig
from npu_weave.engine.vllm import versions
from npu_weave.engine.vllm.refusal import Refusal
from npu_weave.errors import UnsupportedError
from npu_weave.residency.pins import read_pins


def _parallel(name: str, limit: int = 1) -> Callable[[Any], bool]:
    return lambda config: getattr(config.parallel_config, name, limit) > limit


COMMON: tuple[Refusal, ...] = (
    Refusal(
        "no --enable-lora",
        lambda config: config.lora_config is None,
        "adapters travel through the LoRA control plane",
        "add --enable-lora --max-loras N (npu-weave serve does it)",
    ),
    Refusal(
        "device",
        lambda config: config.device_config.device_type not in versions.assumed().devices,
        "answers were not proved exact on this device with this version of vLLM",
        "serve on a CPU with vLLM 0.32, or on an Ascend NPU with vllm-ascend 0.23.0 or 0.26.0rc1",
    ),
    Refusal(
        "model type",
        lambda config: _model_type(config) not in SUPPORTED_MODEL_TYPES,
        "the expert layout of this model is not known",
        f"serve one of {', '.join(sorted(SUPPORTED_MODEL_TYPES))}",
    ),
    Refusal(
        "--enable-eplb",
        lambda config: config.parallel_config.enable_eplb,
        "expert load balancing moves expert rows on its own",
        "drop --enable-eplb",
    ),
    Refusal(
        "--pipeline-parallel-size > 1",
        _parallel("pipeline_parallel_size"),
        "stages would stage adapters at different times",
        "use --tensor-parallel-size instead",
    ),
    Refusal(
        "--prefill-context-parallel-size > 1",
        _parallel("prefill_context_parallel_size"),
        "tokens of a request are split over ranks, without their adapter slots",
        "drop the option",
    ),
    Refusal(
        "--decode-context-parallel-size > 1",
        _parallel("decode_context_parallel_size"),
        "it was never proved exact with adapters",
        "drop the option",
    ),
    Refusal(
        "--enable-dbo",
        lambda config: config.parallel_config.enable_dbo or config.parallel_config.ubatch_size > 0,
        "a step is cut into micro-batches, without their adapter slots",
        "drop --enable-dbo and --ubatch-size",
    ),
    Refusal(
        "--enable-elastic-ep",
        lambda config: config.parallel_config.enable_elastic_ep,
        "experts move between ranks while serving",
        "drop --enable-elastic-ep",
    ),
    Refusal(
        "--speculative-config",
        lambda config: config.speculative_config is not None,
        "a drafter runs MoE layers with token positions of its own",
        "drop --speculative-config",
    ),
    Refusal(
        "--enable-sleep-mode",
        lambda config: config.model_config.enable_sleep_mode,
        "sleeping frees and refills weights behind the virtual tensors",
        "drop --enable-sleep-mode",
    ),
    Refusal(
        "--cpu-offload-gb",
        lambda config: (
            config.offload_config.uva.cpu_offload_gb > 0 or config.offload_config.prefetch.offload_group_size > 0
        ),
        "offloaded weights are copied whole, holes included",
        "drop the offload options",
    ),
    Refusal(
        "--weight-transfer-config",
        lambda config: config.weight_transfer_config is not None,
        "new base weights would be processed over the widened tensors",
        "restart the server with the new base model",
    ),
    Refusal(
        "--kv-transfer-config",
        lambda config: config.kv_transfer_config is not None,
        "another engine's cache does not know adapter revisions",
        "drop --kv-transfer-config and --kv-offloading-size",
    ),
    Refusal(
        "--model-impl transformers",
        lambda config: (
            str(getattr(config.model_config.model_impl, "value", config.model_config.model_impl)) == "transformers"
        ),
        "its MoE layers are built another way",
        "use --model-impl vllm",
    ),
    Refusal(
        "--fully-sharded-loras",
        lambda config: config.lora_config is not None and config.lora_config.fully_sharded_loras,
        "adapters are whole experts, there is nothing to shard",
        "drop --fully-sharded-loras",
    ),
    Refusal(
        "--enable-tower-connector-lora",
        lambda config: config.lora_config is not None and config.lora_config.enable_tower_connector_lora,
        "adapters are routed experts only",
        "drop --enable-tower-connector-lora",
    ),
    Refusal(
        "pooling model",
        lambda config: config.model_config.runner_type != "generate",
        "only text generation was proved exact",
        "serve the model with --runner generate",
    ),
)


ON_CPU: tuple[Refusal, ...] = (
    Refusal(
        "--quantization",
        lambda config: config.quant_config is not None or config.model_config.quantization is not None,
        "quantised experts carry scales that adapters would need too",
        "serve an unquantised checkpoint",
    ),
    Refusal(
        "--enable-expert-parallel",
        lambda config: config.parallel_config.enable_expert_parallel,
        "the CPU kernel ignores the expert map of expert parallelism",
        "use --tensor-parallel-size instead",
    ),
    Refusal(
        "--data-parallel-size > 1",
        _parallel("data_parallel_size"),
        "ranks exchange tokens before gating, without their adapter slots",
        "run one engine per replica",
    ),
    Refusal(
        "VLLM_CPU_SGL_KERNEL=1",
        lambda config: os.environ.get("VLLM_CPU_SGL_KERNEL", "0") not in ("", "0"),
        "its kernel packs experts together",
        "unset VLLM_CPU_SGL_KERNEL",
    ),
)


def refusals(device_type: str) -> tuple[Refusal, ...]:
    """All that is refused on devices of this type, in the order in which it is looked for."""
    if device_type == "npu":
        from npu_weave.engine.ascend.settings import ON_NPU

        return COMMON + ON_NPU
    return COMMON + ON_CPU


def check_settings(vllm_config: Any, config: WeaveConfig) -> None:
    """Refuse settings that npu-weave cannot serve exactly.

    Raises:
        UnsupportedError: SETTING_UNSUPPORTED, for the first setting of `refusals` that applies, or
            ROOTS_MISSING when adapters may be loaded over HTTP from anywhere.
        ConfigError: CATALOG_INVALID, PINS_INVALID.
        UnsupportedError, CheckpointError: the model has no experts that could be served, see `MoEGeometry.from_config`.
    """
    for refusal in refusals(vllm_config.device_config.device_type):
        if refusal.applies(vllm_config):
            raise UnsupportedError(
                "SETTING_UNSUPPORTED",
                refusal.setting,
                expected="a setting that npu-weave serves exactly",
                got=f"{refusal.setting}: {refusal.reason}",
                remedy=refusal.remedy,
            )
    MoEGeometry.from_config(vllm_config.model_config.hf_config.to_dict())
    if runtime_loading() and config.roots is None:
        raise UnsupportedError(
            "ROOTS_MISSING",
            "npu_weave.allowed_roots",
            expected="directories below which adapters may lie, as VLLM_ALLOW_RUNTIME_LORA_UPDATING is set",
            got="none",
            remedy="set allowed_roots, or start with npu-weave serve --adapter-root DIR",
        )
    read_pins(config.pins)
    if config.catalog is not None:
        open_catalog(config.catalog, cache=config.catalog_cache, cache_bytes=config.catalog_cache_size)


def runtime_loading() -> bool:
    """Whether adapters may be loaded and unloaded over HTTP."""
    return os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").strip().lower() in ("1", "true")


def _model_type(vllm_config: Any) -> str:
    return str(getattr(vllm_config.model_config.hf_config, "model_type", ""))
