"""Every touch of vLLM's code: what, why, for which versions, and when it can go.

A patch is applied when its module is imported, in whichever process that happens. It changes nothing while the
configuration has no ``npu_weave`` key. A patch whose target is missing is refused, and so is every configuration with
the key then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

from vllm.logger import init_logger

from npu_weave.engine.vllm import hooks, versions
from npu_weave.engine.vllm.lazy import when_imported
from npu_weave.engine.vllm.patch import Patch
from npu_weave.errors import UnsupportedError

logger = init_logger("vllm.npu_weave")

PATCHES: tuple[Patch, ...] = (
    Patch(
        "vllm.engine.arg_utils",
        "EngineArgs.create_engine_config",
        "refuse at start-up what cannot be served exactly",
        "vLLM lets a plugin validate the final configuration",
        hooks.check_engine_config,
    ),
    Patch(
        "vllm.v1.worker.lora_model_runner_mixin",
        "LRUCacheWorkerLoRAManager, LoRAModelRunnerMixin.set_active_loras, .reset_lora_state",
        "put our adapter manager in the place of the LoRA manager, and set slots per request instead of per token",
        "vLLM lets a plugin name the worker's adapter manager",
        hooks.replace_manager,
    ),
    Patch(
        "vllm.model_executor.layers.fused_moe.config",
        "FusedMoEConfig.__post_init__",
        "--enable-lora makes the MoE layer choose a Triton LoRA kernel even on a CPU, which dies",
        "the choice of kernel looks at the platform before LoRA",
        hooks.hide_lora_from_moe,
    ),
    Patch(
        "vllm.v1.worker.cpu_worker",
        "CPUWorker.determine_available_memory",
        "the KV cache is sized by the worker's resident memory, which pages set aside for adapters are no part of yet",
        "vLLM lets a plugin say what memory it has set aside",
        hooks.count_memory_set_aside,
    ),
    Patch(
        "vllm.v1.engine.core",
        "EngineCore: add_lora, remove_lora, list_loras, pin_lora, preprocess_add_request, add_request, abort_requests, "
        "post_step, execute_dummy_batch, save_sharded_state, compute_weight_checksums; EngineCoreProc: has_work, "
        "_handle_shutdown",
        "load before a request is scheduled and not inside a step, while steps go on; key the prefix cache by content; "
        "keep operations that read whole parameters off the holes",
        "vLLM offers revisions of adapters and a load that may fail without ending the engine",
        hooks.control_adapters,
    ),
    Patch(
        "vllm.distributed.device_communicators.shm_broadcast",
        "SpinCondition.wait",
        "who waits for a message yields in a loop, which gives a processor to loads for milliseconds: while there are "
        "any, it sleeps, and wakes before them",
        "vLLM waits for messages asleep, or lets a plugin have it do so",
        hooks.wait_asleep,
    ),
    Patch(
        "vllm.entrypoints.openai.models.serving",
        "OpenAIServingModels: load_lora_adapter, unload_lora_adapter, init_static_loras",
        "unloading forgets the name but keeps the weights; a bad adapter is the client's error, not a 500; metrics of "
        "adapters begin when a server has started",
        "unload_lora_adapter calls remove_lora, errors carry a status, and a plugin may add metrics",
        hooks.serve_errors,
    ),
    Patch(
        versions.assumed().request_checks[0],
        f"{versions.assumed().request_checks[1]}._check_model",
        "resolvers of adapters are asked only where clients may also load and unload, and what fails is a 404",
        "resolvers have a switch of their own, and errors carry a status",
        hooks.check_catalog,
    ),
)

_installed: list[Patch] = []
_applied: dict[str, str] = {}


def install(patches: Sequence[Patch] = PATCHES) -> None:
    """Apply every patch now or on import of its module. Does nothing the second time."""
    for patch in patches:
        if patch.module not in _applied:
            _installed.append(patch)
            _applied[patch.module] = "waiting for import"
            when_imported(patch.module, _applier(patch))


def status() -> dict[str, str]:
    """Module -> "applied", "waiting for import" or "refused: why"."""
    return dict(_applied)


def report() -> None:
    """Log what is patched."""
    logger.info("npu-weave patched %s", "; ".join(f"{patch.module}: {patch.target}" for patch in _installed))


def require() -> None:
    """Make sure that this vLLM is one the patches were written for, and that none was refused.

    Raises:
        UnsupportedError: VLLM_VERSION or PATCH_REFUSED.
    """
    if versions.installed() is None:
        import vllm

        raise UnsupportedError(
            "VLLM_VERSION",
            "vllm",
            expected=versions.supported_versions(),
            got=vllm.__version__,
            remedy="install a supported version of vLLM",
        )
    for module, state in _applied.items():
        if state.startswith("refused"):
            raise UnsupportedError(
                "PATCH_REFUSED",
                module,
                expected="the target of the patch",
                got=state,
                remedy="install a supported version of the engine, unmodified",
            )


def _applier(patch: Patch) -> Callable[[ModuleType], None]:
    def apply(module: ModuleType) -> None:
        try:
            patch.apply(module)
        except AttributeError as error:
            _applied[patch.module] = f"refused: {error}"
        else:
            _applied[patch.module] = "applied"

    return apply
