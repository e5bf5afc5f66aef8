"""Threads for loads, which yield to the thread that runs the steps."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, thread
from contextlib import suppress

import torch

HAND_OVER_SECONDS = 5e-5
"""After so long a thread that waits for the interpreter asks for it; Python's own 5 ms are a quarter of a step."""


def background_threads(name: str, count: int = 1, cpus: Collection[int] | None = None) -> ThreadPoolExecutor:
    """An executor of `count` threads that run when nobody else wants the processor.

    Args:
        name: of the threads.
        cpus: processors they may use; None leaves them those of the thread that starts them.
    """
    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=stand_back, initargs=(cpus,))


Later = Callable[[Callable[[], None]], None]
"""Has another thread do something, soon."""


def later_on(name: str) -> Later:
    """A background thread for what nobody waits for. When the process ends, nothing more is done."""
    threads = background_threads(name)

    def later(work: Callable[[], None]) -> None:
        if not process_is_ending():  # no thread can be asked any more
            threads.submit(work)

    return later


def process_is_ending() -> bool:
    """Whether the main thread has ended and waits for executors: whoever still works for one should stop."""
    return thread._shutdown  # what its own threads go by; there is no other way to learn of it in time


def hand_over_soon() -> None:
    """Have threads of this process that hold the interpreter give it to whoever waits. For a process that runs steps:
    elsewhere threads of loads would only wake each other."""
    sys.setswitchinterval(HAND_OVER_SECONDS)


def stand_back(cpus: Collection[int] | None = None) -> None:
    """Have this thread, and those it starts, run when nobody else wants the processor."""
    thread_id = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread_id, 19)
    with suppress(OSError):  # a sandbox that forbids it
        os.sched_setscheduler(thread_id, os.SCHED_IDLE, os.sched_param(0))
    if cpus:
        os.sched_setaffinity(thread_id, cpus)
    # asked for first: torch would set up the thread on its first operation, with everybody's number
    torch.get_num_threads()
    # its parallel regions would take processors from the step; other threads that run already keep theirs
    torch.set_num_threads(1)
