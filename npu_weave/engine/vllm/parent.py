"""An engine whose server was killed ends too: it would keep its device memory, and the next start would not fit."""

from __future__ import annotations

import os
import select
import signal
import threading
import time

from vllm.logger import init_logger

logger = init_logger("vllm.npu_weave.core")

GRACE_SECONDS = 10.0
"""For an orderly end, before it is forced."""


def end_with_parent() -> None:
    """Ask this process to end as soon as the one that started it has. vLLM's workers do so by themselves."""
    parent = os.getppid()
    threading.Thread(target=_follow, args=(parent,), name="npu-weave-parent", daemon=True).start()


def _follow(parent: int) -> None:
    _wait_for_end(parent)
    logger.error("the process that started this engine is gone; the engine ends")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _wait_for_end(parent: int) -> None:
    try:
        descriptor = os.pidfd_open(parent)
    except OSError:  # gone already, or a system that has no such thing
        while os.getppid() == parent:
            time.sleep(1)
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    os.close(descriptor)
