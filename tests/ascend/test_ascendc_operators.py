"""torch.ops.npu_weave on NPU tensors: csrc/ascendc in torch_npu's task queue, the kernels under emulation."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from emulation.cann.build import build, package_folder

from weave_ops import ascendc, gating_reference, reference

pytestmark = pytest.mark.emulated_ascend
ROOT = Path(__file__).resolve().parents[2]
ASCENDC = ROOT / "csrc" / "ascendc"
SOURCES = [
    Path(__file__).with_name("ascendc_launch.cpp"),
    *(ASCENDC / name / "op_host" / f"{name}_tiling.cpp" for name in ("reroute", "gating_reroute")),
    *(ASCENDC / "torch" / f"{name}.cpp" for name in ("npu_tensors", "reroute", "gating_reroute")),
]


@pytest.fixture(scope="module", autouse=True)
def operators(torch_npu: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> None:
    """csrc/ascendc as CMake builds it, but for the launch."""
    folders = {name: package_folder(name) for name in ("torch", "torch_npu")}
    foreign = [
        folders["torch"] / "include",
        folders["torch"] / "include" / "torch" / "csrc" / "api" / "include",
        folders["torch_npu"] / "include",
        folders["torch_npu"] / "include" / "third_party" / "acl" / "inc",
    ]
    library = tmp_path_factory.mktemp("ascendc") / "libweave_ascendc.so"
    flags = ["-std=c++20", "-O0", "-g0", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-unused-parameter", "-pthread"]
    emulations = [f"-I{ROOT / 'tests' / 'emulation' / each}" for each in ("ascendc", "cann/runtime")]
    links = [f"-L{folder / 'lib'}" for folder in folders.values()]
    links += [f"-L{build()}", "-ltorch_npu", "-ltorch", "-ltorch_cpu", "-lc10", "-lascendcl"]
    includes = [argument for folder in foreign for argument in ("-isystem", str(folder))]
    subprocess.run(["g++", *flags, *emulations, *includes, "-o", library, *SOURCES, *links], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ascendc.VARIABLE, str(library))
        assert ascendc.load() == "ascendc"


def ints(high: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, high, shape, dtype=dtype, generator=generator)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_reroute_on_npu_tensors_is_the_reference(dtype: torch.dtype) -> None:
    ids, slots, table = ints(64, 200, 6, dtype=dtype), ints(5, 210), ints(9999, 5, 64)
    expected = reference.reroute(ids, slots, table)
    out = torch.ops.npu_weave.reroute(ids.npu(), slots.npu(), table.npu())
    assert out.device.type == "npu" and out.dtype is dtype
    assert torch.equal(out.cpu(), expected)


def test_reroute_in_place_also_where_ids_are_strided() -> None:
    slots, table = ints(5, 50), ints(9999, 5, 64)
    for ids in (ints(64, 50, 6).npu(), ints(64, 50, 12).npu()[:, ::2], ints(64, 6, 50).npu().t()):
        expected = reference.reroute(ids.cpu(), slots, table)
        torch.ops.npu_weave.reroute_(ids, slots.npu(), table.npu())
        assert torch.equal(ids.cpu(), expected)


def test_gating_on_npu_tensors_is_the_reference() -> None:
    slots, table = ints(5, 105), ints(9999, 5, 128)
    logits = ints(400, 100, 128).float().sub(200).div(16)
    bias = ints(100, 128).float().div(256)
    for arguments in (
        (logits, None, 8, "softmax", True, 1, 1, 1.0),
        (logits.bfloat16(), None, 6, "softmax", False, 8, 3, 16.0),
        (logits.half(), bias, 8, "sigmoid", True, 4, 2, 2.5),
        (logits.t().contiguous().t(), bias, 1, "softmax", True, 1, 1, 1.0),
    ):
        weights, ids = gating_reference.gating_reroute(*arguments, slots, table)
        on_npu = [each.npu() if isinstance(each, torch.Tensor) else each for each in (*arguments, slots, table)]
        found_weights, found = torch.ops.npu_weave.gating_reroute(*on_npu)
        assert torch.equal(found.cpu(), ids)
        torch.testing.assert_close(found_weights.cpu(), weights, rtol=2e-6, atol=0)


def test_it_runs_in_the_order_of_the_stream() -> None:
    """What is computed before is read, what is computed after reads it, and nothing waits in between."""
    slots, table = ints(5, 300), ints(44, 5, 64)  # a row, and a step more, is an id again
    expected = torch.zeros(300, 6, dtype=torch.int32)
    ids, on_npu = expected.npu(), (slots.npu(), table.npu())
    for step in range(20):
        ids = torch.ops.npu_weave.reroute(ids + step, *on_npu)
        expected = reference.reroute(expected + step, slots, table)
    assert torch.equal(ids.cpu(), expected)


def test_an_empty_batch_has_empty_results() -> None:
    slots, table = ints(5, 3).npu(), ints(64, 5, 64).npu()
    assert torch.ops.npu_weave.reroute(ints(64, 0, 6).npu(), slots, table).shape == (0, 6)
    weights, ids = torch.ops.npu_weave.gating_reroute(
        torch.zeros(0, 64).npu(), None, 6, "softmax", True, 1, 1, 1.0, slots, table
    )
    assert weights.shape == ids.shape == (0, 6)


def test_what_the_schema_refuses_is_refused() -> None:
    logits, slots, table = torch.zeros(4, 64).npu(), ints(5, 9).npu(), ints(64, 5, 64).npu()
    ids = ints(64, 4, 6).npu()
    reroute, gate = torch.ops.npu_weave.reroute, torch.ops.npu_weave.gating_reroute
    with pytest.raises(TypeError, match="topk_ids must be int32 or int64"):
        reroute(ids.float(), slots, table)
    with pytest.raises(TypeError, match="token_slots must be int32"):
        reroute(ids, slots.long(), table)
    with pytest.raises(ValueError, match="at least one entry for each of the 4 tokens"):
        reroute(ids, slots[:3], table)
    with pytest.raises(RuntimeError, match="expert_map must be on npu:0"):
        reroute(ids, slots, table.cpu())
    with pytest.raises(ValueError, match="on an NPU: top_k must be 1 to 16"):
        gate(logits, None, 17, "softmax", True, 1, 1, 1.0, slots, table)
    with pytest.raises(ValueError, match="scoring must be one of softmax, sigmoid"):
        gate(logits, None, 8, "tanh", True, 1, 1, 1.0, slots, table)
    with pytest.raises(TypeError, match="logits must be float32, bfloat16 or float16"):
        gate(logits.int(), None, 8, "softmax", True, 1, 1, 1.0, slots, table)
    with pytest.raises(ValueError, match=r"correction_bias must be \[64\]"):
        gate(logits, torch.zeros(63).npu(), 8, "softmax", True, 1, 1, 1.0, slots, table)
    with pytest.raises(ValueError, match="expert_map must have 64 columns"):
        gate(logits, None, 8, "softmax", True, 1, 1, 1.0, slots, ints(64, 5, 65).npu())
