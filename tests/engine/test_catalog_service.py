"""The catalogue's side of a server, with a plain object for vLLM's list of models: who comes, leaves, and waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from npu_weave.engine.vllm import catalog_service
from npu_weave.engine.vllm.catalog_service import CatalogService
from npu_weave.errors import AdapterError

pytestmark = pytest.mark.engine


class Models:
    """What the service needs of vLLM's OpenAIServingModels."""

    def __init__(self) -> None:
        self.lora_requests: dict[str, str] = {}
        self.lora_resolver_lock: dict[str, object] = {}
        self.loads: list[str] = []

    async def load_lora_adapter(self, request: Any) -> str:
        self.loads.append(request.lora_name)
        await asyncio.sleep(0)
        if request.lora_name == "broken":
            return "no adapter"
        self.lora_requests[request.lora_name] = request.lora_path
        self.lora_resolver_lock[request.lora_name] = object()
        return "Success"

    async def unload_lora_adapter(self, request: Any) -> str:
        del self.lora_requests[request.lora_name]
        return "Success"


class Catalog:
    """Has every name but ``unknown``; ``slow`` waits, ``down`` fails."""

    location, root = "here", Path("/")

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = threading.Event()

    def find(self, name: str) -> Path | None:
        self.asked.append(name)
        if name.startswith("slow"):
            assert self.go_on.wait(10)
        if name == "down":
            raise AdapterError("CATALOG_UNREACHABLE", "adapter 'down'", got="nothing")
        if name == "../x":
            raise AdapterError("ADAPTER_NAME_INVALID", "adapter name")
        return None if name == "unknown" else Path("/adapters") / name


Case = Callable[[Models, Catalog, CatalogService], Awaitable[None]]


def run(case: Case, limit: int = 2) -> None:
    async def main() -> None:
        models, catalog = Models(), Catalog()
        await case(models, catalog, CatalogService(models, catalog, limit))

    asyncio.run(main())


def test_an_adapter_comes_when_it_is_asked_for_and_once() -> None:
    async def case(models: Models, catalog: Catalog, service: CatalogService) -> None:
        assert await asyncio.gather(*(service.bring("a") for _ in range(32))) == [None] * 32
        assert await service.bring("a") is None
        assert models.loads == catalog.asked == ["a"] and models.lora_requests == {"a": "/adapters/a"}

    run(case)


@pytest.mark.parametrize("name", ["unknown", "../x"])
def test_what_is_not_there_is_left_to_vllm(name: str) -> None:
    async def case(models: Models, catalog: Catalog, service: CatalogService) -> None:
        assert await service.bring(name) is None
        assert models.loads == [] and models.lora_resolver_lock == {}

    run(case)


def test_errors_have_a_status_and_hurt_nobody_else() -> None:
    async def case(models: Models, catalog: Catalog, service: CatalogService) -> None:
        down, good = await asyncio.gather(service.bring("down"), service.bring("a"))
        assert down.error.code == HTTPStatus.SERVICE_UNAVAILABLE and "CATALOG_UNREACHABLE" in down.error.message
        assert good is None and await service.bring("broken") == "no adapter"
        assert set(models.lora_requests) == {"a"}

    run(case)


def test_warm_names_do_not_wait_for_cold_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_service, "MOST_WAITING", 3)

    async def case(models: Models, catalog: Catalog, service: CatalogService) -> None:
        await service.bring("warm")
        waiting = [asyncio.create_task(service.bring(f"slow{number}")) for number in range(3)]
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(service.bring("warm"), 1) is None
        full = await service.bring("one more")
        assert full.error.code == HTTPStatus.SERVICE_UNAVAILABLE and "CATALOG_BUSY" in full.error.message
        assert not any(task.done() for task in waiting)
        catalog.go_on.set()
        assert await asyncio.gather(*waiting) == [None] * 3
        assert await service.bring("one more") is None

    run(case)


def test_a_client_that_hangs_up_leaves_the_adapter_to_others() -> None:
    async def case(models: Models, catalog: Catalog, service: CatalogService) -> None:
        first, second = (asyncio.create_task(service.bring("slow")) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        catalog.go_on.set()
        assert await second is None and models.loads == ["slow"]

    run(case)


def test_who_was_not_asked_for_the_longest_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_service, "GRACE_SECONDS", 0.0)

    async def case(models: Models, catalog: Catalog, service: CatalogService) -> None:
        models.lora_requests["named at start"] = "/elsewhere"
        for name in ("a", "b", "a", "c"):
            assert await service.bring(name) is None
        assert set(models.lora_requests) == {"named at start", "a", "c"}
        assert set(models.lora_resolver_lock) == {"a", "c"}, "no name leaves anything behind"
        del models.lora_requests["a"]  # over HTTP
        await service.bring("d")
        assert set(models.lora_requests) == {"named at start", "c", "d"}, "what left by itself makes room"
        assert await service.bring("b") is None and "b" in models.lora_requests

    run(case)


def test_what_was_just_asked_for_stays() -> None:
    async def case(models: Models, catalog: Catalog, service: CatalogService) -> None:
        for name in ("a", "b", "c"):
            await service.bring(name)
        assert set(models.lora_requests) == {"a", "b", "c"}, "its requests may be on their way to the engine"

    run(case)
