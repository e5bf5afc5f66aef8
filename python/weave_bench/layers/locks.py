"""Whether a call waits for a lock of npu-weave's: it is run while somebody else holds them all."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

_KINDS = (type(threading.Lock()), type(threading.RLock()))
_PATIENCE = 10.0


def locks_of(package: str) -> list[Any]:
    """Every lock that is an attribute of an object whose class is defined in `package`, each once."""
    found: dict[int, Any] = {}
    for thing in gc.get_objects():
        if str(type(thing).__module__).split(".")[0] == package:
            for value in getattr(thing, "__dict__", {}).values():
                if isinstance(value, _KINDS):
                    found[id(value)] = value
    return list(found.values())


def waits_for(locks: list[Any], action: Callable[[], object], patience: float = _PATIENCE) -> bool:
    """Whether `action`, on a thread of its own, is not done within `patience` seconds while this one holds `locks`.

    It is done in any case when this returns.

    Raises:
        BaseException: whatever the action raised.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(lock)
        thread.start()
        thread.join(patience)
        waits = thread.is_alive()
    thread.join()
    if raised:
        raise raised[0]
    return waits
