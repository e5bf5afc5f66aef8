"""The slots of tokens on an NPU: written in stream order, without waiting for the device. The real torch_npu."""

from __future__ import annotations

import pytest
from emulation.cann.process import lines

pytestmark = pytest.mark.emulated_ascend

PROGRAM = """
import time
import numpy as np
from npu_weave.experts.token_slots import TokenSlots
slots = TokenSlots(6, torch.device("npu", 0))
address = slots.buffer.data_ptr()
lookup, last_used = np.arange(10, dtype=np.int32), np.zeros(10, dtype=np.int64)
torch.npu.synchronize()
seen, began = [], time.monotonic()
for step in range(6):
    tokens = np.array([step, 1 if step == 2 else 0], dtype=np.int32)
    slots.fill(np.array([step, 9]), tokens, lookup, last_used)
    seen.append(slots.buffer + 0)
filled = time.monotonic() - began
torch.npu.synchronize()
waited = time.monotonic() - began
for each in seen:
    print(each.cpu().tolist())
print("ahead of the device:", filled < waited / 2, slots.buffer.data_ptr() == address)
"""


def test_every_step_sees_its_own_slots_and_nobody_waits() -> None:
    """The device begins every task 50 ms late, so that steps are far ahead of it."""
    seen = lines(PROGRAM, torch=True, task_delay_us=50_000)
    assert seen[-7:] == [
        "[0, 0, 0, 0, 0, 0]",
        "[1, 0, 0, 0, 0, 0]",
        "[2, 2, 9, 0, 0, 0]",
        "[3, 3, 3, 0, 0, 0]",
        "[4, 4, 4, 4, 0, 0]",
        "[5, 5, 5, 5, 5, 0]",
        "ahead of the device: True True",
    ]
