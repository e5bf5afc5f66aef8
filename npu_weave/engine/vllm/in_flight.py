"""The scheduler's requests by adapter: who uses what is read off when needed, not counted."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

from npu_weave.errors import WeaveError

if TYPE_CHECKING:
    from vllm.v1.request import Request


class InFlight:
    """Requests of vLLM's scheduler that have an adapter, those of the base model left out.

    Used on the engine core's main thread, between steps.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def names(self) -> list[str]:
        """The adapter's name of every request."""
        return [request.lora_request.lora_name for request in self._requests()]

    def revisions(self) -> list[int]:
        """The revision of every request."""
        return [request.lora_request.lora_int_id for request in self._requests()]

    def take_out(self, revisions: Collection[int]) -> list[Request]:
        """End all requests of these revisions, as if their clients had hung up. Returns them; nobody is told yet."""
        found = [request for request in self._requests() if request.lora_request.lora_int_id in revisions]
        self._scheduler.finish_requests([request.request_id for request in found], RequestStatus.FINISHED_ABORTED)
        return found

    def _requests(self) -> list[Any]:
        return [request for request in self._scheduler.requests.values() if request.lora_request]


def request_overdue(request_id: str, adapter: str, seconds: float) -> WeaveError:
    """The error of a request that used an adapter out of service for longer than `drain_timeout`."""
    return WeaveError(
        "REQUEST_CANCELLED",
        f"request {request_id} of {adapter!r}",
        expected=f"to end within {seconds:g} s after its adapter left service (drain_timeout)",
        got="still running",
        remedy="ask again; a higher --drain-timeout lets longer requests finish",
    )
