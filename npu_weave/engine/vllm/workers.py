"""The workers of one engine core, as one: they all do the same, or the call has failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from npu_weave.errors import IntegrityError, WeaveError


class Executor(Protocol):
    """What is needed of vLLM's executor."""

    def collective_rpc(self, method: Callable[..., Any], *, args: tuple[Any, ...] = (), non_block: bool = False) -> Any:
        """Run ``method(worker, *args)`` on every worker: their results, or a future of them."""


MOST_UNANSWERED = 4
"""Calls on their way. vLLM's queues hold ten messages, steps among them, and whoever finds one full waits."""


class Answer:
    """What a call will have returned, the same on all workers."""

    def __init__(self, call: Callable[..., Any], outcomes: Future[list[Any]]) -> None:
        self._name = call.__name__
        self._outcomes = outcomes

    def done(self) -> bool:
        """Whether it has come. That of a worker in another process comes with the next step's."""
        return self._outcomes.done()

    def result(self) -> Any:
        """What every worker returned; waits for it.

        Raises:
            WeaveError: the first worker's error; RANKS_DISAGREE when the outcomes differ.
        """
        outcomes = self._outcomes.result()
        for outcome in outcomes:
            if is_failure(outcome):
                raise WeaveError.from_dict(outcome)
        if any(outcome != outcomes[0] for outcome in outcomes):
            raise IntegrityError("RANKS_DISAGREE", self._name, expected="one state on all ranks", got=str(outcomes))
        return outcomes[0]


class WorkerGroup:
    """Calls of `worker_calls` on all workers, between steps, in the order in which they are made.

    Not thread-safe: the engine core's main thread calls.

    Attributes:
        calls: made so far, but for `reports`, which change nothing.
    """

    def __init__(self, executor: Executor) -> None:
        self.calls = 0
        self._executor = executor
        self._unanswered: deque[Future[list[Any]]] = deque()

    def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Run `call` on every worker and return what it returned, the same on all. Waits for a step that is running.

        Raises:
            WeaveError: see `Answer.result`.
        """
        return self.send(call, *args).result()

    def send(self, call: Callable[..., Any], *args: Any) -> Answer:
        """Have `call` run on every worker before the next step, which need not wait for the answer to come back."""
        return Answer(call, self.ask(call, *args))

    def reports(self, call: Callable[..., Any], *args: Any) -> list[Any]:
        """What each worker returned, failures included."""
        results: list[Any] = self._executor.collective_rpc(call, args=args)
        return results

    def ask(self, call: Callable[..., Any], *args: Any) -> Future[list[Any]]:
        """As `reports`, without waiting for it."""
        while self._unanswered and (self._unanswered[0].done() or len(self._unanswered) >= MOST_UNANSWERED):
            oldest = self._unanswered.popleft()
            if not oldest.done():
                oldest.result()
        self.calls += 1
        answer: Future[list[Any]] = self._executor.collective_rpc(call, args=args, non_block=True)
        self._unanswered.append(answer)
        return answer


def is_failure(outcome: Any) -> bool:
    """Whether a worker returned an error (see `worker_calls`)."""
    return isinstance(outcome, dict) and "code" in outcome
