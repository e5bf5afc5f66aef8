"""Adapters read by another process: the same as read here, and nothing lost when that process is."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import statistics
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path

import psutil
import pytest
import torch
from fixtures.disk_adapters import GEOMETRY, disk_adapter, until
from fixtures.plain_layers import LAYERS, PlainLayer

from npu_weave.adapters.adapter import open_adapter
from npu_weave.errors import AdapterError, WeaveError
from npu_weave.experts.packed import PackedAdapter
from npu_weave.residency.background_process import BackgroundProcess
from npu_weave.residency.expert_memory import SharedMemory
from npu_weave.residency.expert_reads import AdapterSource, LocalSource
from npu_weave.residency.load_opener import AdapterOpener
from npu_weave.residency.load_reader import AdapterReader
from npu_weave.residency.load_threads import HAND_OVER_SECONDS
from npu_weave.residency.remote_reads import RemoteSource

EXPERTS = {0: [0, 2, 3], 1: [1, 3]}


@pytest.fixture(scope="module")
def source() -> RemoteSource:
    return RemoteSource(GEOMETRY)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disk_adapter(tmp_path_factory.mktemp("remote") / "adapter", EXPERTS, 1)[0]


def read(source: AdapterSource, path: Path, port: type[PlainLayer] = PlainLayer) -> PackedAdapter:
    reader = AdapterReader(source, {index: port(index) for index in range(LAYERS)})
    return reader.read("one", str(path), "", None, lambda: False)


def assert_same(one: PackedAdapter, other: PackedAdapter) -> None:
    assert one.digest == other.digest and one.layers.keys() == other.layers.keys()
    for index, layer in one.layers.items():
        there = other.layers[index]
        assert (layer.experts, layer.digests) == (there.experts, there.digests)
        for name, weight in layer.weights.items():
            assert torch.equal(weight.view(torch.int16), there.weights[name].view(torch.int16)), "bits: some are NaN"


def kill(source: RemoteSource) -> None:
    process = psutil.Process(source.pid)
    process.kill()
    until(lambda: process.status() == psutil.STATUS_ZOMBIE)


def shared_pages(pid: int | None) -> int:
    """KiB of memory between disk and packing that a process sees and that has pages."""
    areas = Path(f"/proc/{pid}/smaps").read_text().split("VmFlags:")
    return sum(int(area.split("Rss:")[1].split()[0]) for area in areas if "npu-weave-experts" in area)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_read_there_is_what_is_read_here(source: RemoteSource, path: Path) -> None:
    meant = read(LocalSource(GEOMETRY), path)
    read(source, path)
    open_files = descriptors()
    for _ in range(3):
        assert_same(read(source, path), meant)
    assert descriptors() == open_files
    assert meant.digest == open_adapter(path, GEOMETRY).digest


def test_an_error_there_is_the_error_here_and_the_next_adapter_is_read(
    source: RemoteSource, path: Path, tmp_path: Path
) -> None:
    broken, _ = disk_adapter(tmp_path / "broken", EXPERTS, 2)
    shard = next(broken.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(AdapterError) as here:
        read(LocalSource(GEOMETRY), broken)
    with pytest.raises(AdapterError) as there:
        read(source, broken)
    assert there.value.to_dict() == here.value.to_dict()
    with pytest.raises(AdapterError, match="ADAPTER_NOT_FOUND"):
        read(source, tmp_path / "nothing")
    assert_same(read(source, path), read(LocalSource(GEOMETRY), path))


class BadLayer(PlainLayer):
    def pack(self, experts: object) -> dict[str, torch.Tensor]:
        raise OSError("no memory to pack into")


def test_packing_that_fails_leaves_the_process_as_it_was(source: RemoteSource, path: Path) -> None:
    pid = source.pid
    with pytest.raises(OSError, match="no memory to pack into"):
        read(source, path, BadLayer)
    assert_same(read(source, path), read(LocalSource(GEOMETRY), path))
    assert source.pid == pid


@pytest.mark.parametrize("after", range(9))
def test_a_read_given_up_at_any_moment_ends_there_too(source: RemoteSource, path: Path, after: int) -> None:
    asked = iter([False] * after)
    reader = AdapterReader(source, {index: PlainLayer(index) for index in range(LAYERS)})
    pid = source.pid
    with pytest.raises(WeaveError, match="LOAD_CANCELLED"):
        for _ in range(10):  # it may be over before it is asked so often
            reader.read("one", str(path), "", None, lambda: next(asked, True))
    assert_same(read(source, path), read(LocalSource(GEOMETRY), path))
    assert source.pid == pid


def killed(source: RemoteSource, times: int) -> type[PlainLayer]:
    """A layer that kills the process while it packs, so often."""
    left = iter(range(times))

    class Killed(PlainLayer):
        def pack(self, experts: object) -> dict[str, torch.Tensor]:
            if next(left, None) is not None:
                kill(source)
            return super().pack(experts)  # type: ignore[arg-type]

    return Killed


def test_a_process_that_is_killed_is_replaced_and_nobody_notices(source: RemoteSource, path: Path) -> None:
    read(source, path, killed(source, 1))
    pid, open_files = source.pid, descriptors()
    assert_same(read(source, path, killed(source, 1)), read(LocalSource(GEOMETRY), path))
    assert source.pid not in (None, pid)
    assert descriptors() == open_files


def test_two_processes_that_are_killed_are_said(source: RemoteSource, path: Path) -> None:
    pid = source.pid
    with pytest.raises(WeaveError, match=r"LOAD_PROCESS_LOST.*status -9"):
        read(source, path, killed(source, 2))
    assert_same(read(source, path), read(LocalSource(GEOMETRY), path))
    assert source.pid not in (None, pid)
    kill(source)  # between two reads
    assert_same(read(source, path), read(LocalSource(GEOMETRY), path))


def test_a_call_is_made_again_once() -> None:
    process = BackgroundProcess()
    process.start()
    with pytest.raises(WeaveError, match=r"LOAD_PROCESS_LOST.*status 7"):
        process.call(os._exit, 7)
    pid = process.pid
    assert process.call(os.getpid) == process.pid != pid
    os.kill(process.call(os.getpid), signal.SIGKILL)
    assert process.call(os.getpid) == process.pid


OWNER = """
import sys, time
from fixtures.disk_adapters import GEOMETRY
from npu_weave.residency.remote_reads import RemoteSource
source = RemoteSource(GEOMETRY)
with source.open(sys.argv[1], lambda: None) as reads:
    print(source.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
def test_it_ends_with_its_owner_even_in_the_middle_of_a_read(how: signal.Signals, path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert psutil.pid_exists(pid)
        owner.send_signal(how)
        owner.wait(60)
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_it_yields_the_processor_and_has_one_thread_of_torch(source: RemoteSource, path: Path) -> None:
    read(source, path)
    process = psutil.Process(source.pid)
    assert process.nice() == 19
    assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
    assert process.environ()["OMP_NUM_THREADS"] == "1"


def test_memory_between_disk_and_packing_is_kept_for_the_next_and_then_given_back(path: Path) -> None:
    source = RemoteSource(GEOMETRY, kept_seconds=1.0)
    with source.open(str(path), lambda: None) as reads:
        expert = next(iter(reads))[0]
        needed = sum(part.clone().nbytes for part in expert) / 1024
    assert shared_pages(os.getpid()) >= needed and shared_pages(source.pid) >= needed
    assert_same(read(source, path), read(LocalSource(GEOMETRY), path))
    until(lambda: shared_pages(os.getpid()) == shared_pages(source.pid) == 0)
    assert not expert.gate.any(), "though an expert is still referred to"
    assert_same(read(source, path), read(LocalSource(GEOMETRY), path))


def test_memory_of_a_load_that_failed_is_given_back(path: Path) -> None:
    class NotPacked(Exception):
        pass

    source = RemoteSource(GEOMETRY, kept_seconds=0.1)
    with pytest.raises(NotPacked) as error, source.open(str(path), lambda: None) as reads:
        next(iter(reads))
        raise NotPacked
    assert error.tb is not None, "which keeps what the load referred to"
    until(lambda: shared_pages(os.getpid()) == shared_pages(source.pid) == 0)


def test_memory_goes_with_its_source(path: Path) -> None:
    gc.collect()  # sources of other tests
    open_files = descriptors()
    source = RemoteSource(GEOMETRY, kept_seconds=0.0)
    read(source, path)
    del source
    gc.collect()
    assert descriptors() <= open_files


def turns_while_given_back(size: int) -> int:
    """How often another thread gets the interpreter while memory of four experts is given back."""
    memory = SharedMemory(dataclasses.replace(GEOMETRY, hidden_size=size, moe_intermediate_size=size), 4)
    for part in chain.from_iterable(memory.experts):
        part.fill_(1)
    begun, ended, turns = threading.Event(), threading.Event(), 0

    def give_back() -> None:
        begun.set()
        memory.return_pages()
        ended.set()

    giving = threading.Thread(target=give_back)
    giving.start()
    begun.wait()
    while not ended.is_set():
        turns += 1
        os.sched_yield()
    giving.join()
    assert not any(part.any() for part in chain.from_iterable(memory.experts))
    return turns


def test_other_threads_run_while_memory_is_given_back() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(HAND_OVER_SECONDS)  # as in every process that loads
    # a busy machine shows fewer; one that stops between the beginning and the giving back, turns that are none of it
    try:
        assert statistics.median(turns_while_given_back(2048) for _ in range(5)) > 50
    finally:
        sys.setswitchinterval(before)


def test_opening_there_is_opening_here(path: Path, tmp_path: Path) -> None:
    model = tmp_path / "elsewhere"
    there, here = AdapterOpener(GEOMETRY, model, call=BackgroundProcess().call), AdapterOpener(GEOMETRY, model)
    assert there.open("one", str(path)).identity == here.open("one", str(path)).identity
    for bad in (str(tmp_path / "nothing"), str(path / "adapter.safetensors")):
        with pytest.raises(AdapterError) as error:
            here.open("one", bad)
        with pytest.raises(AdapterError) as other:
            there.open("one", bad)
        assert other.value.to_dict() == error.value.to_dict()


def test_calls_of_several_threads_do_not_mix(source: RemoteSource, path: Path, tmp_path: Path) -> None:
    paths = [disk_adapter(tmp_path / str(seed), {0: [seed]}, seed)[0] for seed in range(3)]
    meant = [read(LocalSource(GEOMETRY), each) for each in paths]
    found: dict[int, PackedAdapter] = {}
    threads = [
        threading.Thread(target=lambda at=at: found.update({at: read(source, paths[at])})) for at in range(len(paths))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for at, each in enumerate(meant):
        assert_same(found[at], each)
