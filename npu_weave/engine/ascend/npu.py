"""The NPU of a process: its runtime, its memory, its operators."""

from __future__ import annotations

import torch
from vllm.logger import init_logger

from weave_ops import ascendc

logger = init_logger("vllm.npu_weave.worker")


def start_runtime() -> None:
    """Have torch_npu initialise the runtime, without which no driver opens."""
    import torch_npu

    torch_npu.npu.init()


def memory_device(device: torch.device) -> torch.device:
    """The NPU whose memory a worker on `device` uses: the one of its rank on this machine, as vllm-ascend has it."""
    from vllm.distributed import get_world_group

    # the name of torch's slot for other devices, which torch_npu renames to "npu"
    return torch.device("privateuseone", get_world_group().local_rank if device.index is None else device.index)


def load_operators() -> None:
    """Make rerouting serve NPU tensors, and say by what."""
    logger.info("npu-weave: rerouting on NPUs is served by %s", ascendc.load())
