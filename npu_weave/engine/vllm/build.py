"""From the MoE layers of a loaded model to a bank of virtual weight tensors; and the start-up report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from vllm.logger import init_logger

from npu_weave.config import WeaveConfig
from npu_weave.errors import ConfigError
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.placement import ONE_RANK, ExpertPlacement
from npu_weave.experts.port import MoELayerPort
from npu_weave.memory.open import open_driver
from npu_weave.memory.pool import PagePool
from npu_weave.residency.load_threads import Later

logger = init_logger("vllm.npu_weave.worker")


def build_bank(
    ports: Sequence[MoELayerPort],
    config: WeaveConfig,
    *,
    slots: int,
    device: torch.device,
    placement: ExpertPlacement = ONE_RANK,
    later: Later | None = None,
) -> ExpertBank:
    """Move the weights of `ports` into virtual tensors with room for adapters. Mutates the layers behind `ports`.

    Args:
        slots: adapters on the device at once.
        device: whose memory the tensors get.
        placement: where experts lie.
        later: see `PagePool`.

    Raises:
        ConfigError: ROWS_BEYOND_KERNEL, more rows are asked for than the engine's kernel addresses correctly.
        CapacityError, DriverError: the memory cannot be had.
    """
    adapter_rows = choose_adapter_rows(ports, config.adapter_rows, slots=slots, placement=placement)
    driver = open_driver(device)
    limit = None
    if config.adapter_memory is not None:
        limit = _base_bytes(ports, driver.granularity) + config.adapter_memory
    pool = PagePool(driver, limit, later=later)
    layers = [ExpertLayer(port, pool, adapter_rows=adapter_rows, slots=slots, placement=placement) for port in ports]
    if pool.limit_pages is not None:
        # the engine sizes its KV cache after this, so the adapters' memory must be taken by now
        pool.preallocate(pool.limit_pages)
    bank = ExpertBank(layers, pool, slots=slots, verify=config.verify_loads)
    logger.info("npu-weave: %s", _describe(bank, ports, adapter_rows, config))
    return bank


def _describe(bank: ExpertBank, ports: Sequence[MoELayerPort], adapter_rows: int, config: WeaveConfig) -> str:
    memory, page = bank.memory(), bank.pool.driver.granularity
    limit = "no limit" if config.adapter_memory is None else f"at most {config.adapter_memory / 2**20:.0f} MiB"
    layer, mib = bank.layers[ports[0].index], 2**20
    return (
        f"{len(ports)} MoE layers of {layer.base_experts} base experts and {adapter_rows} adapter rows here, "
        f"{bank.slots} adapter slots; reserved {memory['reserved_bytes'] / mib:.0f} MiB of address space, mapped "
        f"{memory['mapped_bytes'] / mib:.0f} MiB of memory in {memory['pages']} pages of {page >> 20} MiB "
        f"({bank.pool.driver.name} driver), {limit} on adapter memory"
    )


def choose_adapter_rows(
    ports: Sequence[MoELayerPort], wanted: int | None, *, slots: int, placement: ExpertPlacement = ONE_RANK
) -> int:
    """Adapter rows of each rank for every layer: as wanted, or as many as could ever be used and kernels allow.

    Raises:
        ConfigError: ROWS_BEYOND_KERNEL.
    """
    useful = slots * max(placement.share(port.num_experts) for port in ports)
    limited = [port for port in ports if port.row_limit is not None]
    if not limited:
        return useful if wanted is None else wanted
    tightest = min(limited, key=lambda port: _room(port, placement))
    limit, base, most = tightest.row_limit, placement.share(tightest.num_experts), _room(tightest, placement)
    assert limit is not None, "only limited ones are looked at"
    if most < 1:
        raise ConfigError(
            "ROWS_BEYOND_KERNEL",
            tightest.name,
            expected=f"kernels that take more rows than the {base} base experts",
            got=f"{limit.rows} rows: {limit.reason}",
            remedy="raise --tensor-parallel-size",
        )
    if wanted is None:
        wanted = min(useful, most)
    if wanted > most:
        raise ConfigError(
            "ROWS_BEYOND_KERNEL",
            "npu_weave.adapter_rows",
            expected=f"1 to {most} ({limit.rows} rows with the {base} of the base; {limit.reason})",
            got=str(wanted),
            remedy=f"set adapter_rows to at most {most}, or raise --tensor-parallel-size",
        )
    return wanted


def _room(port: MoELayerPort, placement: ExpertPlacement) -> int:
    """Adapter rows that a layer with a limit can have."""
    assert port.row_limit is not None
    return port.row_limit.rows - placement.share(port.num_experts)


def _base_bytes(ports: Sequence[MoELayerPort], page: int) -> int:
    """Bytes of the pages under the base experts."""
    weights = [weight for port in ports for weight in port.weights().values()]
    return sum(math.ceil(weight.nbytes / page) * page for weight in weights)
