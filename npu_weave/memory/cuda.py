"""The driver of NVIDIA GPUs, over the virtual memory calls of libcuda."""

from __future__ import annotations

import torch

from npu_weave import _C
from npu_weave.memory.native import NativeDriver, limit_of


class CudaDriver(NativeDriver):
    """`Driver` for one GPU. libcuda is opened here, not linked; pages have the device's minimum granularity.

    The content of a new page is undefined. It works in the device's primary context, which is torch's as well.

    Args:
        index: the GPU, as in ``torch.device("cuda", index)``.
        limit_bytes: physical memory that may be created; None: as much as the GPU has.

    Raises DriverError ``DRIVER_UNAVAILABLE`` when there is no libcuda, no such GPU, or it has no virtual memory calls.
    """

    def __init__(self, index: int = 0, limit_bytes: int | None = None) -> None:
        super().__init__(
            _C.cuda_driver(index, limit_of(limit_bytes)),
            torch.device("cuda", index),
            "install NVIDIA's driver, and check that nvidia-smi lists the GPU",
        )
