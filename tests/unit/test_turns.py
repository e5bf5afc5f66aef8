"""Turns of long work: between them others have the processor, and while steps run the work rests."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fixtures.disk_adapters import GEOMETRY, disk_adapter
from fixtures.plain_layers import LAYERS, PlainLayer
from safetensors.torch import save_file

from npu_weave import turns
from npu_weave.adapters.digest import AdapterHasher
from npu_weave.adapters.shard import read_shard
from npu_weave.memory.row_bytes import copy_matrices, write_bits
from npu_weave.residency import load_pace
from npu_weave.residency.load_pace import LoadPace
from npu_weave.residency.load_reader import AdapterReader
from npu_weave.residency.remote_reads import RemoteSource
from npu_weave.turns import PIECE_BYTES, give_way, pieces


@pytest.fixture(autouse=True)
def nothing_rests() -> Iterator[None]:
    turns.rest_by()
    yield
    turns.rest_by()


def work(seconds: float) -> None:
    """Take processor time."""
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        pass


def sleeps_during(call: Callable[[], object]) -> int:
    """How often this thread gave up the processor of its own accord."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    call()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before


def test_long_work_is_done_in_pieces_between_which_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yields: list[int] = []
    monkeypatch.setattr(os, "sched_yield", lambda: yields.append(0))
    weight = torch.arange(5 * PIECE_BYTES // 8 + 1)
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    read = read_shard(tmp_path / "model.safetensors")["weight"].load()
    assert torch.equal(read, weight)
    assert len(yields) >= 6, "five pieces and the rest; the header may be one"
    yields.clear()
    assert [bytes(each) for each in pieces(memoryview(bytes(range(7))), 3)] == [b"\0\1\2", b"\3\4\5", b"\6"]
    assert len(yields) == 3
    yields.clear()
    AdapterHasher().add_loaded(0, 0, [weight, weight, weight])
    assert len(yields) == 18


def test_work_rests_by_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    turns.rest_by(lambda: 3.0)
    give_way()
    assert not rests, "what was done before the first turn is not known"
    work(0.002)
    give_way()
    work(0.004)
    give_way()
    give_way()
    assert len(rests) == 2, "a moment of work is not worth a rest"
    assert 0.006 <= rests[0] < 0.012 <= rests[1]
    work(0.04)
    give_way()
    assert rests[2] == 0.1, "whoever gives up a load waits for no longer rest"


def test_without_steps_it_only_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = 3.0
    turns.rest_by(lambda: ratio)
    give_way()
    work(0.002)
    ratio = 0.0
    assert turns.rest() == 0.0
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("nobody wants the processor"))
    give_way()
    ratio = 3.0
    give_way()  # work done meanwhile is nobody's loss


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_compiled_loops_rest_as_well(ratio: float) -> None:
    size = 16 * PIECE_BYTES
    source, row = torch.ones(16, size // 16, dtype=torch.uint8), torch.zeros(16, size // 16, dtype=torch.uint8)
    turns.rest_by(lambda: ratio)
    for call in (lambda: write_bits(row, source), lambda: copy_matrices([row], [source])):
        row.zero_()
        slept = sleeps_during(call)
        assert torch.equal(row, source)
        assert slept >= 16 if ratio else slept < 16


def test_a_pace_is_that_of_steps_in_any_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = LoadPace(1.5)
    there = LoadPace(1.5, os.dup(pace.descriptor))
    assert pace.rest() == there.rest() == 0.0, "no step yet"
    pace.note_step()
    assert pace.rest() == there.rest() == 1.5
    assert LoadPace(0.0, os.dup(pace.descriptor)).rest() == 0.0, "asked not to rest"
    monkeypatch.setattr(load_pace, "STEPS_RUN_SECONDS", 0.0)
    assert pace.rest() == there.rest() == 0.0, "the last one is long ago"


def test_the_process_that_reads_rests_while_steps_run_here(tmp_path: Path) -> None:
    path, _ = disk_adapter(tmp_path / "adapter", {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}, 1)
    pace = LoadPace(2.0)
    source = RemoteSource(GEOMETRY, pace=pace)
    reader = AdapterReader(source, {index: PlainLayer(index) for index in range(LAYERS)})

    def sleeps() -> int:
        """How often threads of the other process gave up the processor while it read the adapter."""
        switches = [0, 0]
        for at in range(2):
            if at:
                reader.read("one", str(path), "", None, lambda: False)
            switches[at] = source._process.call(resource.getrusage, resource.RUSAGE_SELF).ru_nvcsw
        return switches[1] - switches[0]

    sleeps()
    idle = min(sleeps() for _ in range(3))
    pace._step_began[0] = time.monotonic() + 3600  # steps without end
    assert sleeps() > idle + 8 * 9, "of eight experts each of three matrices was read and hashed in four pieces"
    pace._step_began[0] = 0.0
    assert min(sleeps() for _ in range(3)) < idle + 8 * 9
