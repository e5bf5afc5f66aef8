"""What the tests on the emulated runtime share. They run by `bash scripts/test_ascend.sh` only."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
from emulation.cann import load
from emulation.cann.acl import Acl


@pytest.fixture(scope="session")
def runtime() -> Acl:
    """The emulated runtime in this process."""
    return Acl(load.runtime())


@pytest.fixture
def acl(runtime: Acl) -> Iterator[Acl]:
    """The same on device 0, and with no failure ordered before or after the test."""
    runtime.set_device(0)
    yield runtime
    runtime.forget_failures()


@pytest.fixture(scope="session")
def torch_npu(runtime: Acl) -> ModuleType:
    """The real torch_npu on the emulated runtime. A test that makes the device fault uses a process of its own."""
    module = load.torch_npu()
    runtime.set_device(0)
    return module
