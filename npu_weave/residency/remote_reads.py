"""Adapters read and hashed by a process beside the engine's; their experts lie in memory that both see."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from npu_weave.adapters.adapter import ExpertTensors, open_adapter
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.residency.background_process import BackgroundProcess
from npu_weave.residency.channel import Channel, ChannelClosed
from npu_weave.residency.expert_memory import SharedMemory, SharedSlots
from npu_weave.residency.expert_reads import AHEAD, AdapterReads, ExpertReads

Experts = dict[int, tuple[int, ...]]


class RemoteReads:
    """`AdapterReads` of an adapter that another process reads.

    The two talk so: experts by layer, then for each expert ``(slot, digest)``, then the whole digest, or an error in
    place of any of them, come from there; slots that are free again go there. At the end either side sends None.
    """

    def __init__(self, channel: Channel, memory: SharedMemory, experts: Experts, check: Callable[[], None]) -> None:
        self.experts = experts
        self._channel = channel
        self._memory = memory
        self._check = check

    def __iter__(self) -> Iterator[tuple[ExpertTensors, str]]:
        """`AdapterReads.__iter__`."""
        for ids in self.experts.values():
            for _ in ids:
                self._check()
                slot, digest = self._channel.receive(self._check)
                yield self._memory.experts[slot], digest

    @cached_property
    def digest(self) -> str:
        """`AdapterReads.digest`."""
        whole: str = self._channel.receive(self._check)
        return whole

    def give_back(self, experts: Sequence[ExpertTensors]) -> None:
        """`AdapterReads.give_back`."""
        self._channel.send([self._memory.slot_of(each) for each in experts])


class RemoteSource:
    """`AdapterSource` that reads in another process, which is started here, ahead of the first adapter."""

    def __init__(self, geometry: MoEGeometry, allowed_roots: Sequence[Path] | None = None) -> None:
        self._geometry = geometry
        self._allowed_roots = allowed_roots
        self._process = BackgroundProcess()
        self._process.start()

    @property
    def pid(self) -> int | None:
        """Of the other process, if there is one."""
        return self._process.pid

    @contextmanager
    def open(self, path: str, check: Callable[[], None]) -> Iterator[AdapterReads]:
        """`AdapterSource.open`. Raises besides WeaveError: LOAD_PROCESS_LOST."""
        count = self._geometry.num_experts + AHEAD + 1
        with (
            SharedMemory(self._geometry, count) as memory,
            self._process.talk(_read_there, path, self._geometry, self._allowed_roots, count) as channel,
        ):
            assert self.pid is not None, "it talks"
            channel.send_descriptor(memory.descriptor, self.pid)
            try:
                yield RemoteReads(channel, memory, channel.receive(check), check)
            finally:
                channel.send(None)
                _drain(channel)


def _read_there(
    channel: Channel, path: str, geometry: MoEGeometry, allowed_roots: Sequence[Path] | None, count: int
) -> None:
    """The other process's side."""
    with SharedMemory(geometry, count, channel.receive_descriptor()) as memory:
        _read_into(memory, channel, path, geometry, allowed_roots)
    channel.send(None)


def _read_into(
    memory: SharedMemory, channel: Channel, path: str, geometry: MoEGeometry, allowed_roots: Sequence[Path] | None
) -> None:
    free, stopped = SharedSlots(memory, _Stopped), threading.Event()
    returns = threading.Thread(target=_take_back, args=(channel, memory, free, stopped))
    returns.start()

    def check() -> None:
        if stopped.is_set():
            raise _Stopped

    try:
        adapter = open_adapter(path, geometry, allowed_roots=allowed_roots)
        channel.send(adapter.experts)
        with ExpertReads(adapter, check, free) as reads:
            for tensors, digest in reads:
                channel.send((memory.slot_of(tensors), digest))
        channel.send(reads.digest)
    except _Stopped:
        pass
    except Exception as error:
        channel.send_error(error)
    returns.join()


def _take_back(channel: Channel, memory: SharedMemory, free: SharedSlots, stopped: threading.Event) -> None:
    try:
        while (slots := channel.receive()) is not None:
            free.give_back([memory.experts[slot] for slot in slots])
    except ChannelClosed:
        os._exit(0)  # the engine has gone, and whoever reads here may wait for it
    stopped.set()
    free.stop()


def _drain(channel: Channel) -> None:
    """Take what is still on its way, errors as well."""
    while True:
        try:
            if channel.receive() is None:
                return
        except ChannelClosed:
            raise
        except Exception:
            continue


class _Stopped(Exception):
    """The engine wants no more of this adapter."""
