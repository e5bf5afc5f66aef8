"""A limit on the requests that one adapter may have in the scheduler, so that it cannot take all slots."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from npu_weave.errors import WeaveError

Enter = Callable[[Any], None]


class AdapterQuota:
    """Requests beyond an adapter's limit wait here, in order, while those of others pass them by.

    Used on the engine core's main thread. The base model has no limit.

    Args:
        limit: requests of one adapter, all revisions of its name together; None for no limit.
        running: the adapter's name of every request the scheduler has.
    """

    def __init__(self, limit: int | None, running: Callable[[], Iterable[str]]) -> None:
        self._limit, self._running = limit, running
        self._waiting: dict[str, deque[tuple[Any, Enter]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def admits(self, name: str) -> bool:
        """Whether a request of `name` may go on now; those that wait go first."""
        if self._limit is None:
            return True
        return name not in self._waiting and sum(each == name for each in self._running()) < self._limit

    def hold(self, name: str, request: Any, enter: Enter) -> None:
        """Let a request wait; `release` gives it back."""
        self._waiting.setdefault(name, deque()).append((request, enter))

    def withdraw(self, request_id: str) -> None:
        """A request waits no longer."""
        for name, waiting in list(self._waiting.items()):
            kept = deque(each for each in waiting if each[0].request_id != request_id)
            self._keep(name, kept)

    def release(self) -> list[tuple[Any, Enter]]:
        """Those that may go on now, in order. Costs nothing while nobody waits."""
        if not self._waiting or self._limit is None:
            return []
        counts, free = Counter(self._running()), []
        for name, waiting in list(self._waiting.items()):
            for _ in range(min(self._limit - counts[name], len(waiting))):
                free.append(waiting.popleft())
            self._keep(name, waiting)
        return free

    def waiting(self) -> list[Any]:
        """All requests that wait."""
        return [request for each in self._waiting.values() for request, _ in each]

    def drain(self) -> list[Any]:
        """All requests that wait, which are forgotten."""
        waiting = self.waiting()
        self._waiting.clear()
        return waiting

    def _keep(self, name: str, waiting: deque[tuple[Any, Enter]]) -> None:
        if waiting:
            self._waiting[name] = waiting
        else:
            self._waiting.pop(name, None)


def request_cancelled(request_id: str) -> WeaveError:
    """The error of a request that waited for others of its adapter when the engine stopped."""
    return WeaveError(
        "REQUEST_CANCELLED",
        f"request {request_id}",
        expected="room for one more request of its adapter",
        got="the engine stops",
        remedy="ask again when it is back",
    )
