"""The engine core's side: adapters in and out of service, and for every request its revision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreRequest

from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.config import WeaveConfig
from npu_weave.engine.vllm import worker_calls
from npu_weave.engine.vllm.drops import RevisionDrops
from npu_weave.engine.vllm.in_flight import InFlight, request_overdue
from npu_weave.engine.vllm.loads import AdapterLoads, Load
from npu_weave.engine.vllm.quota import AdapterQuota, request_cancelled
from npu_weave.engine.vllm.static_adapters import StaticAdapters
from npu_weave.engine.vllm.status import ServiceRecord, StatusReports
from npu_weave.engine.vllm.workers import WorkerGroup
from npu_weave.errors import IntegrityError, WeaveError
from npu_weave.residency.background_process import process_for_calls
from npu_weave.residency.directory import AdapterDirectory, Revision
from npu_weave.residency.load_opener import AdapterOpener
from npu_weave.residency.load_threads import background_threads
from npu_weave.residency.pins import read_pins

if TYPE_CHECKING:
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.request import Request

logger = init_logger("vllm.npu_weave.core")

IDLE_SECONDS = 0.001
"""How long an engine that has nothing to do but loads sleeps between two looks at them."""


class _Held(NamedTuple):
    """A request that waits for its adapter, and how it enters the scheduler."""

    request: EngineCoreRequest | Request
    enter: Callable[[Any], None]


class AdapterControl:
    """Adapters of one engine core.

    A request arrives with the serving layer's LoRARequest (name, id, path). `admit` exchanges it for one that names
    the revision: its id selects slots in the workers, its path carries the content digest, and with the name it
    is part of the prefix cache's key. So a re-pointed name never meets old cache entries, and requests in flight keep
    the revision they began with.

    A revision is in use while a request of the scheduler names it; that is read off the scheduler when needed, not
    counted, so there is no count to get wrong. A request whose adapter is not staged is held outside the scheduler
    until it is, while others go on.

    With data parallelism there is one such object for each rank, and adapters are fixed (`StaticAdapters`).

    Attributes:
        reports: what it knows, for metrics and for people.
    """

    def __init__(self, core: EngineCore, config: WeaveConfig, refuse: Callable[[Any, Exception], None]) -> None:
        """
        Args:
            refuse: ends one request with an error.
        """
        self._core = core
        self._refuse = refuse
        vllm_config = core.vllm_config
        lora_config = vllm_config.lora_config
        assert lora_config is not None, "checked by check_settings"
        geometry = MoEGeometry.from_config(vllm_config.model_config.hf_config.to_dict())
        self._workers = WorkerGroup(core.model_executor)
        self._directory = AdapterDirectory(lora_config.max_cpu_loras or lora_config.max_loras)
        self._record = ServiceRecord(self._directory)
        self._record.watch(core.scheduler)
        self._in_flight = InFlight(core.scheduler)
        self._quota = AdapterQuota(config.max_requests_per_adapter, self._in_flight.names)
        shared = vllm_config.parallel_config.data_parallel_size > 1
        self._static = StaticAdapters(lora_config.max_loras) if shared else None
        self._loads = AdapterLoads(
            self._workers,
            self._directory,
            AdapterOpener(geometry, Path(vllm_config.model_config.model), config.roots, call=process_for_calls().call),
            background_threads("npu-weave-open"),
            make_room=self._make_room,
            ended=self._load_ended,
            in_order=shared,
            pins=read_pins(config.pins),
        )
        self.reports = StatusReports(
            self._directory, self._record, self._workers, self._loads, self._quota, self._in_flight,
            slots=lora_config.max_loras,
        )  # fmt: skip
        self._drops = RevisionDrops(self._workers)
        # an engine inside its caller has no loop of its own that would go on meanwhile
        self._waits = not hasattr(core, "input_queue")
        self._drain_timeout = None if self._waits else config.drain_timeout

    # --- called on the engine's main thread ---

    def add(self, request: LoRARequest) -> bool | Future[bool]:
        """Load an adapter, or re-point its id to other content (``load_inplace``, or another path or name).

        Returns:
            True when it is in service already, else a future that is done when it is.

        Raises:
            WeaveError: by the future as well; nothing is changed then, on any worker.
        """
        asked = (request.lora_int_id, request.lora_name, request.lora_path)
        again = bool(request.load_inplace)
        known = self._directory.find(*asked)
        if known is not None and known.staged and not again:
            return True
        load = None if again else self._loads.under_way(*asked)
        if load is None:
            if self._static is not None:
                ids = self._directory.public_ids() | self._loads.public_ids
                self._static.check_load(request.lora_name, request.lora_int_id, ids, again=again)
            load = self._loads.start(*asked, again=again)
        return self._outcome(load.done)

    def remove(self, public_id: int) -> bool:
        """Take an adapter out of service; its memory returns when its last request has finished.

        A load of it that is under way is given up, with the requests that wait for it.

        Raises:
            UnsupportedError: DATA_PARALLEL_STATIC.
        """
        if self._static is not None:
            raise self._static.refusal(f"adapter id {public_id}", "a removal")
        cancelled = self._loads.cancel(public_id)
        revision = self._directory.retire(public_id)
        if revision is None:
            return cancelled
        self._record.retired(revision)
        in_use = self._in_flight.revisions().count(revision.id)
        logger.info("adapter %r taken out of service; %d requests still use it", revision.name, in_use)
        self.collect()
        return True

    def public_ids(self) -> set[int]:
        """Public ids in service."""
        return self._directory.public_ids()

    def pin(self, public_id: int) -> bool | Future[bool]:
        """Keep an adapter on the device; a future when it must be brought back to the host first.

        Raises:
            WeaveError: no slot would be left for others.
        """
        revision = self._directory.current(public_id)
        if revision is None:
            return False
        if revision.staged:
            self._workers.run(worker_calls.pin, revision.id)
            return True
        pinned: Future[bool] = Future()

        def then(staged: Future[bool]) -> None:
            try:
                staged.result()
                self._workers.run(worker_calls.pin, revision.id)
            except WeaveError as error:
                pinned.set_exception(error)
            else:
                pinned.set_result(True)

        self._loads.restage(revision).done.add_done_callback(then)
        return self._outcome(pinned)

    def submit(
        self, request: EngineCoreRequest | Request, enter: Callable[[Any], None], *, waited: bool = False
    ) -> None:
        """Let a request into the scheduler, now or when its adapter is staged; refuse it if that cannot be.

        Args:
            request: as `admit` left it: a request of the scheduler, or one whose adapter was not known then.
            enter: puts a request of the scheduler into it.
            waited: its adapter has room for one more, as it has waited for that.
        """
        try:
            ready = self._admitted(request)
            load = self._load_for(ready)
        except Exception as error:  # whatever it is, it is about this request only
            self._give_up(request, error)
            return
        if load is None:
            name = ready.lora_request.lora_name if ready.lora_request else None
            if name is not None and not waited and not self._quota.admits(name):
                self._quota.hold(name, ready, enter)
                return
            self._begin_service()
            try:
                enter(ready)
            finally:
                self._directory.release(ready.request_id)
            return
        load.held[ready.request_id] = _Held(ready, enter)
        if self._waits:
            self._settle(load.done)

    def release(self, request_id: str) -> None:
        """The request was given up before it came to `submit`."""
        self._directory.release(request_id)

    def abort(self, request_ids: list[str]) -> None:
        """Requests that wait, for a load or for others of their adapter, are dropped."""
        for request_id in request_ids if self.busy else ():
            self._loads.withdraw(request_id)
            self._quota.withdraw(request_id)
            self._directory.release(request_id)

    def collect(self) -> None:
        """Drop retired revisions that nobody uses any more, and host copies beyond the limit; raises if that failed."""
        if self._directory.has_idle_work:
            self._drop_unused()
        self._drops.poll(may_wait=self._may_wait)

    def poll(self) -> None:
        """Move loads on, and requests that waited for others of their adapter.

        Called after every step, and by an engine that has only these to wait for.
        """
        if not self.busy:
            return
        for request, enter in self._quota.release():
            self._let_in(_Held(request, enter), waited=True)
        self._drops.poll(may_wait=self._may_wait)
        if len(self._loads):
            self._loads.poll(may_wait=self._may_wait)
        if self.busy and not self._core.scheduler.has_requests():
            time.sleep(IDLE_SECONDS)

    def step_without_requests(self) -> None:
        """Other data parallel ranks have requests, and this one takes part in their step.

        Raises:
            IntegrityError: RANKS_DISAGREE.
        """
        if self._static is not None and not self._static.compared:
            self._begin_service()
            # a request may have been admitted, and have come to no step yet
            self._workers.run(worker_calls.begin_service)
            self._static.compared = True

    @property
    def busy(self) -> bool:
        """Whether loads or drops are under way, or requests wait, so that the engine's loop must not go to sleep."""
        return self._loads.busy or len(self._drops) > 0 or len(self._quota) > 0

    def abandon(self) -> None:
        """Give up all loads and the requests that wait: the engine stops."""
        self._loads.abandon()
        for request in self._quota.drain():
            self._give_up(request, request_cancelled(request.request_id))

    # --- called on the input thread ---

    def admit(self, request: EngineCoreRequest) -> bool:
        """Exchange the request's LoRARequest for its revision. Must precede the hashing of its tokens.

        Mutates `request`.

        Returns:
            False when its adapter is not in service (an offline caller may name any): `submit` loads it then.
        """
        asked = request.lora_request
        if asked is None:
            return True
        with self._directory.guarded():
            revision = self._directory.find(asked.lora_int_id, asked.lora_name, asked.lora_path)
            if revision is None:
                return False
            self._directory.hold(request.request_id, revision)
        request.lora_request = LoRARequest(
            lora_name=revision.name, lora_int_id=revision.id, lora_path=f"weave:{revision.digest}"
        )
        return True

    # --- inside ---

    @property
    def _may_wait(self) -> bool:
        """Whether workers answer at once and no step waits for them."""
        return self._waits or not (self._core.batch_queue or self._core.scheduler.has_requests())

    def _admitted(self, request: EngineCoreRequest | Request) -> EngineCoreRequest | Request:
        """The request of the scheduler, if its adapter is in service by now."""
        if not isinstance(request, EngineCoreRequest):
            return request
        ready: EngineCoreRequest | Request = self._core.preprocess_add_request(request)[0]
        return ready

    def _load_for(self, request: EngineCoreRequest | Request) -> Load | None:
        """The load that a request has to wait for; None when it need not.

        Raises:
            WeaveError: REVISION_NOT_STAGED; DATA_PARALLEL_STATIC, it would have to be loaded first.
        """
        adapter = request.lora_request
        if adapter is None:
            return None
        if isinstance(request, EngineCoreRequest):
            if self._static is not None:
                raise self._static.refusal(
                    f"request {request.request_id}", f"an adapter not loaded, {adapter.lora_name!r}"
                )
            return self._loads.join_or_start(adapter.lora_int_id, adapter.lora_name, adapter.lora_path)
        revision = self._directory.get(adapter.lora_int_id)
        if revision is None:
            raise IntegrityError("REVISION_NOT_STAGED", request.request_id, expected="a known revision", got="none")
        return None if revision.staged else self._loads.restage(revision)

    def _load_ended(self, load: Load, error: WeaveError | None) -> None:
        """Put the revision into service, or forget it; then let in, or refuse, who waited."""
        revision = load.revision
        if error is None and revision is not None and revision.opening:
            previous = self._directory.current(revision.public_id)
            self._directory.publish(revision)
            if previous is not None:
                self._record.retired(previous)
        elif error is not None and revision is not None and (revision.opening or load.restages):
            self._directory.forget(revision)
        for held in load.held.values():
            if error is None:
                self._let_in(held)
            else:
                self._give_up(held.request, error)
        self.collect()

    def _drop_unused(self) -> None:
        if self._drain_timeout is not None:
            self._end_overdue(self._drain_timeout)
        in_flight = set(self._in_flight.revisions())
        for revision in self._directory.collectable(in_flight):
            if not self._loads.loading(revision) and revision.id not in self._drops:
                self._drops.begin(revision.id, partial(self._dropped, revision))
        self._drop_copies(self._directory.surplus(in_flight))

    def _dropped(self, revision: Revision) -> None:
        self._directory.forget(revision)
        self._record.dropped(revision)
        logger.info("adapter %r (revision %d) dropped, its memory is free", revision.name, revision.id)

    def _drop_copies(self, revisions: Iterable[Revision]) -> None:
        """Those of revisions in service, which come back when requests need them."""
        for revision in revisions:
            if revision.id not in self._drops:
                self._drops.begin(revision.id)
                self._directory.mark_staged(revision, False)

    def _let_in(self, held: _Held, *, waited: bool = False) -> None:
        try:
            self.submit(held.request, held.enter, waited=waited)
        except Exception as error:  # a fault of this request, which nobody else should pay for
            logger.exception("request %s could not be scheduled after its adapter was loaded", held.request.request_id)
            self._give_up(held.request, error)

    def _give_up(self, request: EngineCoreRequest | Request, error: Exception) -> None:
        self._directory.release(request.request_id)
        self._refuse(request, error)

    def _end_overdue(self, limit: float) -> None:
        """End requests, waiting ones as well, that keep a revision in memory for longer than `limit` seconds."""
        overdue = self._record.retired_before(limit)
        if not overdue:
            return
        waiting = [r for r in self._quota.waiting() if r.lora_request and r.lora_request.lora_int_id in overdue]
        for request in waiting:
            self._quota.withdraw(request.request_id)
        for request in (*waiting, *self._in_flight.take_out(overdue)):
            assert request.lora_request is not None, "it is of a revision"
            self._give_up(request, request_overdue(request.request_id, request.lora_request.lora_name, limit))

    def _begin_service(self) -> None:
        """From now on adapters stay, where they have to; what is still on its way is given up."""
        if self._static is not None and not self._static.serving:
            self._static.serving = True
            self._loads.abandon()

    def _outcome(self, future: Future[bool]) -> bool | Future[bool]:
        return self._settle(future) if self._waits else future

    def _settle(self, future: Future[bool]) -> bool:
        """Wait for a load, in an engine that runs inside its caller."""
        while not future.done():
            self.poll()
        return future.result()

    def _make_room(self, revision: Revision) -> None:
        self._drop_copies(self._directory.surplus(set(self._in_flight.revisions()), room_for=revision))
