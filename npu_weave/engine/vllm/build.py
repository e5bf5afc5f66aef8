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
from npu_weave.memory.host import HostDriver
from npu_weave.memory.pool import PagePool

logger = init_logger("vllm.npu_weave.worker")


def build_bank(ports: Sequence[MoELayerPort], config: WeaveConfig, *, slots: int) -> ExpertBank:
    """Move the weights of `ports` into virtual tensors with room for adapters. Mutates the layers behind `ports`.

    Raises:
        ConfigError: ROWS_BEYOND_KERNEL, more rows are asked for than the engine's kernel addresses correctly.
        CapacityError, DriverError: the memory cannot be had.
    """
    adapter_rows = choose_adapter_rows(ports, config.adapter_rows, slots=slots)
    driver = HostDriver()
    limit = None
    if config.adapter_memory is not None:
        limit = _base_bytes(ports, driver.granularity) + config.adapter_memory
    pool = PagePool(driver, limit)
    layers = [ExpertLayer(port, pool, adapter_rows=adapter_rows, slots=slots) for port in ports]
    bank = ExpertBank(layers, pool, slots=slots, verify=config.verify_loads)
    memory = bank.memory()
    logger.info(
        "npu-weave: %d MoE layers of %d base experts + %d adapter rows, %d adapter slots; "
        "reserved %.2f GiB of address space, mapped %.2f GiB in %d pages of %d MiB (%s driver); "
        "adapter memory limit %s",
        len(layers),
        ports[0].num_experts,
        adapter_rows,
        slots,
        memory["reserved_bytes"] / 2**30,
        memory["mapped_bytes"] / 2**30,
        memory["pages"],
        driver.granularity >> 20,
        driver.name,
        f"{config.adapter_memory / 2**30:.2f} GiB" if config.adapter_memory else "none",
    )
    return bank


def choose_adapter_rows(ports: Sequence[MoELayerPort], wanted: int | None, *, slots: int) -> int:
    """Adapter rows for every layer: as wanted, or as many as could ever be used and the kernel allows.

    Raises:
        ConfigError: ROWS_BEYOND_KERNEL.
    """
    limits = [port.max_rows - port.num_experts for port in ports if port.max_rows is not None]
    most = min(limits, default=None)
    if wanted is None:
        useful = slots * max(port.num_experts for port in ports)
        wanted = useful if most is None else min(useful, most)
    if wanted < 1 or (most is not None and wanted > most):
        base = ports[0].num_experts
        raise ConfigError(
            "ROWS_BEYOND_KERNEL",
            "npu_weave.adapter_rows",
            expected=f"1 to {most} (the kernel addresses {base + (most or 0)} rows with 32 bits, {base} are the base's)",
            got=str(wanted),
            remedy=f"set adapter_rows to at most {most}, or raise --tensor-parallel-size",
        )
    return wanted


def _base_bytes(ports: Sequence[MoELayerPort], page: int) -> int:
    """Bytes of the pages under the base experts."""
    weights = [weight for port in ports for weight in port.weights().values()]
    return sum(math.ceil(weight.nbytes / page) * page for weight in weights)
