"""Which driver serves which device."""

from __future__ import annotations

import torch

from npu_weave.errors import UnsupportedError
from npu_weave.memory.acl import AclDriver
from npu_weave.memory.cuda import CudaDriver
from npu_weave.memory.driver import Driver
from npu_weave.memory.host import HostDriver


def open_driver(device: torch.device) -> Driver:
    """The driver for memory of `device`.

    Raises UnsupportedError ``DEVICE_UNSUPPORTED`` for a kind of device there is no driver for, DriverError
    ``DRIVER_UNAVAILABLE`` when the device or its library is not there.
    """
    index = device.index or 0
    if device.type == "cpu":
        return HostDriver()
    if device.type == "cuda":
        return CudaDriver(index)
    if device.type in ("npu", "privateuseone"):
        return AclDriver(index)
    raise UnsupportedError(
        "DEVICE_UNSUPPORTED",
        str(device),
        expected="cpu, cuda or npu",
        got=device.type,
        remedy="serve on a CPU, an NVIDIA GPU or an Ascend NPU",
    )
