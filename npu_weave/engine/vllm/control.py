"""The engine core's side: loads and unloads adapters on all workers, and gives every request its revision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.lora.request import LoRARequest

from npu_weave.adapters.adapter import open_adapter
from npu_weave.adapters.checkpoint import base_fingerprint
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.adapters.paths import resolve_adapter_path, validate_adapter_name
from npu_weave.config import WeaveConfig
from npu_weave.engine.vllm import worker_calls
from npu_weave.errors import IntegrityError, WeaveError
from npu_weave.residency.directory import AdapterDirectory, Revision

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.request import Request

logger = init_logger("vllm.npu_weave.core")


class AdapterControl:
    """Adapters of one engine core.

    A request arrives with the serving layer's LoRARequest (name, id, path). `admit` exchanges it for one that names
    the revision: its id selects slots in the workers, its path carries the content digest, and with the name it
    is part of the prefix cache's key. So a re-pointed name never meets old cache entries, and requests in flight keep
    the revision they began with.

    A revision is in use while a request of the scheduler names it; that is read off the scheduler when needed, not
    counted, so there is no count to get wrong.
    """

    def __init__(self, core: EngineCore, config: WeaveConfig) -> None:
        self._core = core
        self._config = config
        vllm_config = core.vllm_config
        lora_config = vllm_config.lora_config
        assert lora_config is not None, "checked by check_settings"
        self._geometry = MoEGeometry.from_config(vllm_config.model_config.hf_config.to_dict())
        self._directory = AdapterDirectory(lora_config.max_cpu_loras or lora_config.max_loras)

    # --- called on the engine's main thread ---

    def add(self, request: LoRARequest) -> bool:
        """Load an adapter, or re-point its id to other content (``load_inplace``, or another path or name).

        Raises:
            WeaveError: nothing is changed then, on any worker.
        """
        known = self._directory.find(request.lora_int_id, request.lora_name, request.lora_path)
        if known is not None and known.staged and not request.load_inplace:
            return True
        revision = self._open(request)
        if known is not None and known.digest == revision.digest and known.path == revision.path:
            self._directory.forget(revision)
            revision = known
        try:
            self._stage(revision)
        except WeaveError:
            if revision.opening:
                self._directory.forget(revision)
            raise
        self._directory.publish(revision)
        self.collect()
        return True

    def remove(self, public_id: int) -> bool:
        """Take an adapter out of service; its memory returns when its last request has finished."""
        revision = self._directory.retire(public_id)
        if revision is None:
            return False
        in_use = sum(adapter == revision.id for adapter in self._adapters_of_requests())
        logger.info("adapter %r taken out of service; %d requests still use it", revision.name, in_use)
        self.collect()
        return True

    def public_ids(self) -> set[int]:
        """Public ids in service."""
        return self._directory.public_ids()

    def pin(self, public_id: int) -> bool:
        """Keep an adapter on the device.

        Raises:
            WeaveError: no slot would be left for others.
        """
        revision = self._directory.current(public_id)
        if revision is None:
            return False
        self._stage(revision)
        self._on_workers(worker_calls.pin, revision.id)
        return True

    def memory(self) -> list[dict[str, int]]:
        """Bytes and counts of every worker; each checks its invariants first."""
        reports = self._call(worker_calls.memory)
        for report in reports:
            if "code" in report:
                raise WeaveError.from_dict(report)
        return reports

    def schedule(self, request: Request) -> None:
        """Called before a request enters the scheduler: its revision must be staged.

        Raises:
            WeaveError: it cannot be; the caller then fails this request, and this one only.
        """
        if request.lora_request is None:
            return
        revision = self._directory.get(request.lora_request.lora_int_id)
        try:
            if revision is None:
                raise IntegrityError("REVISION_NOT_STAGED", request.request_id, expected="a known revision", got="none")
            self._stage(revision)
            if revision.opening:
                self._directory.publish(revision)
        except WeaveError:
            if revision is not None:
                self._directory.forget(revision)
            raise

    def release(self, request_id: str) -> None:
        """The scheduler has the request, or it was refused: nothing holds its revision but the scheduler now."""
        self._directory.release(request_id)

    def collect(self) -> None:
        """Drop retired revisions that nobody uses any more, and host copies beyond the limit."""
        if not self._directory.has_idle_work:
            return
        in_flight = set(self._adapters_of_requests())
        for revision in self._directory.collectable(in_flight):
            self._drop(revision)
            self._directory.forget(revision)
            logger.info("adapter %r (revision %d) dropped, its memory is free", revision.name, revision.id)
        for revision in self._directory.surplus(in_flight):
            self._drop(revision)

    # --- called on the input thread ---

    def admit(self, request: EngineCoreRequest) -> None:
        """Exchange the request's LoRARequest for its revision. Must precede the hashing of its tokens.

        Mutates `request`.

        Raises:
            WeaveError: the adapter is not loaded and cannot be opened.
        """
        asked = request.lora_request
        if asked is None:
            return
        with self._directory.guarded():
            revision = self._directory.find(asked.lora_int_id, asked.lora_name, asked.lora_path)
            if revision is not None:
                self._directory.hold(request.request_id, revision)
        if revision is None:
            # an offline caller may name an adapter that was never loaded: read it here, off the step's thread
            revision = self._open(asked)
            self._directory.hold(request.request_id, revision)
        request.lora_request = LoRARequest(
            lora_name=revision.name, lora_int_id=revision.id, lora_path=f"weave:{revision.digest}"
        )

    # --- inside ---

    @cached_property
    def _base_fingerprint(self) -> str | None:
        """Of the base model, where its checkpoint is a directory here; adapters that note their base are held to it."""
        model = Path(self._core.vllm_config.model_config.model)
        return base_fingerprint(model) if model.is_dir() else None

    def _open(self, request: LoRARequest) -> Revision:
        validate_adapter_name(request.lora_name)
        path = resolve_adapter_path(request.lora_path, self._config.allowed_roots)
        adapter = open_adapter(
            path, self._geometry, allowed_roots=self._config.allowed_roots, base_fingerprint=self._base_fingerprint
        )
        return self._directory.create(request.lora_int_id, request.lora_name, request.lora_path, adapter.digest)

    def _stage(self, revision: Revision) -> None:
        """Stage `revision` on all workers, or on none."""
        if revision.staged:
            return
        for idle in self._directory.surplus(set(self._adapters_of_requests()), room_for=revision):
            self._drop(idle)
        try:
            self._on_workers(worker_calls.stage, revision.id, revision.name, revision.path, revision.digest)
        except WeaveError:
            self._on_workers(worker_calls.drop, revision.id)
            raise
        revision.staged = True

    def _drop(self, revision: Revision) -> None:
        if revision.staged:
            self._on_workers(worker_calls.drop, revision.id)
            revision.staged = False

    def _on_workers(self, call: Callable[..., Any], *args: Any) -> None:
        """Run `call` on every worker and make sure that they all did the same.

        Raises:
            WeaveError: the first worker's error; RANKS_DISAGREE when their states differ.
        """
        outcomes = self._call(call, *args)
        for outcome in outcomes:
            if isinstance(outcome, dict):
                raise WeaveError.from_dict(outcome)
        if len(set(outcomes)) > 1:
            raise IntegrityError("RANKS_DISAGREE", call.__name__, expected="one state on all ranks", got=str(outcomes))

    def _call(self, call: Callable[..., Any], *args: Any) -> list[Any]:
        results: list[Any] = self._core.model_executor.collective_rpc(call, args=args)
        return results

    def _adapters_of_requests(self) -> list[int]:
        """The revision of every request the scheduler has, base-model requests left out."""
        requests: list[Request] = list(self._core.scheduler.requests.values())
        return [request.lora_request.lora_int_id for request in requests if request.lora_request]
