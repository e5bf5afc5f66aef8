"""What each patch puts in place; `patches` says why. Without our key, every replacement runs vLLM's own code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from vllm.logger import init_logger

from npu_weave.config import config_from
from npu_weave.engine.vllm import versions
from npu_weave.errors import CapacityError, UnsupportedError

logger = init_logger("vllm.npu_weave.core")

_Method = Callable[..., Any]


def check_engine_config(module: ModuleType) -> None:
    """Validate settings as soon as the final configuration exists."""

    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
            vllm_config = original(self, *args, **kwargs)
            config = config_from(vllm_config.additional_config)
            if config is not None:
                from npu_weave.engine.vllm import patches, settings

                patches.require()
                settings.check_settings(vllm_config, config)
                patches.report()
            return vllm_config

        return create_engine_config

    _replace(module.EngineArgs, "create_engine_config", wrap)


def replace_manager(module: ModuleType) -> None:
    """Our manager where vLLM's would be made, and its fast path once a step."""
    original_manager = module.LRUCacheWorkerLoRAManager

    def make_manager(vllm_config: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
        config = config_from(vllm_config.additional_config)
        if config is None:
            return original_manager(vllm_config, device, *args, **kwargs)
        from npu_weave.engine.vllm.backend import backend_of
        from npu_weave.engine.vllm.manager import WeaveAdapterManager

        return WeaveAdapterManager(vllm_config, device, config, backend_of(vllm_config.device_config.device_type))

    def wrap_step(original: _Method) -> _Method:
        @functools.wraps(original)
        def set_active_loras(self: Any, input_batch: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> None:
            try:
                set_step = self.lora_manager.set_step
            except AttributeError:  # vLLM's own manager, or none
                original(self, input_batch, num_scheduled_tokens, *args, **kwargs)
            else:
                set_step(input_batch.request_lora_mapping[: input_batch.num_reqs], num_scheduled_tokens)

        return set_active_loras

    def wrap_reset(original: _Method) -> _Method:
        @functools.wraps(original)
        def reset_lora_state(self: Any) -> None:
            if hasattr(getattr(self, "lora_manager", None), "set_step"):
                raise _unsupported("reloading base weights", "restart the server with the new base model")
            original(self)

        return reset_lora_state

    _replace(module.LoRAModelRunnerMixin, "set_active_loras", wrap_step)
    if versions.assumed().reloads_weights:
        _replace(module.LoRAModelRunnerMixin, "reset_lora_state", wrap_reset)
    module.LRUCacheWorkerLoRAManager = make_manager  # type: ignore[attr-defined]


def hide_lora_from_moe(module: ModuleType) -> None:
    """On a CPU the MoE layer must not know of LoRA: it has none."""

    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        def post_init(self: Any) -> None:
            from vllm.config import get_current_vllm_config_or_none
            from vllm.platforms import current_platform

            vllm_config = get_current_vllm_config_or_none()
            if vllm_config is not None and config_from(vllm_config.additional_config) and current_platform.is_cpu():
                self.is_lora_enabled = False
            original(self)

        return post_init

    _replace(module.FusedMoEConfig, "__post_init__", wrap)


def count_memory_set_aside(module: ModuleType) -> None:
    """Pages that exist and are not mapped are physical memory all the same; a KV cache of a given size stays so."""

    def wrap(original: _Method) -> _Method:
        @functools.wraps(original)
        def determine_available_memory(self: Any) -> int:
            available: int = original(self)
            set_aside: int = getattr(getattr(self.model_runner, "lora_manager", None), "set_aside_bytes", 0)
            if set_aside == 0 or self.cache_config.kv_cache_memory_bytes is not None:
                return available
            if set_aside >= available:
                raise CapacityError(
                    "MEMORY_EXHAUSTED",
                    "KV cache",
                    expected=f"more than the {set_aside} bytes set aside for adapters",
                    got=f"{available} bytes",
                    remedy="lower npu_weave.adapter_memory, or raise --gpu-memory-utilization",
                )
            logger.info("npu-weave: %.1f MiB set aside for adapters come off the KV cache", set_aside / 2**20)
            return available - set_aside

        return determine_available_memory

    _replace(module.CPUWorker, "determine_available_memory", wrap)


def control_adapters(module: ModuleType) -> None:
    """The engine core loads and unloads through `AdapterControl`."""
    core = module.EngineCore
    for name, action in _CORE_ACTIONS.items():
        _replace(core, name, functools.partial(_controlled, action))
    for name, action in _PROCESS_ACTIONS.items():
        _replace(module.EngineCoreProc, name, functools.partial(_controlled, action))
    core.npu_weave_memory = _memory
    core.npu_weave_loads = _loads
    core.npu_weave_status = _status
    for name in versions.assumed().whole_weight_operations:
        _replace(core, name, _refused_under_control)


def wait_asleep(module: ModuleType) -> None:
    """Processes that wait for each other's messages sleep while loads are under way."""
    from npu_weave.engine.vllm import waiting

    _replace(module.SpinCondition, "wait", waiting.wrap_wait)


def serve_errors(module: ModuleType) -> None:
    """The HTTP side: errors with a fitting status, and unload that unloads."""
    from npu_weave.engine.vllm import metrics, server

    models = module.OpenAIServingModels
    _replace(models, "init_static_loras", metrics.wrap_start)
    _replace(models, "load_lora_adapter", server.wrap_load)
    _replace(models, "unload_lora_adapter", server.wrap_unload)


def check_catalog(module: ModuleType) -> None:
    """Requests find adapters of the catalogue."""
    from npu_weave.engine.vllm import catalog_service

    _replace(getattr(module, versions.assumed().request_checks[1]), "_check_model", catalog_service.wrap_check)


def _controlled(action: Callable[..., Any], original: _Method) -> _Method:
    """`action(control, core, original, *args)` when the engine serves adapters, else `original`."""

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        control = control_of(self)
        if control is None:
            return original(self, *args, **kwargs)
        return action(control, self, functools.partial(original, self), *args, **kwargs)

    return method


def control_of(core: Any) -> Any:
    """The `AdapterControl` of an engine core, made on first use; None without our key."""
    try:
        return core.__dict__["_npu_weave_control"]
    except KeyError:
        config = config_from(core.vllm_config.additional_config)
        control = None
        if config is not None:
            from npu_weave.engine.vllm import parent
            from npu_weave.engine.vllm.control import AdapterControl
            from npu_weave.residency.load_threads import hand_over_soon

            control = AdapterControl(core, config, functools.partial(_fail_request, core))
            hand_over_soon()
            if hasattr(core, "input_queue"):  # in a process of its own
                parent.end_with_parent()
        core.__dict__["_npu_weave_control"] = control
        return control


def _memory(core: Any) -> list[dict[str, int]]:
    """Utility ``npu_weave_memory``: every worker's bytes and counts; an empty list without our key."""
    control = control_of(core)
    return [] if control is None else control.reports.memory()


def _loads(core: Any) -> dict[str, Any]:
    """Utility ``npu_weave_loads``: see `StatusReports.loads`; empty without our key."""
    control = control_of(core)
    return {} if control is None else control.reports.loads()


def _status(core: Any) -> dict[str, Any] | None:
    """Utility ``npu_weave_status``: see `StatusReports.status`; None without our key."""
    control = control_of(core)
    return None if control is None else control.reports.status()


def _preprocess(control: Any, core: Any, original: _Method, request: Any) -> Any:
    if not control.admit(request):
        # its tokens cannot be hashed before the adapter's content is known: it goes on as it came
        return request, request.current_wave
    try:
        return original(request)
    except BaseException:
        control.release(request.request_id)
        raise


def _add_request(control: Any, core: Any, original: _Method, request: Any, *args: Any, **kwargs: Any) -> None:
    control.submit(request, lambda ready: original(ready, *args, **kwargs))


def _fail_request(core: Any, request: Any, error: Exception) -> None:
    """End one request with `error`; the engine goes on."""
    logger.error("request %s refused: %s", request.request_id, error)
    if not hasattr(core, "_send_error_outputs_to_client"):
        raise error  # the engine runs inside its caller, who gets to see it
    core._send_error_outputs_to_client([request.request_id], request.client_index)


def _after_step(control: Any, core: Any, original: _Method, *args: Any, **kwargs: Any) -> Any:
    result = original(*args, **kwargs)
    control.collect()
    control.poll()
    return result


def _dummy_batch(control: Any, core: Any, original: _Method) -> Any:
    control.step_without_requests()
    return original()


def _abort(control: Any, core: Any, original: _Method, request_ids: list[str]) -> None:
    original(request_ids)
    control.abort(request_ids)
    control.collect()


def _stop(control: Any, core: Any, original: _Method) -> Any:
    if core.shutdown_state.name == "REQUESTED" and core.vllm_config.shutdown_timeout == 0:
        control.abandon()
    return original()


def _refused_under_control(original: _Method) -> _Method:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if control_of(self) is not None:
            raise _unsupported(original.__name__, "run it on the base model without npu-weave")
        return original(self, *args, **kwargs)

    return method


_CORE_ACTIONS: dict[str, Callable[..., Any]] = {
    "add_lora": lambda control, core, original, request: control.add(request),
    "remove_lora": lambda control, core, original, lora_id: control.remove(lora_id),
    "list_loras": lambda control, core, original: control.public_ids(),
    "pin_lora": lambda control, core, original, lora_id: control.pin(lora_id),
    "preprocess_add_request": _preprocess,
    "add_request": _add_request,
    "abort_requests": _abort,
    "post_step": _after_step,
    "execute_dummy_batch": _dummy_batch,
}

_PROCESS_ACTIONS: dict[str, Callable[..., Any]] = {
    "has_work": lambda control, core, original: original() or control.busy,
    "_handle_shutdown": _stop,
}


def _unsupported(thing: str, remedy: str) -> UnsupportedError:
    return UnsupportedError(
        "OPERATION_UNSUPPORTED",
        thing,
        expected="an operation that leaves weights with holes alone",
        got="one that reads or writes whole parameters",
        remedy=remedy,
    )


def _replace(owner: Any, name: str, wrap: Callable[[_Method], _Method]) -> None:
    """Put ``wrap(original)`` in the place of `owner.name`; AttributeError when it is not defined there."""
    setattr(owner, name, wrap(vars(owner)[name] if name in vars(owner) else getattr(owner, name)))
