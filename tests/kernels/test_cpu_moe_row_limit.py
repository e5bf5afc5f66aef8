"""The most rows that vLLM's CPU kernel for experts addresses correctly, at the geometry of DeepSeek-V2-Lite.

The kernel multiplies row by elements of a row in int32. The last row below the limit must give what row 0 gives, bit
for bit; the row after it must not, or the limit is for nothing. What the kernel does beyond the limit is to read
outside the tensor, so each run of it is a process of its own, forked from one child that has vLLM loaded. Rows in
between have addresses and no memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import traceback
from types import SimpleNamespace

import pytest
import torch

from npu_weave.memory.host import HostDriver
from npu_weave.memory.pool import PagePool
from npu_weave.memory.virtual_tensor import VirtualTensor

pytestmark = pytest.mark.engine  # no engine is started, but vLLM has to be there

HIDDEN, INTERMEDIATE, TOKENS, TOP_K = 2048, 1408, 5, 2
LIMIT = 373
KERNELS = ["vec", *(["amx"] if torch.cpu._is_amx_tile_supported() else [])]
EQUAL, DIFFERENT, BROKEN = 0, 42, 1
"""Exit statuses of a run; a fault is a negative one."""


def test_limit_is_the_largest_row_whose_offset_fits_in_int32() -> None:
    from npu_weave.engine.vllm.moe_layer import VllmMoELayer

    layer = VllmMoELayer.__new__(VllmMoELayer)
    layer._experts = SimpleNamespace(w13_weight=torch.empty(64, 2 * INTERMEDIATE, HIDDEN, device="meta"))
    assert layer.row_limit.rows == LIMIT
    elements = 2 * INTERMEDIATE * HIDDEN
    assert (LIMIT - 1) * elements < 2**31 <= LIMIT * elements


@pytest.fixture(scope="module")
def statuses() -> dict[str, int]:
    """Exit status of every run, by "kernel row"."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    assert BROKEN not in found.values(), done.stderr[-4000:]
    return found


@pytest.mark.parametrize("isa", KERNELS)
def test_last_row_equals_row_0_bit_for_bit(isa: str, statuses: dict[str, int]) -> None:
    assert statuses[f"{isa} {LIMIT - 1}"] == EQUAL


@pytest.mark.parametrize("isa", KERNELS)
def test_next_row_is_wrong_or_faults(isa: str, statuses: dict[str, int]) -> None:
    """Shows why the limit is there; when this fails, the kernel was repaired and the limit can go."""
    status = statuses[f"{isa} {LIMIT}"]
    assert status < 0 or status == DIFFERENT


def main() -> None:
    """Run every kernel on the last row and on the next one; print the exit statuses."""
    import vllm._custom_ops
    import vllm.v1.worker.cpu.shm  # noqa: F401  loads what the kernel needs of its process

    statuses = {}
    for isa in KERNELS:
        for row in (LIMIT - 1, LIMIT):
            pid = os.fork()  # no thread has run here yet
            if pid == 0:
                os._exit(run(isa, row))
            statuses[f"{isa} {row}"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps(statuses))


def run(isa: str, row: int) -> int:
    """Whether an expert at `row` gives the same output as at row 0."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        return EQUAL if same_output(isa, row) else DIFFERENT
    except BaseException:
        traceback.print_exc()
        return BROKEN


def same_output(isa: str, row: int) -> bool:
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight

    torch.ops._C.init_cpu_memory_env([0])
    torch.cpu._init_amx()
    torch.manual_seed(0)
    pool = PagePool(HostDriver())
    weights = []
    for name, shape in (("w13", (2 * INTERMEDIATE, HIDDEN)), ("w2", (HIDDEN, INTERMEDIATE))):
        tensor = VirtualTensor(pool, rows=row + 1, row_shape=shape, dtype=torch.bfloat16, name=name)
        tensor.map_rows([0, 1, row])
        experts = cpu_prepack_moe_weight((torch.randn(2, *shape) / HIDDEN**0.5).bfloat16(), isa)
        for place, expert in ((0, 0), (1, 1), (row, 0)):
            tensor.row_view(place).copy_(experts[expert])
        weights.append(tensor.tensor)
    inputs, scores = torch.randn(TOKENS, HIDDEN).bfloat16(), torch.rand(TOKENS, TOP_K)
    outputs = []
    for place in (0, row):
        ids = torch.tensor([[place, 1]] * TOKENS, dtype=torch.int32)
        outputs.append(torch.empty_like(inputs))
        cpu_fused_moe(outputs[-1], inputs, *weights, None, None, scores, ids, "silu", isa)
    assert outputs[0].isfinite().all() and outputs[0].float().std() > 0.01, "the expert does something"
    return torch.equal(outputs[0], outputs[1])


if __name__ == "__main__":
    main()
