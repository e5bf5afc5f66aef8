"""What an engine core knows of its adapters, as plain values for metrics and for people."""

from __future__ import annotations

import functools
import time
from typing import Any

from npu_weave.observability.histogram import Histogram
from npu_weave.residency.directory import AdapterDirectory, Revision


class ServiceRecord:
    """Requests and tokens by adapter, and how long adapters take to drain. Used on the engine core's main thread.

    Only adapters in service are counted, under their names; with the last revision of a name its counts go.
    """

    def __init__(self, directory: AdapterDirectory) -> None:
        self._directory = directory
        self._served: dict[str, dict[str, int]] = {}
        self._retired_at: dict[int, float] = {}
        self.drains = Histogram()

    def watch(self, scheduler: Any) -> None:
        """Count every request that ends in vLLM's scheduler. Mutates it."""
        original = scheduler._free_request

        @functools.wraps(original)
        def free_request(request: Any, *args: Any, **kwargs: Any) -> Any:
            self._count(request)
            return original(request, *args, **kwargs)

        scheduler._free_request = free_request

    def retired(self, revision: Revision) -> None:
        """A revision left service; `dropped` follows."""
        self._retired_at[revision.id] = time.monotonic()

    def dropped(self, revision: Revision) -> None:
        """Its last request has ended, and its memory is free."""
        begun = self._retired_at.pop(revision.id, None)
        if begun is not None:
            self.drains.observe(time.monotonic() - begun)
        if all(other.name != revision.name for other in self._directory.revisions() if other.id != revision.id):
            self._served.pop(revision.name, None)

    def served(self) -> dict[str, dict[str, int]]:
        """Name -> requests that ended, their prompt tokens and the tokens generated for them."""
        return {name: dict(counts) for name, counts in self._served.items()}

    def _count(self, request: Any) -> None:
        adapter = request.lora_request
        if adapter is None:
            return
        counts = self._served.setdefault(adapter.lora_name, {"requests": 0, "prompt_tokens": 0, "generated_tokens": 0})
        counts["requests"] += 1
        counts["prompt_tokens"] += request.num_prompt_tokens
        counts["generated_tokens"] += request.num_output_tokens


def make_status(
    directory: AdapterDirectory,
    record: ServiceRecord,
    *,
    slots: int,
    in_flight: list[int],
    loads: dict[str, Any],
    workers: list[dict[str, Any]],
) -> dict[str, Any]:
    """A snapshot.

    Args:
        in_flight: the revision of every request that has one.
        loads: `AdapterLoads.report`.
        workers: `WeaveAdapterManager.status` of each.

    Returns:
        ``slots``; ``adapters``, a dict for each revision: name, revision, digest, staged (on the workers' hosts),
        retired, requests; ``loads``, ``drains``, ``workers``; ``served``, see `ServiceRecord.served`.
    """
    current = {revision.id for revision in directory.in_service()}
    adapters = [
        {
            "name": revision.name,
            "revision": revision.id,
            "digest": revision.digest,
            "staged": revision.staged,
            "retired": revision.id not in current and not revision.opening,
            "requests": in_flight.count(revision.id),
        }
        for revision in directory.revisions()
    ]
    return {
        "slots": slots,
        "adapters": adapters,
        "loads": loads,
        "drains": record.drains.report(),
        "workers": workers,
        "served": record.served(),
    }
