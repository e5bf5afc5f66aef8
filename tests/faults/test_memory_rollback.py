"""Each driver call fails at each position: everything is as before, to the byte."""

from __future__ import annotations

import pytest
import torch

from npu_weave.errors import DriverError, IntegrityError
from npu_weave.memory import DriverStats, FaultDriver, HostDriver, PagePool, VirtualTensor

PAGE = 2 << 20
ROWS = 12


class Setting:
    """Rows 1, 2 and 5 of 1.5 pages each, written; everything that can be seen of it as one value."""

    def __init__(self) -> None:
        self.driver = FaultDriver(HostDriver())
        self.pool = PagePool(self.driver, limit_bytes=40 * PAGE)
        self.tensor = VirtualTensor(
            self.pool, rows=ROWS, row_shape=(3 * PAGE // 2 // 8,), dtype=torch.int64, name="weight"
        )
        self.tensor.map_rows([1, 2, 5])
        generator = torch.Generator().manual_seed(0)
        for row in (1, 2, 5):
            self.tensor.row_view(row).copy_(torch.randint(-(2**62), 2**62, (3 * PAGE // 16,), generator=generator))

    def seen(self) -> tuple[DriverStats, frozenset[int], int, int, int, bytes]:
        content = b"".join(self.tensor.row_view(row).numpy().tobytes() for row in sorted(self.tensor.mapped_rows))
        return (
            self.driver.stats(),
            self.tensor.mapped_rows,
            self.tensor.mapped_bytes,
            self.pool.in_use,
            self.pool.available(),
            content,
        )

    def check(self) -> None:
        self.tensor.check_integrity()
        self.pool.check_integrity()


def calls_of(action: str, rows: list[int]) -> dict[str, int]:
    """How often each driver call happens in an undisturbed run."""
    setting = Setting()
    setting.driver.arm(None)
    getattr(setting.tensor, action)(rows)
    return dict(setting.driver.counts)


MAP, UNMAP = [0, 3, 4, 8, 9], [1, 2, 5]
MAP_FAULTS = [(call, n) for call, count in calls_of("map_rows", MAP).items() for n in range(1, count + 1)]
UNMAP_FAULTS = [
    (call, n) for call, count in calls_of("unmap_rows", UNMAP).items() if call != "destroy_page"
    for n in range(1, count + 1)
]  # fmt: skip


def test_the_faults_cover_every_call_of_both_actions() -> None:
    # Rows 0 3 4 8 9 lie on the pages 0-1, 4-5, 6-7 and 12-14; of these 1, 4 and 7 are there already.
    assert calls_of("map_rows", MAP) == {"create_page": 6, "map": 6}
    assert calls_of("unmap_rows", UNMAP) == {"fence": 1, "unmap": 6, "destroy_page": 6}


@pytest.mark.parametrize("fault", MAP_FAULTS, ids=str)
def test_map_rows_rolls_back(fault: tuple[str, int]) -> None:
    setting = Setting()
    before = setting.seen()
    setting.driver.arm(fault)
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        setting.tensor.map_rows(MAP)
    assert setting.seen() == before
    setting.check()
    setting.tensor.map_rows(MAP)
    setting.check()


@pytest.mark.parametrize("fault", UNMAP_FAULTS, ids=str)
def test_unmap_rows_rolls_back_with_content(fault: tuple[str, int]) -> None:
    setting = Setting()
    before = setting.seen()
    setting.driver.arm(fault)
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        setting.tensor.unmap_rows(UNMAP)
    assert setting.seen() == before
    setting.check()
    setting.tensor.unmap_rows(UNMAP)
    assert setting.driver.stats().pages == 0


@pytest.mark.parametrize("n", range(1, 7))
def test_a_page_that_cannot_be_destroyed_stays_with_the_pool(n: int) -> None:
    setting = Setting()
    setting.driver.arm(("destroy_page", n))
    setting.tensor.unmap_rows(UNMAP)
    assert (setting.pool.in_use, setting.pool.idle, setting.driver.stats().mapped_pages) == (0, 1, 0)
    setting.check()


@pytest.mark.parametrize("call", ["reserve", "tensor"])
def test_a_tensor_that_cannot_be_made_leaves_no_address_space_behind(call: str) -> None:
    driver = FaultDriver(HostDriver(), fail_at=(call, 1))
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        VirtualTensor(PagePool(driver), rows=4, row_shape=(8,), dtype=torch.float32, name="weight")
    assert driver.stats().reservations == 0


def test_when_even_the_rollback_fails_nothing_is_forgotten() -> None:
    """map fails and unmapping what was mapped fails too: those pages stay in the books and serve the next attempt."""
    setting = Setting()
    rows, content = setting.tensor.mapped_rows, setting.seen()[-1]
    both = FaultDriver(setting.driver, fail_at=("unmap", 1), times=None)
    setting.tensor._driver = both
    setting.driver.arm(("map", 4))
    with pytest.raises(DriverError, match="fault driver: map"):
        setting.tensor.map_rows(MAP)
    assert (setting.tensor.mapped_rows, setting.seen()[-1]) == (rows, content)
    assert setting.pool.in_use == setting.driver.stats().mapped_pages == 9
    setting.check()
    both.arm(None)
    setting.tensor.map_rows(MAP)
    assert setting.pool.in_use == 12
    setting.check()
    setting.tensor.close()
    assert setting.driver.stats().pages == 0


def test_pages_stranded_by_a_failed_rollback_go_at_close() -> None:
    setting = Setting()
    both = FaultDriver(setting.driver, fail_at=("unmap", 1), times=None)
    setting.tensor._driver = both
    setting.driver.arm(("map", 4))
    with pytest.raises(DriverError):
        setting.tensor.map_rows(MAP)
    both.arm(None)
    setting.tensor.close()
    assert (setting.pool.in_use, setting.driver.stats().pages) == (0, 0)


def test_a_page_lost_in_a_failed_unmap_is_said_aloud() -> None:
    setting = Setting()
    both = FaultDriver(setting.driver, fail_at=("unmap", 3))
    setting.tensor._driver = both
    setting.driver.arm(("map", 2))
    with pytest.raises(IntegrityError, match="PAGE_LOST"):
        setting.tensor.unmap_rows(UNMAP)
