"""From the MoE layers of a loaded model to a bank of virtual weight tensors; and the start-up report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vllm.logger import init_logger

from npu_weave.config import WeaveConfig
from npu_weave.errors import ConfigError
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.layer import ExpertLayer
from npu_weave.experts.port import MoELayerPort
from npu_weave.memory.open import open_driver
from npu_weave.memory.pool import PagePool

logger = init_logger("vllm.npu_weave.worker")


def build_bank(ports: Sequence[MoELayerPort], config: WeaveConfig, *, slots: int) -> ExpertBank:
    """Move the weights of `ports` into virtual tensors with room for adapters. Mutates the layers behind `ports`.

    Raises:
        ConfigError: ROWS_BEYOND_KERNEL, more rows are asked for than the engine's kernel addresses correctly.
        CapacityError, DriverError: the memory cannot be had.
    """
    adapter_rows = choose_adapter_rows(ports, config.adapter_rows, slots=slots)
    driver = open_driver(next(iter(ports[0].weights().values())).device)
    limit = None
    if config.adapter_memory is not None:
        limit = _base_bytes(ports, driver.granularity) + config.adapter_memory
    pool = PagePool(driver, limit)
    layers = [ExpertLayer(port, pool, adapter_rows=adapter_rows, slots=slots) for port in ports]
    if pool.limit_pages is not None:
        # the engine sizes its KV cache after this, so the adapters' memory must be taken by now
        pool.preallocate(pool.limit_pages)
    bank = ExpertBank(layers, pool, slots=slots, verify=config.verify_loads)
    logger.info("npu-weave: %s", _describe(bank, ports, adapter_rows, config))
    return bank


def _describe(bank: ExpertBank, ports: Sequence[MoELayerPort], adapter_rows: int, config: WeaveConfig) -> str:
    memory, page = bank.memory(), bank.pool.driver.granularity
    limit = "no limit" if config.adapter_memory is None else f"at most {config.adapter_memory / 2**20:.0f} MiB"
    return (
        f"{len(ports)} MoE layers of {ports[0].num_experts} base experts and {adapter_rows} adapter rows, "
        f"{bank.slots} adapter slots; reserved {memory['reserved_bytes'] / 2**20:.0f} MiB of address space, "
        f"mapped {memory['mapped_bytes'] / 2**20:.0f} MiB of memory in {memory['pages']} pages of {page >> 20} MiB "
        f"({bank.pool.driver.name} driver), {limit} on adapter memory"
    )


def choose_adapter_rows(ports: Sequence[MoELayerPort], wanted: int | None, *, slots: int) -> int:
    """Adapter rows for every layer: as wanted, or as many as could ever be used and the kernel allows.

    Raises:
        ConfigError: ROWS_BEYOND_KERNEL.
    """
    limits = [port.max_rows - port.num_experts for port in ports if port.max_rows is not None]
    most = min(limits, default=None)
    if most is not None and most < 1:
        raise ConfigError(
            "ROWS_BEYOND_KERNEL",
            ports[0].name,
            expected=f"a kernel that addresses more rows than the {ports[0].num_experts} base experts",
            got=f"{most + ports[0].num_experts} rows, addressed with 32 bits",
            remedy="raise --tensor-parallel-size",
        )
    if wanted is None:
        useful = slots * max(port.num_experts for port in ports)
        wanted = useful if most is None else min(useful, most)
    if most is not None and wanted > most:
        base = ports[0].num_experts
        raise ConfigError(
            "ROWS_BEYOND_KERNEL",
            "npu_weave.adapter_rows",
            expected=f"1 to {most} (its kernel addresses {base + most} rows with 32 bits, {base} for the base)",
            got=str(wanted),
            remedy=f"set adapter_rows to at most {most}, or raise --tensor-parallel-size",
        )
    return wanted


def _base_bytes(ports: Sequence[MoELayerPort], page: int) -> int:
    """Bytes of the pages under the base experts."""
    weights = [weight for port in ports for weight in port.weights().values()]
    return sum(math.ceil(weight.nbytes / page) * page for weight in weights)
