"""One suite for all drivers: the host's, and that of GPUs, on a GPU where there is one and on an emulated libcuda
elsewhere. The driver of NPUs joins in tests/ascend. A new driver joins by adding its factory to DRIVERS.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

pytest.register_assert_rewrite("fixtures.driver_conformance")

from emulation.cuda.load import EmulatedCudaDriver  # noqa: E402
from fixtures.driver_conformance import *  # noqa: E402, F403

from npu_weave.memory import CudaDriver, Driver, FaultDriver, HostDriver, LimitDriver, StatisticsDriver, TraceDriver  # noqa: E402

CUDA: type[CudaDriver] = CudaDriver if torch.cuda.is_available() else EmulatedCudaDriver
DRIVERS: dict[str, Callable[[], Driver]] = {
    "host": HostDriver,
    "host-limit": lambda: LimitDriver(HostDriver(), 1 << 40),
    "host-fault": lambda: FaultDriver(HostDriver()),
    "host-trace": lambda: TraceDriver(HostDriver()),
    "host-statistics": lambda: StatisticsDriver(HostDriver()),
    "cuda": CUDA,
    "cuda-trace": lambda: TraceDriver(CUDA()),
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return DRIVERS[request.param]()
