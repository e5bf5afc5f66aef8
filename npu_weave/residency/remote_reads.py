"""Adapters read and hashed by a process beside the engine's; their experts lie in memory that both see."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from npu_weave import turns
from npu_weave.adapters.adapter import ExpertTensors, open_adapter
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.residency.background_process import BackgroundProcess
from npu_weave.residency.channel import Channel, ChannelClosed
from npu_weave.residency.expert_memory import SharedMemory, SharedSlots
from npu_weave.residency.expert_reads import AHEAD, AdapterReads, ExpertReads
from npu_weave.residency.load_pace import LoadPace

Experts = dict[int, tuple[int, ...]]
KEPT_SECONDS = 10.0
"""Making pages for a load anew, and mapping them in two processes, takes as long as reading it."""


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

    def __init__(
        self,
        geometry: MoEGeometry,
        allowed_roots: Sequence[Path] | None = None,
        pace: LoadPace | None = None,
        *,
        kept_seconds: float = KEPT_SECONDS,
    ) -> None:
        """
        Args:
            pace: of the reading; None: as fast as it can.
            kept_seconds: how long memory between disk and packing waits for another adapter.
        """
        self._geometry = geometry
        self._allowed_roots = allowed_roots
        self._pace = pace or LoadPace(0.0)
        self._kept_seconds = kept_seconds
        self._memory = SharedMemory(geometry, geometry.num_experts + AHEAD + 1)
        self._process = BackgroundProcess()
        self._process.start()

    @property
    def pid(self) -> int | None:
        """Of the other process, if there is one."""
        return self._process.pid

    @contextmanager
    def open(self, path: str, check: Callable[[], None]) -> Iterator[AdapterReads]:
        """`AdapterSource.open`. Raises besides WeaveError: LOAD_PROCESS_LOST."""
        memory, asked = self._memory, (path, self._geometry, self._allowed_roots)
        with self._process.talk(_read_there, *asked, self._pace.ratio, self._kept_seconds) as channel:
            assert self.pid is not None, "it talks"
            channel.send_descriptor(memory.descriptor, self.pid)
            channel.send_descriptor(self._pace.descriptor, self.pid)
            try:
                yield RemoteReads(channel, memory, channel.receive(check), check)
            finally:
                channel.send(None)
                _drain(channel)


class _Kept:
    """The other process's side of the memory: it stays mapped, and keeps its pages for adapters that come soon."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self._returning: threading.Timer | None = None

    def take(self, descriptor: int, geometry: MoEGeometry) -> SharedMemory:
        """The memory of `descriptor`, which is this object's from now on."""
        if self._returning is not None:
            self._returning.cancel()
            self._returning.join()
        if self._memory is not None and self._memory.is_at(descriptor):
            os.close(descriptor)
        else:
            self._memory = SharedMemory(geometry, geometry.num_experts + AHEAD + 1, descriptor)
        return self._memory

    def keep(self, memory: SharedMemory, seconds: float) -> None:
        """Return its pages if nobody takes it again for so long."""
        self._returning = threading.Timer(seconds, memory.return_pages)
        self._returning.daemon = True
        self._returning.start()


_kept = _Kept()


def _read_there(
    channel: Channel,
    path: str,
    geometry: MoEGeometry,
    allowed_roots: Sequence[Path] | None,
    rest: float,
    kept_seconds: float,
) -> None:
    """The other process's side."""
    memory = _kept.take(channel.receive_descriptor(), geometry)
    pace = LoadPace(rest, channel.receive_descriptor())
    turns.rest_by(pace.rest)
    _read_into(memory, channel, path, geometry, allowed_roots)
    turns.rest_by()
    _kept.keep(memory, kept_seconds)
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
