"""torch.ops.npu_weave on NPU tensors where no AscendC library is: plain torch, by the real torch_npu.

In a process of its own: the AscendC tests register their library for the same device.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from emulation.cann.process import lines, run

pytestmark = pytest.mark.emulated_ascend

PROGRAM = """
from weave_ops import ascendc, reference
print(ascendc.load(), ascendc.load())
generator = torch.Generator().manual_seed(1)
def ints(high, *shape, dtype=torch.int32):
    return torch.randint(0, high, shape, dtype=dtype, generator=generator)
for dtype in (torch.int32, torch.int64):
    for tokens in (200, 1, 0):
        ids, slots, table = ints(64, tokens, 6, dtype=dtype), ints(5, tokens + 7), ints(9999, 5, 64)
        expected = reference.reroute(ids, slots, table)
        device = ids.npu(), slots.npu(), table.npu()
        out = torch.ops.npu_weave.reroute(*device)
        in_place = torch.ops.npu_weave.reroute_(*device)
        same = [torch.equal(each.cpu(), expected) for each in (out, device[0])]
        print(tokens, out.device.type, out.dtype is dtype, same, in_place)
try:
    torch.ops.npu_weave.reroute(ids.npu(), slots[:0].npu(), table.long().npu())
except TypeError as error:
    print(error)
"""


def test_rerouting_without_the_library_is_the_reference() -> None:
    seen = lines(PROGRAM, torch=True)
    served = [line for line in seen if line.startswith(("torch", "200", "1 ", "0 ", "reroute"))]
    assert served == [
        "torch torch",
        *[f"{tokens} npu True [True, True] None" for _ in range(2) for tokens in (200, 1, 0)],
        "reroute: expert_map must be int32, got torch.int64",
    ]


def test_a_library_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = run("from weave_ops import ascendc; ascendc.load()", torch=True, WEAVE_ASCENDC_LIBRARY=tmp_path / "no.so")
    assert done.returncode == 1 and "no.so: there is no such library" in done.stderr
