"""The worker's adapter manager, in the place of vLLM's LRUCacheWorkerLoRAManager."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.logger import init_logger

from npu_weave import turns
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.config import WeaveConfig
from npu_weave.engine.vllm import waiting
from npu_weave.engine.vllm.backend import Backend
from npu_weave.engine.vllm.build import build_bank
from npu_weave.errors import IntegrityError
from npu_weave.experts.routing import LayerRouting
from npu_weave.experts.token_slots import TokenSlots
from npu_weave.residency.host_cache import HostCache
from npu_weave.residency.load_identity import Identity
from npu_weave.residency.load_pace import LoadPace
from npu_weave.residency.load_reader import AdapterReader
from npu_weave.residency.load_threads import background_threads, hand_over_soon, later_on
from npu_weave.residency.loader import AdapterLoader, LoadState
from npu_weave.residency.remote_reads import RemoteSource
from npu_weave.residency.store import AdapterStore

logger = init_logger("vllm.npu_weave.worker")


class WeaveAdapterManager:
    """Serves ESFT adapters where vLLM expects its LoRA manager; no LoRA layer is ever made.

    The engine core loads and drops revisions (see `loads`); the model runner calls `set_step` (or
    `set_active_adapters`) once a step. Ids are revision ids, given by the engine core.
    """

    is_enabled = True

    def __init__(self, vllm_config: VllmConfig, device: torch.device, config: WeaveConfig, backend: Backend) -> None:
        self._vllm_config = vllm_config
        self._config = config
        self._backend = backend
        self._device = device
        lora_config = vllm_config.lora_config
        assert lora_config is not None, "checked by check_settings"
        self._slots: int = lora_config.max_loras
        self._host_limit: int = lora_config.max_cpu_loras or lora_config.max_loras
        model_config = vllm_config.model_config
        self.geometry = MoEGeometry.from_config(model_config.hf_config.to_dict())
        # a step may be padded so that tensor parallel ranks get equal shares of its tokens
        padding = vllm_config.parallel_config.tensor_parallel_size - 1
        ranks = vllm_config.parallel_config.data_parallel_size
        self.token_slots = TokenSlots(
            vllm_config.scheduler_config.max_num_batched_tokens + padding, device, ranks=ranks
        )
        self._pace = LoadPace(config.load_rest)
        turns.rest_by(self._pace.rest)
        hand_over_soon()
        self._compare = backend.compare_adapters if ranks > 1 else None
        self._lookup: npt.NDArray[np.int32] = np.zeros(1, dtype=np.int32)
        self._dummy_run = False
        self.store: AdapterStore
        self.loader: AdapterLoader

    def create_lora_manager(self, model: nn.Module, vllm_config: VllmConfig) -> nn.Module:
        """Move the experts of `model` into virtual weight tensors and insert the rerouting. Mutates `model`."""
        ports = self._ports = self._backend.find_moe_layers(model, vllm_config)
        placement, later = ports[0].placement, later_on("npu-weave-free")
        bank = build_bank(
            ports,
            self._config,
            slots=self._slots,
            device=self._backend.memory_device(self._device),
            placement=placement,
            later=later,
        )
        cache = HostCache(self._config.host_cache, later=later)
        self.store = AdapterStore(bank, cache, host_limit=self._host_limit)
        reader = AdapterReader(
            RemoteSource(self.geometry, self._config.roots, self._pace),
            {port.index: port for port in ports},
            allowed_roots=self._config.roots,
            placement=placement,
        )
        self.loader = AdapterLoader(
            reader,
            self.store,
            reading=background_threads("npu-weave-read"),
            copying=background_threads("npu-weave-copy"),
        )
        waiting.sleep_during(self.loader)
        for port in ports:
            port.insert_routing(LayerRouting(bank.layers[port.index], self.token_slots))
        fused = [port.gating_is_fused for port in ports if port.gating_is_fused is not None]
        if fused:
            logger.info(
                "npu-weave: gating and rerouting are one operator in %d of %d MoE layers; elsewhere the engine's own "
                "gating stays, where one operator would not give its answers bit for bit",
                sum(fused),
                len(ports),
            )
        return model

    # --- called by the engine core, through collective_rpc ---

    def begin_load(self, revision: int, name: str, path: str, digest: str, identity: Identity | None) -> None:
        """`AdapterLoader.begin`."""
        self.loader.begin(revision, name, path, digest, identity)

    def load_states(self) -> dict[int, LoadState]:
        """`AdapterLoader.states`."""
        return self.loader.states()

    def commit_load(self, revision: int) -> tuple[str, bool]:
        """`AdapterLoader.commit`.

        Returns:
            The store's fingerprint, equal on all ranks, and whether layers are left for another call.
        """
        more = self.loader.commit(revision)
        return self.store.fingerprint(), more

    def publish_load(self, revision: int) -> str:
        """`AdapterLoader.publish`. Returns the store's fingerprint, equal on all ranks."""
        self.loader.publish(revision)
        self._refresh_lookup(revision)
        staged, slot = self.store.staged[revision], self.store.slot_of(revision)
        experts = sum(len(layer.experts) for layer in staged.layers.values())
        where = "on the host" if slot is None else f"in slot {slot}"
        logger.info("adapter %r %s: %d experts, %.1f MiB", staged.name, where, experts, staged.nbytes / 2**20)
        return self.store.fingerprint()

    def drop(self, revision: int) -> tuple[str, bool]:
        """Forget one revision, loaded or on the way, and give back a part of its memory (`AdapterStore.free_next`).

        Returns:
            The store's fingerprint, equal on all ranks, and whether memory is left for `free_rows`.
        """
        self.loader.cancel(revision)
        self.store.withdraw(revision)
        self._refresh_lookup()
        return self.free_rows()

    def free_rows(self) -> tuple[str, bool]:
        """Give back a part of the memory of revisions dropped before. Returns as `drop`."""
        more = self.store.free_next()
        return self.store.fingerprint(), more

    def pin(self, revision: int) -> str:
        """Keep one revision on the device. Returns the store's fingerprint."""
        self.store.pin(revision)
        self._refresh_lookup()
        return self.store.fingerprint()

    def begin_service(self) -> None:
        """Where data parallel ranks share a step, make sure that they have the same adapters, once.

        All ranks call it before their first step in service, with requests (`set_step`) or without any.

        Raises:
            IntegrityError: RANKS_DISAGREE; no step may follow.
        """
        compare, self._compare = self._compare, None
        if compare is not None:
            compare(self.store.layout())

    def memory(self) -> dict[str, int]:
        """Bytes and counts of this worker, after a check of all invariants."""
        self.store.check_integrity()
        for port in self._ports:
            port.check_seated()
        return {
            **self.store.bank.memory(),
            "adapters_staged": len(self.store.staged),
            "adapters_resident": len(self.store.resident),
        }

    def host_cache(self) -> dict[str, int]:
        """What the host cache keeps, and how many adapters were read from files since the start."""
        cache = self.store.cache
        return {"adapters": len(cache), "bytes": cache.nbytes, "disk_reads": self.loader.disk_reads}

    def status(self) -> dict[str, Any]:
        """Which revisions are in slots, and counts; costs no look at rows."""
        store, pool, cache = self.store, self.store.bank.pool, self.host_cache()
        return {
            "device": sorted(store.resident),
            "pinned": sorted(store.pinned),
            "pages": pool.in_use,
            "mapped_bytes": pool.in_use * pool.page_bytes,
            "evictions": store.evictions,
            "host_cache_adapters": cache["adapters"],
            "host_cache_bytes": cache["bytes"],
            "disk_reads": cache["disk_reads"],
        }

    # --- called by the model runner ---

    @property
    def set_aside_bytes(self) -> int:
        """Physical memory that waits for adapters, under no row yet."""
        pool = self.store.bank.pool
        return pool.idle * pool.page_bytes

    def set_step(self, revisions: npt.NDArray[np.int64], tokens: npt.NDArray[np.int32]) -> None:
        """Prepare the step: every adapter in a slot, every token with its slot. No loop over tokens.

        Args:
            revisions: ``[requests]`` revision of each request, 0 for the base model.
            tokens: ``[requests]`` scheduled tokens of each request.
        """
        self._pace.note_step()
        if self._compare is not None:
            self.begin_service()
        if self.token_slots.fill(revisions, tokens, self._lookup, self.store.last_used):
            return
        self._activate(revisions)
        if not self.token_slots.fill(revisions, tokens, self._lookup, self.store.last_used):
            raise _unknown(int(revisions.max()))  # never: all are in slots now, and a step with others' is not to be

    def set_active_adapters(self, adapter_requests: Collection[Any], mapping: Any) -> None:
        """As `set_step`, from vLLM's per-token mapping; dummy runs use the base model only."""
        if self._dummy_run or mapping is None:
            self.token_slots.clear()
            return
        revisions = np.asarray(mapping.index_mapping, dtype=np.int64)
        self.set_step(revisions, np.ones_like(revisions))

    @contextlib.contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        """Inside, adapters are vLLM's warm-up dummies: their ids mean nothing."""
        self._dummy_run = True
        try:
            yield
        finally:
            self._dummy_run = False
            self.token_slots.clear()

    def add_dummy_lora(self, lora_request: Any, rank: int) -> bool:
        """A warm-up dummy needs no weights."""
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        """No ranks here; vLLM's default serves."""
        return default_rank

    def supports_tower_connector_lora(self) -> bool:
        """Only routed experts are ever tuned."""
        return False

    def remove_all_adapters(self) -> None:
        """Called after warm-up, and by an idle rank between requests: real adapters must survive it."""
        self.token_slots.clear()

    def list_adapters(self) -> set[int]:
        """Revisions staged on this worker."""
        return set(self.store.staged)

    def add_adapter(self, lora_request: Any) -> bool:
        """Only the engine core stages adapters; True when it has."""
        return lora_request.lora_int_id in self.store.staged

    def remove_adapter(self, adapter_id: int) -> bool:
        """Only the engine core drops adapters."""
        return False

    def pin_adapter(self, adapter_id: int) -> bool:
        """Only the engine core pins adapters."""
        return False

    # --- inside ---

    def _activate(self, revisions: npt.NDArray[np.int64]) -> None:
        """Bring revisions into slots, of which at least one has none."""
        if revisions.max() >= len(self._lookup):
            raise _unknown(int(revisions.max()))
        self.store.activate({int(revision) for revision in np.unique(revisions) if revision})
        self._refresh_lookup()

    def _refresh_lookup(self, revision: int = 0) -> None:
        """Rebuild revision id -> slot; -1 for revisions that are not on the device. Id 0 is the base model."""
        size = max(len(self._lookup), revision + 1)
        self._lookup = np.full(size, -1, dtype=np.int32)
        self._lookup[0] = 0
        for resident, slot in self.store.resident.items():
            self._lookup[resident] = slot


def _unknown(revision: int) -> IntegrityError:
    return IntegrityError("REVISION_NOT_STAGED", f"revision {revision}", expected="a staged revision", got="none")
