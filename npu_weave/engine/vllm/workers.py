"""The workers of one engine core, as one: they all do the same, or the call has failed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from npu_weave.errors import IntegrityError, WeaveError


class Executor(Protocol):
    """What is needed of vLLM's executor."""

    def collective_rpc(self, method: Callable[..., Any], *, args: tuple[Any, ...] = (), non_block: bool = False) -> Any:
        """Run ``method(worker, *args)`` on every worker: their results, or a future of them."""


class WorkerGroup:
    """Calls of `worker_calls` on all workers, between steps. Not thread-safe: the engine core's main thread calls."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Run `call` on every worker and return what it returned, the same on all.

        Raises:
            WeaveError: the first worker's error; RANKS_DISAGREE when the outcomes differ.
        """
        outcomes = self.reports(call, *args)
        for outcome in outcomes:
            if is_failure(outcome):
                raise WeaveError.from_dict(outcome)
        if any(outcome != outcomes[0] for outcome in outcomes):
            raise IntegrityError("RANKS_DISAGREE", call.__name__, expected="one state on all ranks", got=str(outcomes))
        return outcomes[0]

    def reports(self, call: Callable[..., Any], *args: Any) -> list[Any]:
        """What each worker returned, failures included."""
        results: list[Any] = self._executor.collective_rpc(call, args=args)
        return results

    def ask(self, call: Callable[..., Any]) -> Future[list[Any]]:
        """As `reports`, without waiting for a step that is running."""
        answer: Future[list[Any]] = self._executor.collective_rpc(call, non_block=True)
        return answer


def is_failure(outcome: Any) -> bool:
    """Whether a worker returned an error (see `worker_calls`)."""
    return isinstance(outcome, dict) and "code" in outcome
