"""The virtual tensor: rows over pages, boundary pages shared, refusals, lifetime."""

from __future__ import annotations

import gc

import pytest
import torch

from npu_weave.errors import CapacityError, ConfigError, IntegrityError
from npu_weave.memory import HostDriver, PagePool, TraceDriver, VirtualTensor

PAGE = 2 << 20


@pytest.fixture
def pool() -> PagePool:
    return PagePool(HostDriver())


def half_pages(pool: PagePool, halves: int, rows: int = 16) -> VirtualTensor:
    """A tensor whose rows are `halves` half pages long."""
    return VirtualTensor(pool, rows=rows, row_shape=(halves, PAGE // 4), dtype=torch.bfloat16, name="w")


def refused(code: str) -> pytest.RaisesExc[IntegrityError]:
    return pytest.RaisesExc(IntegrityError, check=lambda error: error.code == code)


def test_shape_dtype_and_sizes() -> None:
    pool = PagePool(HostDriver())
    tensor = VirtualTensor(pool, rows=100, row_shape=(2816, 2048), dtype=torch.bfloat16, name="w13")
    assert tensor.tensor.shape == (100, 2816, 2048)
    assert tensor.tensor.is_contiguous() and tensor.tensor.dtype is torch.bfloat16
    assert tensor.row_bytes == 2816 * 2048 * 2
    assert (tensor.mapped_rows, tensor.mapped_bytes, tensor.exact_bytes) == (frozenset(), 0, 0)
    assert pool.driver.stats().pages == 0


@pytest.mark.parametrize(("rows", "row_shape"), [(0, (4,)), (-1, (4,)), (4, (0,)), (4, (2, -1))])
def test_empty_shapes_are_refused(pool: PagePool, rows: int, row_shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="TENSOR_SHAPE"):
        VirtualTensor(pool, rows=rows, row_shape=row_shape, dtype=torch.float32, name="w")


def test_geometry_of_deepseek_v2_lite(pool: PagePool) -> None:
    """w13 takes 5.5 pages a row: alone 6, two neighbours 11, two apart 12."""
    tensor = VirtualTensor(pool, rows=64, row_shape=(2816, 2048), dtype=torch.bfloat16, name="w13")
    assert [tensor.pages_needed(rows) for rows in ([0], [1], [0, 1], [0, 2], [1, 2], range(64))] == [
        6, 6, 11, 12, 12, 352,
    ]  # fmt: skip
    tensor.map_rows([0])
    assert tensor.pages_needed([1]) == 5
    tensor.map_rows([1])
    assert (pool.in_use, tensor.mapped_bytes, tensor.exact_bytes) == (11, 11 * PAGE, 11 * PAGE)
    tensor.unmap_rows([0])
    assert pool.in_use == 6
    tensor.unmap_rows([1])
    assert pool.in_use == 0


def test_a_boundary_page_keeps_its_content_while_a_neighbour_needs_it(pool: PagePool) -> None:
    tensor = half_pages(pool, 1)
    tensor.map_rows([2, 3])
    tensor.row_view(2).fill_(2)
    tensor.row_view(3).fill_(3)
    tensor.unmap_rows([2])
    assert pool.in_use == 1 and bool((tensor.row_view(3) == 3).all())
    tensor.map_rows([2])
    assert pool.in_use == 1 and bool((tensor.row_view(3) == 3).all())
    tensor.check_integrity()


def test_many_small_rows_share_a_page(pool: PagePool) -> None:
    tensor = VirtualTensor(pool, rows=1000, row_shape=(3, 1000), dtype=torch.float32, name="small")
    tensor.map_rows(range(0, 1000, 3))
    assert pool.in_use == -(-1000 * 12000 // PAGE)
    tensor.unmap_rows(range(0, 999, 3))
    assert tensor.mapped_rows == {999} and pool.in_use == 1
    tensor.check_integrity()


def test_the_address_never_moves_and_kernels_see_a_plain_tensor(pool: PagePool) -> None:
    tensor = VirtualTensor(pool, rows=8, row_shape=(512, 1024), dtype=torch.float32, name="w")
    base, whole = tensor.tensor.data_ptr(), tensor.tensor
    for rows in ([5], [1, 7]):
        tensor.map_rows(rows)
    expected = torch.randn(3, 512, 1024, generator=torch.Generator().manual_seed(0))
    for value, row in zip(expected, (1, 5, 7), strict=True):
        tensor.row_view(row).copy_(value)
    assert tensor.tensor.data_ptr() == base and tensor.tensor is whole
    picked = whole.index_select(0, torch.tensor([1, 5, 7]))
    assert torch.equal(picked, expected)
    assert torch.equal(torch.nn.Parameter(whole, requires_grad=False)[5], expected[1])


def test_refusals_name_the_rows_and_change_nothing(pool: PagePool) -> None:
    tensor = half_pages(pool, 3)
    tensor.map_rows([4, 5])
    pages = pool.in_use
    cases = [
        (lambda: tensor.map_rows([5, 6]), "ROW_ALREADY_MAPPED"),
        (lambda: tensor.map_rows([16]), "ROW_OUT_OF_RANGE"),
        (lambda: tensor.map_rows([-1]), "ROW_OUT_OF_RANGE"),
        (lambda: tensor.map_rows([7, 7]), "ROW_REPEATED"),
        (lambda: tensor.unmap_rows([4, 6]), "ROW_NOT_MAPPED"),
        (lambda: tensor.unmap_rows([4, 4]), "ROW_REPEATED"),
        (lambda: tensor.pages_needed([4]), "ROW_ALREADY_MAPPED"),
        (lambda: tensor.row_view(3), "ROW_NOT_MAPPED"),
        (lambda: tensor.row_view(99), "ROW_OUT_OF_RANGE"),
    ]
    for call, code in cases:
        with refused(code):
            call()
        assert (tensor.mapped_rows, pool.in_use) == ({4, 5}, pages)
        tensor.check_integrity()


def test_row_sets_may_be_empty(pool: PagePool) -> None:
    tensor = half_pages(pool, 1)
    tensor.map_rows([])
    tensor.unmap_rows([])
    assert tensor.pages_needed([]) == 0 and pool.in_use == 0


def test_exhausted_memory_maps_nothing() -> None:
    pool = PagePool(HostDriver(), limit_bytes=5 * PAGE)
    tensor = half_pages(pool, 3)
    tensor.map_rows([0])
    with pytest.raises(CapacityError, match="MEMORY_EXHAUSTED"):
        tensor.map_rows([2, 4, 6])
    assert (tensor.mapped_rows, pool.in_use) == ({0}, 2)
    tensor.map_rows([2])
    tensor.check_integrity()


def test_unmapping_is_fenced_and_mapping_is_not() -> None:
    driver = TraceDriver(HostDriver())
    tensor = half_pages(PagePool(driver), 3)
    driver.calls.clear()
    tensor.map_rows([0, 1])
    assert [call.name for call in driver.calls] == ["create_page"] * 3 + ["map"] * 3
    driver.calls.clear()
    tensor.unmap_rows([0, 1])
    assert [call.name for call in driver.calls] == ["fence"] + ["unmap"] * 3 + ["destroy_page"] * 3


def test_close_gives_pages_at_once_and_address_space_with_the_last_view(pool: PagePool) -> None:
    tensor = half_pages(pool, 3)
    tensor.map_rows(range(4))
    view = tensor.tensor[2]
    tensor.close()
    assert (pool.in_use, pool.driver.stats().pages, tensor.mapped_rows) == (0, 0, frozenset())
    tensor.close()
    del tensor
    gc.collect()
    assert pool.driver.stats().reservations == 1
    del view
    gc.collect()
    assert pool.driver.stats().reservations == 0


def test_integrity_sees_books_that_are_wrong(pool: PagePool) -> None:
    tensor = half_pages(pool, 1)
    tensor.map_rows([0, 1, 2])
    tensor.check_integrity()
    tensor._pages[0].rows -= 1
    with refused("TENSOR_INCONSISTENT"):
        tensor.check_integrity()
    tensor._pages[0].rows += 1
    tensor._rows.discard(2)
    with refused("TENSOR_INCONSISTENT"):
        tensor.check_integrity()
