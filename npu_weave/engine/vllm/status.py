"""What an engine core knows of its adapters, as plain values for metrics and for people."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from npu_weave.engine.vllm import worker_calls
from npu_weave.engine.vllm.in_flight import InFlight
from npu_weave.engine.vllm.loads import AdapterLoads
from npu_weave.engine.vllm.quota import AdapterQuota
from npu_weave.engine.vllm.workers import WorkerGroup, is_failure
from npu_weave.errors import WeaveError
from npu_weave.observability.histogram import Histogram
from npu_weave.residency.directory import AdapterDirectory, Revision

_LOOKS = 3
"""Snapshots that ask the workers after anything has happened: some of their memory is free a little later. An idle
worker that is asked stays awake for a second, for so long it spins at vLLM's queue."""


class ServiceRecord:
    """Requests and tokens by adapter, and how long adapters take to drain. Used on the engine core's main thread.

    Only adapters in service are counted, under their names; with the last revision of a name its counts go.

    Attributes:
        ended: requests of all adapters that have ended.
    """

    def __init__(self, directory: AdapterDirectory) -> None:
        self.ended = 0
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

    def retired_before(self, seconds: float) -> set[int]:
        """Revisions that left service longer ago than that and are not dropped."""
        now = time.monotonic()
        return {revision for revision, at in self._retired_at.items() if now - at > seconds}

    def served(self) -> dict[str, dict[str, int]]:
        """Name -> requests that ended, their prompt tokens and the tokens generated for them."""
        return {name: dict(counts) for name, counts in self._served.items()}

    def _count(self, request: Any) -> None:
        adapter = request.lora_request
        if adapter is None:
            return
        self.ended += 1
        counts = self._served.setdefault(adapter.lora_name, {"requests": 0, "prompt_tokens": 0, "generated_tokens": 0})
        counts["requests"] += 1
        counts["prompt_tokens"] += request.num_prompt_tokens
        counts["generated_tokens"] += request.num_output_tokens


class StatusReports:
    """Answers of the engine core's utilities about adapters. Used on the engine core's main thread."""

    def __init__(
        self,
        directory: AdapterDirectory,
        record: ServiceRecord,
        workers: WorkerGroup,
        loads: AdapterLoads,
        quota: AdapterQuota,
        in_flight: InFlight,
        *,
        slots: int,
    ) -> None:
        self._directory, self._record, self._workers = directory, record, workers
        self._loads, self._quota, self._in_flight, self._slots = loads, quota, in_flight, slots
        self._happened: tuple[int, int] | None = None
        self._looks = 0
        self._worker_states: list[dict[str, Any]] = []

    def memory(self) -> list[dict[str, int]]:
        """Bytes and counts of every worker; each checks its invariants first."""
        self._directory.check_integrity()
        return self._of_workers(worker_calls.memory)

    def loads(self) -> dict[str, Any]:
        """Loads since the start and under way, requests that wait for them, and each worker's host cache."""
        return {**self._loads.report(), "host_cache": self._of_workers(worker_calls.host_cache)}

    def status(self) -> dict[str, Any]:
        """A snapshot for metrics.

        Returns:
            ``at``, seconds since the epoch; ``slots``; ``adapters``, a dict for each revision: name, revision, digest,
            staged (on the workers' hosts), retired, requests; ``loads``, ``drains``, ``workers``; ``served``, see
            `ServiceRecord.served`.
        """
        current = {revision.id for revision in self._directory.in_service()}
        in_flight = self._in_flight.revisions()
        adapters = [
            {
                "name": revision.name,
                "revision": revision.id,
                "digest": revision.digest,
                "staged": revision.staged,
                "retired": revision.id not in current and not revision.opening,
                "requests": in_flight.count(revision.id),
            }
            for revision in self._directory.revisions()
        ]
        return {
            "at": time.time(),
            "slots": self._slots,
            "adapters": adapters,
            "loads": {**self._loads.report(), "requests_queued": len(self._quota)},
            "drains": self._record.drains.report(),
            "workers": self._states_of_workers(bool(in_flight)),
            "served": self._record.served(),
        }

    def _states_of_workers(self, in_use: bool) -> list[dict[str, Any]]:
        """What the workers say; what they said, where nothing has happened to them since."""
        happened = self._workers.calls, self._record.ended
        if in_use or happened != self._happened:
            self._happened, self._looks = happened, _LOOKS
        if self._looks:
            self._worker_states = self._of_workers(worker_calls.status)
            self._looks -= 1
        return self._worker_states

    def _of_workers(self, call: Callable[..., Any]) -> list[dict[str, Any]]:
        reports = self._workers.reports(call)
        for report in reports:
            if is_failure(report):
                raise WeaveError.from_dict(report)
        return reports
