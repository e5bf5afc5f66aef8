"""Adapters of the catalogue over HTTP: put into service when a request names them, taken out when others need room."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.logger import init_logger

from npu_weave.adapters.catalog import AdapterCatalog, open_catalog
from npu_weave.config import WeaveConfig, config_from
from npu_weave.engine.vllm.server import error_response
from npu_weave.errors import CapacityError, WeaveError

logger = init_logger("vllm.npu_weave.catalog")

FETCHES = 2
"""Adapters that are looked for, or downloaded, at once; nobody whose adapter is here waits with the others."""
MOST_WAITING = 256
"""Adapters that may be on their way."""
GRACE_SECONDS = 30.0
"""How long after it was asked for an adapter is not taken out: the request may be on its way to the engine still."""


class CatalogService:
    """Puts adapters of a catalogue into service, as many as have a host copy (``--max-cpu-loras``).

    Beyond that number those not asked for the longest leave; they come back when they are asked for again. Adapters
    that were named at start or loaded over HTTP are none of its business. Runs on the server's event loop.

    Args:
        models: vLLM's OpenAIServingModels.
        limit: adapters in service.
    """

    def __init__(self, models: Any, catalog: AdapterCatalog, limit: int) -> None:
        self._models, self._catalog, self._limit = models, catalog, limit
        self._served: OrderedDict[str, float] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Any]] = {}
        self._threads = ThreadPoolExecutor(FETCHES, thread_name_prefix="npu-weave-catalog")

    async def bring(self, name: str) -> Any:
        """Make sure that an adapter is in service.

        Returns:
            None when it is, or when there is none of that name; else vLLM's error response, with a status that fits.
        """
        if name in self._models.lora_requests:
            self._note_use(name)
            return None
        task = self._under_way.get(name)
        if task is None:
            if len(self._under_way) >= MOST_WAITING:
                return error_response(_busy(name))
            task = self._under_way[name] = asyncio.create_task(self._fetch(name))
            task.add_done_callback(lambda _: self._under_way.pop(name))
        # a client that hangs up leaves it to the others
        return await asyncio.shield(task)

    async def _fetch(self, name: str) -> Any:
        try:
            path = await asyncio.get_running_loop().run_in_executor(self._threads, self._catalog.find, name)
        except WeaveError as error:
            return None if error.code == "ADAPTER_NAME_INVALID" else error_response(error)
        if path is None:
            return None
        await self._make_room()
        asked = SimpleNamespace(lora_name=name, lora_path=str(path), load_inplace=False, is_3d_lora_weight=False)
        answer = await self._models.load_lora_adapter(asked)
        if name not in self._models.lora_requests:
            return answer
        self._served[name] = time.monotonic()
        logger.info("adapter %r came from the catalogue: %s", name, path)
        return None

    async def _make_room(self) -> None:
        """Take out who was not asked for the longest, unless that is just now: then there are some more for a while."""
        for name in [name for name in self._served if name not in self._models.lora_requests]:
            del self._served[name]  # unloaded over HTTP
        while len(self._served) >= self._limit:
            name, used = next(iter(self._served.items()))
            if time.monotonic() - used < GRACE_SECONDS:
                return
            del self._served[name]
            await self._models.unload_lora_adapter(SimpleNamespace(lora_name=name, lora_int_id=None))
            # vLLM makes a lock for every name it is ever told, and keeps it
            self._models.lora_resolver_lock.pop(name, None)

    def _note_use(self, name: str) -> None:
        if name in self._served:
            self._served[name] = time.monotonic()
            self._served.move_to_end(name)


def wrap_check(original: Callable[..., Any]) -> Callable[..., Any]:
    """The check of a request's model name, which looks into the catalogue first."""

    @functools.wraps(original)
    async def _check_model(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        service = _service_of(self.models)
        if service is not None and request.model and not self.models.is_base_model(request.model):
            error = await service.bring(request.model)
            if error is not None:
                return error
        return await original(self, request, *args, **kwargs)

    return _check_model


def _service_of(models: Any) -> CatalogService | None:
    """The one of a server; None without a catalogue, or where nothing but text is made (no engine)."""
    if not hasattr(models, "engine_client"):
        return None
    if "_npu_weave_catalog" not in models.__dict__:
        vllm_config = models.engine_client.vllm_config
        config = config_from(vllm_config.additional_config)
        models.__dict__["_npu_weave_catalog"] = _open(models, config, vllm_config.lora_config)
    service: CatalogService | None = models.__dict__["_npu_weave_catalog"]
    return service


def _open(models: Any, config: WeaveConfig | None, lora_config: Any) -> CatalogService | None:
    if config is None or config.catalog is None:
        return None

    def in_use() -> list[Path]:
        return [Path(loaded.lora_path) for loaded in list(models.lora_requests.values())]

    catalog = open_catalog(
        config.catalog, cache=config.catalog_cache, cache_bytes=config.catalog_cache_size, in_use=in_use
    )
    return CatalogService(models, catalog, lora_config.max_cpu_loras or lora_config.max_loras)


def _busy(name: str) -> CapacityError:
    return CapacityError(
        "CATALOG_BUSY",
        f"adapter {name!r}",
        expected=f"at most {MOST_WAITING} adapters on their way",
        got="as many",
        remedy="ask again later",
    )
