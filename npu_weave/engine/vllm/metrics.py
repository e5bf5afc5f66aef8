"""Metrics of adapters on a server's /metrics: the engine core is asked for a snapshot every few seconds."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from prometheus_client import REGISTRY
from vllm.logger import init_logger

from npu_weave.config import config_from
from npu_weave.observability.prometheus import AdapterCollector

logger = init_logger("vllm.npu_weave.metrics")

INTERVAL = 5.0
"""Seconds between two snapshots; a step may wait for one for less than a millisecond."""


def wrap_start(original: Callable[..., Any]) -> Callable[..., Any]:
    """``init_static_loras``, the last of a server's start: metrics begin."""

    @functools.wraps(original)
    async def init_static_loras(self: Any) -> None:
        await original(self)
        config = self.engine_client.vllm_config
        core = getattr(self.engine_client, "engine_core", None)
        if config_from(config.additional_config) is None or not hasattr(core, "call_utility_async"):
            return
        collector = AdapterCollector(self.base_model_paths[0].name)
        REGISTRY.register(collector)
        # the event loop keeps only a weak reference
        self.__dict__["_npu_weave_metrics"] = asyncio.create_task(_follow(core, collector))

    return init_static_loras


async def _follow(core: Any, collector: AdapterCollector) -> None:
    while True:
        try:
            collector.snapshot = await core.call_utility_async("npu_weave_status")
        except Exception as error:  # an engine that stops, or is dead: vLLM's own watchers deal with that
            logger.debug("no snapshot of adapters: %s", error)
        await asyncio.sleep(INTERVAL)
