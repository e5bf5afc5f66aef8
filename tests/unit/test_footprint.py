"""Measured memory against pages counted by hand, and against what the operating system says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.errors import CapacityError, ConfigError, DriverError, IntegrityError, WeaveError
from npu_weave.experts.bank import ExpertBank
from npu_weave.memory import FaultDriver, HostDriver
from npu_weave.residency import footprint as footprint_module
from npu_weave.residency.footprint import Footprint, measure_footprint
from npu_weave.residency.footprint_budget import available_bytes, choose_layers
from npu_weave.residency.footprint_formula import ExpertSets
from npu_weave.residency.footprint_source import GEOMETRIES, FootprintSource

MIB = 1 << 20
PAGE = 2 * MIB
# One expert: w13 is [1024, 1024] in bf16, one page; w2 is [1024, 512], half a page.
SMALL = MoEGeometry("deepseek_v2", 3, (1, 2), 3, 2, 1024, 512, torch.bfloat16)
FIRST: ExpertSets = {1: (0,), 2: (1, 2)}
SECOND: ExpertSets = {1: (2,)}
SOURCE = FootprintSource("two small layers", "adapters", SMALL, (("first", FIRST), ("second", SECOND)))


def mapped_pages(found: Footprint) -> list[int]:
    return [step.reading.driver_bytes // PAGE for step in found.steps]


def test_every_number_by_hand() -> None:
    found = measure_footprint(SOURCE)
    assert found.layers == (1, 2)
    # rows 3+3, 4+5, 5+5; w13 takes a page a row, w2 half a page a row, rounded up in each layer
    assert mapped_pages(found) == [(3 + 2) * 2, (4 + 2) + (5 + 3), (5 + 3) * 2]
    assert [step.reading.exact_bytes // MIB for step in found.steps] == [18, 27, 30]
    assert [step.measured.exact_bytes // MIB for step in found.steps] == [18, 27, 30]
    assert [step.measured.padded_bytes // MIB for step in found.steps] == [18, 30, 42]
    assert [step.measured.merged_bytes // MIB for step in found.steps] == [18, 18, 36]
    assert [step.measured.experts for step in found.steps] == [0, 3, 4]
    assert [step.added for step in found.steps] == [None, "first", "second"]
    assert found.steps[2].measured.fragmentation == pytest.approx(42 / 30)
    assert found.steps[2].reading.waste == pytest.approx(32 / 30 - 1)
    assert found.reserved_bytes == 2 * (7 + 4) * PAGE
    assert [step.full for step in found.steps] == [step.measured for step in found.steps]


def test_all_memory_comes_back() -> None:
    found = measure_footprint(SOURCE)
    assert found.unloaded.driver_bytes == found.steps[0].reading.driver_bytes
    assert found.unloaded.exact_bytes == found.steps[0].reading.exact_bytes
    closed = found.closed
    assert (closed.pages, closed.mapped_pages, closed.reservations, closed.reserved_bytes) == (0, 0, 0, 0)


def test_part_of_the_depth_is_measured_and_all_of_it_computed() -> None:
    found = measure_footprint(SOURCE, layers=1)
    assert found.layers == (1,)
    assert mapped_pages(found) == [5, 6, 8]
    assert [step.measured.paged_bytes // PAGE for step in found.steps] == [5, 6, 8]
    # the padding is that of the whole model: its largest adapter has 2 experts in the layer left out
    assert found.steps[2].measured.padded_bytes == 7 * 3 * MIB
    assert [step.full.paged_bytes // PAGE for step in found.steps] == [10, 14, 16]


def test_rows_that_share_pages_as_in_deepseek_v2_lite() -> None:
    """w13 takes 5.5 pages a row and w2 2.75, so neighbours share; counted by hand for 4, 5 and 7 rows."""
    geometry = replace(GEOMETRIES["deepseek-v2-lite"], num_experts=4)
    adapters: tuple[tuple[str, ExpertSets], ...] = (("one", {1: (3,)}), ("two", {1: (0, 1)}))
    source = FootprintSource("shared pages", "adapters", geometry, adapters)
    found = measure_footprint(source, layers=1)
    assert mapped_pages(found) == [22 + 11, 28 + 14, 39 + 20]
    assert [step.measured.paged_bytes for step in found.steps] == [step.reading.driver_bytes for step in found.steps]


def test_a_model_without_adapters() -> None:
    found = measure_footprint(replace(SOURCE, adapters=()))
    assert mapped_pages(found) == [10]
    assert found.steps[0].measured.fragmentation == 1.0


def test_the_operating_system_counts_the_same() -> None:
    """In a process of its own, where nothing else shares memory."""
    code = (
        "import json, torch\n"
        "from npu_weave.adapters.geometry import MoEGeometry\n"
        "from npu_weave.residency.footprint import measure_footprint\n"
        "from npu_weave.residency.footprint_source import FootprintSource\n"
        "geometry = MoEGeometry('deepseek_v2', 3, (1, 2), 3, 2, 1024, 512, torch.bfloat16)\n"
        "adapters = (('first', {1: (0,), 2: (1, 2)}), ('second', {1: (2,)}))\n"
        "found = measure_footprint(FootprintSource('x', 'adapters', geometry, adapters))\n"
        "readings = [step.reading.shmem_bytes for step in found.steps]\n"
        "print(json.dumps([*readings, found.unloaded.shmem_bytes, found.closed_shmem_bytes]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pytest.approx([20 * MIB, 28 * MIB, 32 * MIB, 20 * MIB, 0], abs=MIB // 2)


def test_a_failure_half_way_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    drivers: list[FaultDriver] = []

    def failing(limit_bytes: int) -> FaultDriver:
        drivers.append(FaultDriver(HostDriver(limit_bytes), ("create_page", 13)))  # 10 for the base, then 4 for `first`
        return drivers[0]

    monkeypatch.setattr(footprint_module, "HostDriver", failing)
    with pytest.raises(DriverError, match="DRIVER_FAULT_INJECTED"):
        measure_footprint(SOURCE)
    stats = drivers[0].stats()
    assert (stats.pages, stats.mapped_pages) == (0, 0)


def test_memory_that_is_not_returned_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    close = footprint_module._close
    banks: list[ExpertBank] = []
    monkeypatch.setattr(footprint_module, "_close", banks.append)
    with pytest.raises(IntegrityError, match="MEMORY_NOT_RETURNED"):
        measure_footprint(SOURCE)
    close(banks[0])


@pytest.mark.parametrize(("available", "layers"), [(30 * MIB, (1,)), (59 * MIB, (1,)), (60 * MIB, (1, 2))])
def test_as_many_layers_as_fit_in_a_third(available: int, layers: tuple[int, ...]) -> None:
    """A layer of base experts takes 5 pages."""
    assert choose_layers(SMALL, [], PAGE, asked=None, available=available) == layers


def test_layers_asked_for_may_take_all_that_is_available() -> None:
    assert choose_layers(SMALL, [], PAGE, asked=2, available=20 * MIB) == (1, 2)
    assert choose_layers(SMALL, [FIRST, SECOND], PAGE, asked=1, available=16 * MIB) == (1,)


@pytest.mark.parametrize(
    ("asked", "available", "kind", "code"),
    [
        (0, 60 * MIB, ConfigError, "FOOTPRINT_ARGUMENT"),
        (3, 60 * MIB, ConfigError, "FOOTPRINT_ARGUMENT"),
        (2, 20 * MIB - 1, CapacityError, "MEMORY_EXHAUSTED"),
        (None, 30 * MIB - 1, CapacityError, "MEMORY_EXHAUSTED"),
    ],
)
def test_layers_that_cannot_be_measured(asked: int | None, available: int, kind: type[WeaveError], code: str) -> None:
    with pytest.raises(kind) as refused:
        choose_layers(SMALL, [], PAGE, asked=asked, available=available)
    assert refused.value.code == code


def test_available_memory_is_less_than_the_machine_has() -> None:
    with open("/proc/meminfo", encoding="ascii") as lines:
        total = int(next(lines).split()[1]) * 1024
    assert 0 < available_bytes() < total
