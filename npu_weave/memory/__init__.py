"""Bytes and pages: address space reserved for all rows of a tensor, physical memory under those in use.

From the ground up: a `Driver` reserves, creates and maps, one class for each kind of device; a `PagePool` owns the
physical pages; a `VirtualTensor` spreads them under its rows. `adaptors` wrap any driver, to limit, trace, measure or
break it.
Nothing here knows experts, adapters or an engine.
"""

from npu_weave.memory.acl import AclDriver
from npu_weave.memory.adaptors import FaultDriver, LimitDriver, StatisticsDriver, TraceDriver
from npu_weave.memory.cuda import CudaDriver
from npu_weave.memory.driver import Driver, DriverStats
from npu_weave.memory.host import HostDriver
from npu_weave.memory.open import open_driver
from npu_weave.memory.pool import PagePool
from npu_weave.memory.process import process_shmem_bytes
from npu_weave.memory.virtual_tensor import VirtualTensor

__all__ = [
    "AclDriver",
    "CudaDriver",
    "Driver",
    "DriverStats",
    "FaultDriver",
    "HostDriver",
    "LimitDriver",
    "PagePool",
    "StatisticsDriver",
    "TraceDriver",
    "VirtualTensor",
    "open_driver",
    "process_shmem_bytes",
]
