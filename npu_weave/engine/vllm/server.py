"""The HTTP side: a client's mistake gets a client's status, and unloading an adapter unloads it."""

from __future__ import annotations

import asyncio
import functools
import importlib
import re
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from npu_weave.config import config_from
from npu_weave.engine.vllm import versions

_LOOK_SECONDS = 1.0
"""Between two looks whether the engine that a call waits for is alive."""
_CODE = re.compile(r"\[([A-Z][A-Z0-9_]+)\] ")

_STATUS_BY_CODE = {
    "ADAPTER_NOT_FOUND": HTTPStatus.NOT_FOUND,
    "ADAPTER_PATH_OUTSIDE": HTTPStatus.FORBIDDEN,
    "ROWS_EXHAUSTED": HTTPStatus.CONFLICT,
    "MEMORY_EXHAUSTED": HTTPStatus.CONFLICT,
    "SLOTS_EXHAUSTED": HTTPStatus.CONFLICT,
    "DATA_PARALLEL_STATIC": HTTPStatus.CONFLICT,
    "SLOTS_PINNED": HTTPStatus.CONFLICT,
    "PLAN_BASE_TOO_LARGE": HTTPStatus.CONFLICT,
    "CATALOG_CACHE_FULL": HTTPStatus.CONFLICT,
    "CATALOG_BUSY": HTTPStatus.SERVICE_UNAVAILABLE,
    "CATALOG_UNREACHABLE": HTTPStatus.SERVICE_UNAVAILABLE,
    "CATALOG_DOWNLOAD_FAILED": HTTPStatus.SERVICE_UNAVAILABLE,
}
_CLIENT_ERRORS = ("ADAPTER_", "EXPERT_CONFIG_", "FILE_", "JSON_")
"""How the codes of all other errors begin that an adapter's own files, name or path cause."""


def status_of(message: str) -> HTTPStatus | None:
    """The HTTP status for an error message that carries one of our codes; None for any other message."""
    match = _CODE.search(message)
    if match is None:
        return None
    fallback = HTTPStatus.BAD_REQUEST if match[1].startswith(_CLIENT_ERRORS) else HTTPStatus.INTERNAL_SERVER_ERROR
    return _STATUS_BY_CODE.get(match[1], fallback)


def wrap_load(original: Callable[..., Any]) -> Callable[..., Any]:
    """``load_lora_adapter`` with the status that fits the error, without vLLM's words around it, and once for all who
    ask for the same name and path, at the same time or again.
    """

    @functools.wraps(original)
    async def load_lora_adapter(self: Any, request: Any, base_model_name: str | None = None) -> Any:
        if not _serves_adapters(self):
            return await original(self, request, base_model_name)
        under_way: dict[Any, asyncio.Task[Any]] = self.__dict__.setdefault("_npu_weave_loads", {})
        known = self.lora_requests.get(request.lora_name)
        if known is not None and known.lora_path == request.lora_path and not request.load_inplace:
            return f"Success: adapter '{request.lora_name}' is in service already."  # a retry has nothing to do
        asked = (request.lora_name, request.lora_path, base_model_name)
        task = under_way.get(asked)
        if task is None or request.load_inplace:
            task = asyncio.create_task(_load(original, self, request, base_model_name))
            if not request.load_inplace:
                under_way[asked] = task
                task.add_done_callback(lambda _: under_way.pop(asked))
        # a client that hangs up leaves the load to the others
        return await asyncio.shield(task)

    return load_lora_adapter


async def _load(original: Callable[..., Any], models: Any, request: Any, base_model_name: str | None) -> Any:
    response = await _while_alive(models.engine_client, original(models, request, base_model_name))
    error = getattr(response, "error", None)
    return response if error is None or status_of(error.message) is None else error_response(error.message)


async def _while_alive(engine_client: Any, call: Coroutine[Any, Any, Any]) -> Any:
    """What `call` returns, or the error of an engine that died: vLLM leaves such calls without an answer."""
    task = asyncio.create_task(call)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
            if engine_client.errored:
                raise engine_client.dead_error
    finally:
        task.cancel()
    return task.result()


def error_response(error: object) -> Any:
    """vLLM's error response for an error of ours, or for a message that carries one."""
    message = str(error)
    status, start = status_of(message), _CODE.search(message)
    assert status is not None and start is not None, "an error of ours"
    create_error_response = importlib.import_module(versions.assumed().error_responses).create_error_response
    kind = "".join(word.capitalize() for word in status.phrase.removesuffix("Error").split()) + "Error"
    return create_error_response(message=message[start.start() :], err_type=kind, status_code=status)


def wrap_unload(original: Callable[..., Any]) -> Callable[..., Any]:
    """``unload_lora_adapter`` that also tells the engine, which frees the memory when the last request is done."""

    @functools.wraps(original)
    async def unload_lora_adapter(self: Any, request: Any) -> Any:
        loaded = self.lora_requests.get(request.lora_name)
        response = await original(self, request)
        if getattr(response, "error", None) is None and loaded is not None and _serves_adapters(self):
            await _while_alive(self.engine_client, self.engine_client.remove_lora(loaded.lora_int_id))
        return response

    return unload_lora_adapter


def _serves_adapters(models: Any) -> bool:
    return config_from(models.engine_client.vllm_config.additional_config) is not None
