"""What every driver must do and must refuse. A new driver joins by adding its factory to DRIVERS."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable

import pytest
import torch

from npu_weave.errors import DriverError
from npu_weave.memory import Driver, FaultDriver, HostDriver, LimitDriver, TraceDriver

DRIVERS: dict[str, Callable[[], Driver]] = {
    "host": HostDriver,
    "host-limit": lambda: LimitDriver(HostDriver(), 1 << 40),
    "host-fault": lambda: FaultDriver(HostDriver()),
    "host-trace": lambda: TraceDriver(HostDriver()),
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return DRIVERS[request.param]()


def refused(code: str) -> pytest.RaisesExc[DriverError]:
    return pytest.RaisesExc(DriverError, check=lambda error: error.code == code)


def mapped(driver: Driver, pages: int, holes: int = 0) -> tuple[int, list[int]]:
    """A reservation with pages mapped at its start; base address and page handles."""
    base = driver.reserve((pages + holes) * driver.granularity)
    handles = [driver.create_page() for _ in range(pages)]
    for position, page in enumerate(handles):
        driver.map(base + position * driver.granularity, page)
    return base, handles


def test_granularity_is_a_power_of_two_of_at_least_a_small_page(driver: Driver) -> None:
    assert driver.granularity >= 4096
    assert driver.granularity & (driver.granularity - 1) == 0
    assert driver.name


def test_reservations_are_aligned_disjoint_and_cost_no_memory(driver: Driver) -> None:
    size = 64 * driver.granularity
    bases = sorted(driver.reserve(size) for _ in range(3))
    assert all(base % driver.granularity == 0 for base in bases)
    assert all(right - left >= size for left, right in itertools.pairwise(bases))
    stats = driver.stats()
    assert (stats.reservations, stats.reserved_bytes, stats.pages) == (3, 3 * size, 0)
    for base in bases:
        driver.release(base)
    assert driver.stats().reservations == 0


@pytest.mark.parametrize("nbytes", [0, -1, 1, 4096, (2 << 20) + 1, 1 << 64])
def test_reserve_refuses_what_is_no_multiple_of_the_granularity(driver: Driver, nbytes: int) -> None:
    with refused("DRIVER_INVALID_ARGUMENT"):
        driver.reserve(nbytes)


def test_reserve_reports_address_space_that_is_not_there(driver: Driver) -> None:
    with refused("DRIVER_OUT_OF_ADDRESS_SPACE"):
        driver.reserve(1 << 60)
    assert driver.stats().reservations == 0


def test_release_refuses_what_is_not_the_start_of_a_reservation(driver: Driver) -> None:
    base = driver.reserve(2 * driver.granularity)
    for address in (0, base + driver.granularity, base + 1):
        with refused("DRIVER_INVALID_ARGUMENT"):
            driver.release(address)
    driver.release(base)
    with refused("DRIVER_INVALID_ARGUMENT"):
        driver.release(base)


def test_release_refuses_a_reservation_with_mappings(driver: Driver) -> None:
    base, _ = mapped(driver, 1)
    with refused("DRIVER_IN_USE"):
        driver.release(base)
    driver.fence()
    driver.unmap(base)
    driver.release(base)


def test_pages_are_counted_distinct_and_truthy(driver: Driver) -> None:
    pages = [driver.create_page() for _ in range(5)]
    assert len(set(pages)) == 5 and all(pages)
    assert driver.stats().pages == 5
    for page in pages:
        driver.destroy_page(page)
    assert driver.stats().pages == 0


def test_a_destroyed_page_is_refused_even_after_its_memory_is_used_again(driver: Driver) -> None:
    base = driver.reserve(driver.granularity)
    old = driver.create_page()
    driver.destroy_page(old)
    new = driver.create_page()
    assert new != old
    with refused("DRIVER_INVALID_ARGUMENT"):
        driver.map(base, old)
    with refused("DRIVER_INVALID_ARGUMENT"):
        driver.destroy_page(old)


def test_a_page_of_another_driver_is_refused(driver: Driver) -> None:
    foreign = HostDriver().create_page()
    driver.create_page()
    base = driver.reserve(driver.granularity)
    with refused("DRIVER_INVALID_ARGUMENT"):
        driver.map(base, foreign)
    with refused("DRIVER_INVALID_ARGUMENT"):
        driver.destroy_page(foreign)


def test_a_mapped_page_is_not_destroyed(driver: Driver) -> None:
    base, (page,) = mapped(driver, 1)
    with refused("DRIVER_IN_USE"):
        driver.destroy_page(page)
    driver.fence()
    driver.unmap(base)
    driver.destroy_page(page)


def test_an_address_holds_one_page_and_a_page_one_address(driver: Driver) -> None:
    base, (page,) = mapped(driver, 1, holes=1)
    other = driver.create_page()
    with refused("DRIVER_ALREADY_MAPPED"):
        driver.map(base, other)
    with refused("DRIVER_ALREADY_MAPPED"):
        driver.map(base + driver.granularity, page)
    assert driver.stats().mapped_pages == 1


def test_map_refuses_addresses_outside_of_reservations_and_between_pages(driver: Driver) -> None:
    base = driver.reserve(2 * driver.granularity)
    page = driver.create_page()
    granularity = driver.granularity
    for address in (0, base + 1, base + granularity // 2, base + 2 * granularity, base - granularity):
        with refused("DRIVER_INVALID_ARGUMENT"):
            driver.map(address, page)
    driver.map(base + granularity, page)


def test_unmap_takes_exactly_what_was_mapped(driver: Driver) -> None:
    base, _ = mapped(driver, 2, holes=1)
    driver.fence()
    for address in (base + 1, base + 2 * driver.granularity, 0):
        with refused("DRIVER_NOT_MAPPED"):
            driver.unmap(address)
    driver.unmap(base)
    with refused("DRIVER_NOT_MAPPED"):
        driver.unmap(base)
    assert driver.stats().mapped_pages == 1


def test_unmap_needs_a_fence_that_came_after_the_map(driver: Driver) -> None:
    driver.fence()
    base, (page,) = mapped(driver, 1)
    with refused("DRIVER_NOT_FENCED"):
        driver.unmap(base)
    driver.fence()
    driver.unmap(base)
    driver.map(base, page)
    with refused("DRIVER_NOT_FENCED"):
        driver.unmap(base)


def test_new_pages_are_zero_even_where_others_wrote(driver: Driver) -> None:
    granularity = driver.granularity
    base, pages = mapped(driver, 2)
    memory = driver.tensor(base, 2 * granularity, driver)
    memory.fill_(7)
    driver.fence()
    for position, page in enumerate(pages):
        driver.unmap(base + position * granularity)
        driver.destroy_page(page)
    for position in range(2):
        driver.map(base + position * granularity, driver.create_page())
    assert int(memory.count_nonzero()) == 0


def test_a_page_moves_with_its_content(driver: Driver) -> None:
    granularity = driver.granularity
    base, (page,) = mapped(driver, 1, holes=3)
    memory = driver.tensor(base, 4 * granularity, driver)
    pattern = torch.arange(granularity, device=memory.device).to(torch.uint8)
    memory[:granularity].copy_(pattern)
    driver.fence()
    driver.unmap(base)
    driver.map(base + 3 * granularity, page)
    assert torch.equal(memory[3 * granularity :], pattern)


def test_pages_do_not_alias(driver: Driver) -> None:
    granularity = driver.granularity
    base, _ = mapped(driver, 8)
    memory = driver.tensor(base, 8 * granularity, driver)
    for position in range(8):
        memory[position * granularity : (position + 1) * granularity].fill_(position + 1)
    for position in range(8):
        page = memory[position * granularity : (position + 1) * granularity]
        assert int(page.min()) == int(page.max()) == position + 1


def test_tensor_lies_where_asked_touches_nothing_and_stays_in_one_reservation(driver: Driver) -> None:
    base = driver.reserve(4 * driver.granularity)
    memory = driver.tensor(base + 12, 3 * driver.granularity, driver)
    assert (memory.data_ptr(), memory.dtype, memory.numel()) == (base + 12, torch.uint8, 3 * driver.granularity)
    for address, nbytes in ((base, 4 * driver.granularity + 1), (base, 0), (base - 1, 2), (0, 1)):
        with refused("DRIVER_INVALID_ARGUMENT"):
            driver.tensor(address, nbytes, driver)


def test_tensor_keeps_its_owner_until_the_last_view_dies(driver: Driver) -> None:
    class Owner:
        alive = True

        def __del__(self) -> None:
            Owner.alive = False

    base, _ = mapped(driver, 1)
    view = driver.tensor(base, 64, Owner()).view(torch.int32)[3:5]
    gc.collect()
    assert Owner.alive
    del view
    gc.collect()
    assert not Owner.alive


def test_errors_name_the_call_its_arguments_and_a_remedy(driver: Driver) -> None:
    with pytest.raises(DriverError) as caught:
        driver.destroy_page(12345)
    assert "destroy_page(0x3039)" in caught.value.thing
    assert caught.value.got and caught.value.remedy


def test_calls_from_many_threads_keep_the_books_right(driver: Driver) -> None:
    granularity, rounds, workers = driver.granularity, 40, 8
    base = driver.reserve(workers * granularity)
    errors: list[BaseException] = []

    def work(position: int) -> None:
        address = base + position * granularity
        memory = driver.tensor(address, granularity, driver)
        try:
            for turn in range(rounds):
                page = driver.create_page()
                driver.map(address, page)
                memory[:64].fill_(turn)
                assert int(memory[:64].sum()) == 64 * turn
                driver.fence()
                driver.unmap(address)
                driver.destroy_page(page)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(position,)) for position in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    stats = driver.stats()
    assert (stats.pages, stats.mapped_pages, stats.reservations) == (0, 0, 1)
