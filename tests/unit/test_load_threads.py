"""Threads of loads, and what they leave to the thread that runs the steps."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from npu_weave.adapters.digest import AdapterHasher
from npu_weave.adapters.pieces import PIECE_BYTES, pieces
from npu_weave.adapters.shard import read_shard
from npu_weave.residency.load_threads import HAND_OVER_SECONDS, background_threads


def test_they_take_what_nobody_else_wants() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    try:
        with background_threads("test") as threads:
            policy = threads.submit(lambda: os.sched_getscheduler(threading.get_native_id())).result()
        assert policy == os.SCHED_IDLE and os.sched_getscheduler(0) == os.SCHED_OTHER
        assert abs(sys.getswitchinterval() - HAND_OVER_SECONDS) < 1e-6, "the step's thread gets the interpreter at once"
    finally:
        sys.setswitchinterval(before)


def test_long_work_is_done_in_pieces_between_which_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    monkeypatch.setattr(os, "sched_yield", lambda: turns.append(0))
    weight = torch.arange(5 * PIECE_BYTES // 8 + 1)
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    read = read_shard(tmp_path / "model.safetensors")["weight"].load()
    assert torch.equal(read, weight)
    assert len(turns) >= 6, "five pieces and the rest; the header may be one"
    turns.clear()
    assert [bytes(each) for each in pieces(memoryview(bytes(range(7))), 3)] == [b"\0\1\2", b"\3\4\5", b"\6"]
    assert len(turns) == 3
    turns.clear()
    AdapterHasher().add_loaded(0, 0, [weight, weight, weight])
    assert len(turns) == 18
