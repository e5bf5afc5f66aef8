"""Threads of loads, and what they leave to the thread that runs the steps."""

from __future__ import annotations

import os
import sys
import threading

from npu_weave.residency.load_threads import HAND_OVER_SECONDS, background_threads, hand_over_soon


def test_they_take_what_nobody_else_wants() -> None:
    before = sys.getswitchinterval()
    with background_threads("test") as threads:
        policy = threads.submit(lambda: os.sched_getscheduler(threading.get_native_id())).result()
    assert policy == os.SCHED_IDLE and os.sched_getscheduler(0) == os.SCHED_OTHER
    assert sys.getswitchinterval() == before, "threads of the process that reads would only wake each other"


def test_a_process_that_runs_steps_has_the_interpreter_at_once() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    try:
        hand_over_soon()
        assert abs(sys.getswitchinterval() - HAND_OVER_SECONDS) < 1e-6
    finally:
        sys.setswitchinterval(before)
