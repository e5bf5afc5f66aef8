"""What the tests of vllm-ascend share. They run by `bash scripts/test_ascend.sh` only, on an emulated runtime."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from fixtures.ascend_engine import CANN_LIBRARY, ENVIRONMENT
from fixtures.tiny_models import TinyFamily, make_family
from fixtures.weave_ascend import NEWEST_RELEASE

if not CANN_LIBRARY.exists():
    raise pytest.UsageError(f"{CANN_LIBRARY} is not built; run: bash scripts/test_ascend.sh")
os.environ.update(ENVIRONMENT)

import torch_npu

if not torch_npu.__version__.endswith("+emulated"):
    raise pytest.UsageError("tests/emulation/torch_npu is not on PYTHONPATH; run: bash scripts/test_ascend.sh")

if not NEWEST_RELEASE:  # the emulation is the same whatever runs on it
    collect_ignore_glob = ["test_emulated_*"]


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyFamily]:
    """Makes the family of a model type, once."""
    root = tmp_path_factory.mktemp("families")
    return lambda kind, adapters=4: make_family(kind, root, adapters)
