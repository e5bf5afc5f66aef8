"""Touching what is not mapped kills the process that does it, instead of reading zeros."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PRELUDE = """
import faulthandler, os, sys, torch
from npu_weave.memory import HostDriver, PagePool, VirtualTensor
faulthandler.disable()
PAGE = 2 << 20
pool = PagePool(HostDriver())
tensor = VirtualTensor(pool, rows=16, row_shape=(PAGE // 4,), dtype=torch.float32, name="weight")
tensor.map_rows([3, 7])
whole = tensor.tensor
view = tensor.row_view(3)
view.fill_(1.0)
print("ready", flush=True)
"""

CASES = {
    "read of a hole": "whole[4].sum()",
    "write of a hole": "whole[2].fill_(0)",
    "one element past a mapped row": "whole.view(-1)[4 * PAGE // 4].item()",
    "a kernel that walks over all rows": "whole.sum()",
    "gather of an unmapped row": "whole.index_select(0, torch.tensor([3, 5]))",
    "a view kept after its row was unmapped": "tensor.unmap_rows([3]); view.sum()",
    "a view kept after close": "tensor.close(); view.sum()",
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_touching_a_hole_is_a_segmentation_fault(code: str) -> None:
    done = run(code)
    assert done.stdout == "ready\n", done.stderr
    assert done.returncode == -signal.SIGSEGV


def test_the_same_accesses_to_mapped_rows_are_fine() -> None:
    done = run(
        "assert whole[3].sum() == PAGE // 4\n"
        "whole[7].fill_(2)\n"
        "assert whole.index_select(0, torch.tensor([3, 7])).sum() == 3 * PAGE // 4\n"
    )
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr
