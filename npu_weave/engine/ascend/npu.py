"""The NPU of a worker."""

from __future__ import annotations

import torch
from vllm.distributed import get_world_group


def memory_device(device: torch.device) -> torch.device:
    """The NPU whose memory a worker on `device` uses: the one of its rank on this machine, as vllm-ascend has it."""
    # the name of torch's slot for other devices, which torch_npu renames to "npu"
    return torch.device("privateuseone", get_world_group().local_rank if device.index is None else device.index)
