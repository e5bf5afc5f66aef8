"""What all tests share: how Hypothesis runs, and what a test's markers mean on this machine."""

from __future__ import annotations

import importlib.util

import hypothesis
import pytest
import torch

# Wall-clock deadlines say more about the machine's load than about our code. Examples are derived from the test
# itself, so that a failure in CI is the same failure everywhere.
hypothesis.settings.register_profile("npu_weave", deadline=None, derandomize=True, print_blob=True)
# scripts/fuzz.sh asks for it: other examples each time, and what fails is kept and tried first the next time
hypothesis.settings.register_profile("fuzz", deadline=None, derandomize=False, print_blob=True)
hypothesis.settings.load_profile("npu_weave")

NEEDS = ("engine", "emulated_ascend", "ascend_engine", "cuda", "npu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that state no need as `cpu`, and skips, saying so, those whose device is absent."""
    missing = {
        "cuda": not torch.cuda.is_available(),
        "npu": importlib.util.find_spec("torch_npu") is None,
    }
    for item in items:
        needs = [name for name in NEEDS if item.get_closest_marker(name)]
        if not needs:
            item.add_marker(pytest.mark.cpu)
        for name in needs:
            if missing.get(name):
                item.add_marker(pytest.mark.skip(reason=f"needs a device: {name}"))
