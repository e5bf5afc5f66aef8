"""FRACTAL_NZ in the emulated torch_npu: where elements lie, what carries the format, who reads it and who refuses."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_npu
from hypothesis import given
from hypothesis import strategies as st
from torch_npu.strict import RefusedError

ND, NZ = 2, 29
COLUMNS = {torch.bfloat16: 16, torch.float16: 16, torch.int8: 32}
DTYPES = st.sampled_from(list(COLUMNS))


@pytest.fixture(autouse=True)
def internal_formats() -> Iterator[None]:
    torch.npu.config.allow_internal_format = True
    yield
    torch.npu.config.allow_internal_format = False


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Small integers, which every type holds exactly."""
    return torch.randint(-100, 101, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def blocked(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch_npu.npu_format_cast(numbers(*shape, dtype=dtype), NZ)


def over(tensor: torch.Tensor, form: int, shape: tuple[int, ...], nbytes: int) -> torch.Tensor:
    """A tensor of that format over the memory of `tensor`, as the ACL driver's are made."""
    storage = torch_npu._C._construct_storage_from_data_pointer(tensor.data_ptr(), torch.device("npu"), nbytes)
    strides = torch.empty(shape, device="meta").stride()
    described = {"dtype": tensor.dtype, "size": shape, "stride": strides, "storage_offset": 0, "npu_format": form}
    return torch_npu._C._construct_NPU_Tensor_From_Storage_And_Metadata(described, storage)


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """What the memory of `tensor` holds, element after element."""
    nbytes = tensor.untyped_storage().nbytes()
    return over(tensor, ND, (nbytes // tensor.dtype.itemsize,), nbytes)


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), DTYPES)
def test_where_elements_lie(experts: int, rows: int, columns: int, dtype: torch.dtype) -> None:
    torch.npu.config.allow_internal_format = True  # hypothesis runs many examples in one fixture
    x = numbers(experts, rows, columns, dtype=dtype)
    cast = torch_npu.npu_format_cast(x, NZ)
    assert (cast.shape, cast.stride(), cast.dtype) == (x.shape, x.stride(), x.dtype)
    assert torch_npu.get_npu_format(cast) == NZ
    # cut one matrix after the other into blocks, column of blocks by column of blocks
    across, expected = COLUMNS[dtype], []
    for matrix in x.tolist():
        padded = [row + [0] * (-columns % across) for row in matrix]
        padded += [[0] * len(padded[0])] * (-rows % 16)
        for left in range(0, columns, across):
            for row in padded:
                expected += row[left : left + across]
    assert memory_of(cast).tolist() == expected
    back = torch_npu.npu_format_cast(cast, ND)
    assert torch_npu.get_npu_format(back) == ND
    assert torch.equal(back, x)


def test_a_cast_to_the_same_format_and_one_that_is_not_allowed() -> None:
    x = numbers(16, 16)
    cast = torch_npu.npu_format_cast(x, NZ)
    assert torch_npu.npu_format_cast(cast, NZ) is cast
    assert torch_npu.npu_format_cast(x, ND) is x
    assert torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"enable"
    torch.npu.config.allow_internal_format = False
    assert torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"disable"
    with pytest.warns(UserWarning, match="stays in ND"):
        assert torch_npu.npu_format_cast(x, NZ) is x
    with pytest.raises(AttributeError, match="allow_hf32 is not emulated"):
        torch.npu.config.allow_hf32 = True


CARRIERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "data": lambda x: x.data,
    "detach": lambda x: x.detach(),
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "slice": lambda x: x[:1],
    "transpose": lambda x: x.transpose(-1, -2),
    "clone": lambda x: x.clone(),
    "to device": lambda x: x.to("npu"),
    "contiguous": lambda x: x.contiguous(),
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_carries_the_format(carrier: str) -> None:
    carried = CARRIERS[carrier](blocked(2, 20, 20))
    gc.collect()
    assert torch_npu.get_npu_format(carried) == NZ


def test_data_of_a_parameter_takes_the_format_with_it() -> None:
    parameter = torch.nn.Parameter(numbers(2, 20, 20), requires_grad=False)
    parameter.data = torch_npu.npu_format_cast(parameter.data, NZ)
    module = torch.nn.Module()
    module.weight = parameter
    del parameter
    gc.collect()
    assert torch_npu.get_npu_format(module.to("npu").weight) == NZ
    module.weight.data = numbers(2, 20, 20)
    assert torch_npu.get_npu_format(module.weight) == ND


READERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "to type": lambda x: x.to(torch.float32),
    "clone": lambda x: torch_npu.npu_format_cast(x.clone(), ND),
}


@pytest.mark.parametrize("reader", READERS)
def test_who_reads_in_order(reader: str) -> None:
    read = READERS[reader](blocked(2, 20, 40))
    assert torch_npu.get_npu_format(read) == ND
    assert read.tolist() == numbers(2, 20, 40).tolist()


def test_linear_reads_blocks() -> None:
    x, weight = numbers(3, 40).float(), numbers(20, 40)
    expected = x @ weight.float().t()
    assert torch.equal(torch.nn.functional.linear(x.bfloat16(), blocked(20, 40)), expected.bfloat16())
    turned = blocked(40, 20).t()  # the whole tensor, seen in another order
    assert torch.equal(torch.nn.functional.linear(x.bfloat16(), turned), (x @ numbers(40, 20).float()).bfloat16())


def test_batches_of_products_read_blocks() -> None:
    left, right = numbers(2, 3, 20), numbers(2, 20, 40)
    expected = torch_npu.npu_transpose_batchmatmul(left, right)
    assert torch.equal(torch_npu.npu_transpose_batchmatmul(left, blocked(2, 20, 40)), expected)
    assert torch.equal(torch.bmm(left, blocked(2, 20, 40)), torch.bmm(left, right))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_grouped_products_read_blocks(dtype: torch.dtype) -> None:
    rows, counts = numbers(5, 20, dtype=dtype), torch.tensor([2, 0, 3])
    named = {"group_list": counts, "group_list_type": 1, "split_item": 2, "group_type": 0}
    (expected,) = torch_npu.npu_grouped_matmul([rows], [numbers(3, 20, 40, dtype=dtype)], **named)
    assert expected.any()
    (found,) = torch_npu.npu_grouped_matmul([rows], [blocked(3, 20, 40, dtype=dtype)], **named)
    assert torch.equal(found, expected)
    # whole experts at the end of a stack, where nothing is padded; at its beginning always
    full, named["group_list"] = numbers(3, 32, 32, dtype=dtype), torch.tensor([2, 3])
    rows = numbers(5, 32, dtype=dtype)
    for part in (slice(2), slice(1, None)):
        (expected,) = torch_npu.npu_grouped_matmul([rows], [full[part]], **named)
        (found,) = torch_npu.npu_grouped_matmul([rows], [torch_npu.npu_format_cast(full, NZ)[part]], **named)
        assert torch.equal(found, expected)


def test_one_memory_in_several_formats() -> None:
    cast = blocked(2, 20, 40)
    nbytes = cast.untyped_storage().nbytes()
    raw = over(cast, ND, (nbytes // 2,), nbytes)
    again = over(raw, NZ, (2, 20, 40), nbytes)
    assert [torch_npu.get_npu_format(tensor) for tensor in (cast, raw, again)] == [NZ, ND, NZ]
    assert torch.equal(raw, memory_of(cast))
    assert torch.equal(again.cpu(), numbers(2, 20, 40))
    raw.zero_()  # the bytes are the same
    assert not again.cpu().any()


def test_a_storage_declared_anew() -> None:
    cast = blocked(2, 32, 32)
    storage = cast.untyped_storage()
    described = {"dtype": cast.dtype, "size": [16], "stride": [1], "storage_offset": 0, "npu_format": ND}
    torch_npu._C._construct_NPU_Tensor_From_Storage_And_Metadata(described, storage)
    assert torch_npu.get_npu_format(cast) == ND


def construct(**changed: Any) -> torch.Tensor:
    memory = torch.zeros(1024, dtype=torch.int8)
    storage = torch_npu._C._construct_storage_from_data_pointer(memory.data_ptr(), torch.device("npu"), 1024)
    described = {"dtype": torch.int8, "size": [32, 32], "stride": [32, 1], "storage_offset": 0, "npu_format": NZ}
    return torch_npu._C._construct_NPU_Tensor_From_Storage_And_Metadata(described | changed, storage)


NOT_CONSTRUCTED: dict[str, dict[str, Any]] = {
    "npu_format: ND (2) and FRACTAL_NZ (29) are emulated, not 3": {"npu_format": 3},
    "size: torch.int8 (32,) cannot be": {"size": [32], "stride": [1]},
    "size: torch.float32": {"dtype": torch.float32},
    "storage: 1024 bytes, where the blocks of (32, 33) take 2048": {"size": [32, 33], "stride": [33, 1]},
    "stride: FRACTAL_NZ is emulated for contiguous": {"stride": [1, 32]},
    "stride: FRACTAL_NZ is emulated": {"storage_offset": 1},
}


@pytest.mark.parametrize("said", NOT_CONSTRUCTED)
def test_what_cannot_be_constructed(said: str) -> None:
    assert torch_npu.get_npu_format(construct()) == NZ
    with pytest.raises(RuntimeError) as refused:
        construct(**NOT_CONSTRUCTED[said])
    assert said in str(refused.value)


X = torch.ones(2, 20, 20, dtype=torch.bfloat16)
REFUSED: dict[str, tuple[str, Callable[[torch.Tensor], Any]]] = {
    "matmul": ("torch.Tensor.__matmul__", lambda z: X @ z),
    "product of a part": ("torch.bmm: mat2: a part", lambda z: torch.bmm(X[:1], z[:1])),
    "einsum": ("torch.einsum", lambda z: torch.einsum("eij,ejk->eik", X, z)),
    "copy from": ("torch.Tensor.copy_", lambda z: X.copy_(z)),
    "copy to": ("torch.Tensor.copy_", lambda z: z.copy_(X)),
    "fill": ("torch.Tensor.fill_", lambda z: z.fill_(1)),
    "assign": ("torch.Tensor.__setitem__", lambda z: z.__setitem__(0, 1)),
    "index_copy": ("torch.Tensor.index_copy_", lambda z: z.index_copy_(0, torch.tensor([0]), X[:1])),
    "select": ("torch.Tensor.index_select", lambda z: z.index_select(0, torch.tensor([0]))),
    "cat": ("torch.cat", lambda z: torch.cat([X, z])),
    "equal": ("torch.equal", lambda z: torch.equal(X, z)),
    "sum": ("torch.Tensor.__add__", lambda z: z + 1),
    "float": ("torch.Tensor.float", lambda z: z.float()),
    "tolist": ("torch.Tensor.tolist", lambda z: z.tolist()),
    "a part": ("torch.Tensor.cpu: input: a part", lambda z: z[:, :16].cpu()),
    "a padded expert": ("input: a part", lambda z: torch_npu.npu_format_cast(z[1], ND)),
    "reinterpreted": ("input: a part or a reinterpretation", lambda z: z.view(torch.float16).cpu()),
    "linear of a part": ("linear: weight: a part", lambda z: torch.nn.functional.linear(X, z[1])),
    "group of a part": ("weight: a part", lambda z: grouped(z[:, :, :16])),
    "group that is turned": ("weight: a part", lambda z: grouped(z.transpose(1, 2))),
    "group behind padding": ("weight: a part", lambda z: grouped(z[1:])),
    "rows": ("x: contiguous", lambda z: grouped(X, rows=torch_npu.npu_format_cast(X[0], NZ))),
    "other format": ("acl_format: 2 (ND) and 29", lambda z: torch_npu.npu_format_cast(z, 3)),
    "one dimension": ("input: FRACTAL_NZ is of matrices", lambda z: torch_npu.npu_format_cast(X[0, 0], NZ)),
    "other type": ("input: torch.float32 in FRACTAL_NZ", lambda z: torch_npu.npu_format_cast(X.float(), NZ)),
}


def grouped(weight: torch.Tensor, rows: torch.Tensor | None = None) -> None:
    x = X[0] if rows is None else rows
    counts = torch.tensor([1] * len(weight))
    torch_npu.npu_grouped_matmul([x], [weight], group_list=counts, group_list_type=1, split_item=2, group_type=0)


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str) -> None:
    said, call = REFUSED[case]
    with pytest.raises(RefusedError) as refused:
        call(torch_npu.npu_format_cast(X, NZ))
    assert said in str(refused.value)


HOLES = """
import sys, torch, torch_npu
from npu_weave.memory.acl import AclDriver
from npu_weave.memory.npu_tensor import NpuFormat, declare
torch.npu.set_device(0)
driver = AclDriver(0)
size = driver.granularity
address = driver.reserve(2 * size)
driver.map(address, driver.create_page())
memory = driver.tensor(address, 2 * size, driver)
dtype, form = getattr(torch, sys.argv[1]), NpuFormat[sys.argv[2]]
rows, columns = 512, size // 512 // dtype.itemsize
weight = declare(memory, (2, rows, columns), dtype, form)
assert torch_npu.get_npu_format(weight) == form and torch_npu.get_npu_format(memory) == 2
memory[:size].view(dtype).fill_(1)
x, counts = torch.ones(2, rows, dtype=dtype), torch.tensor([int(n) for n in sys.argv[3:]])
named = {"output_dtype": torch.int32} if dtype == torch.int8 else {}
(result,) = torch_npu.npu_grouped_matmul(
    [x], [weight], group_list=counts, group_list_type=1, split_item=2, group_type=0, **named
)
print(result[0, 0].item())
"""


@pytest.mark.parametrize(
    ("dtype", "form", "said"),
    [("bfloat16", "ND", "512.0"), ("bfloat16", "FRACTAL_NZ", "512.0"), ("int8", "FRACTAL_NZ", "512")],
)
def test_experts_without_rows_are_not_read(dtype: str, form: str, said: str) -> None:
    """The second expert has no pages. With a row for it, the process dies of reading there."""

    def run(*counts: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", HOLES, dtype, form, *counts]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    done = run("2", "0")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [said]
    assert run("1", "1").returncode == -signal.SIGSEGV
