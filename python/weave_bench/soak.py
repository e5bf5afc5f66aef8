"""``python -m weave_bench.soak``: load and unload adapters many times over, and see whether anything stays behind.

Pages and reservations are counted by the driver, file descriptors, mappings and memory by the operating system, always
when no adapter is loaded. ``--leak`` keeps something on purpose: the run must then fail, or it shows nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.packed import PackedAdapter
from npu_weave.memory import Driver, HostDriver
from weave_bench.plain_layer import Geometry, close, plain_bank, random_adapter
from weave_bench.simulated_driver import SimulatedDriver

SLOTS = 4
ADAPTERS = 12
DRIVERS: dict[str, tuple[Callable[[], Driver], Geometry]] = {
    # rows of 3/4 and 3/8 of a page: neighbours share pages
    "host": (HostDriver, Geometry(layers=1, experts=4, hidden=512, width=768)),
    "simulated": (SimulatedDriver, Geometry(layers=2, experts=4, hidden=32, width=24)),
}
_leaked: list[object] = []
LEAKS: dict[str, Callable[[ExpertBank], object]] = {
    "page": lambda bank: bank.pool.driver.create_page(),
    "mapping": lambda bank: bank.pool.driver.reserve(bank.pool.driver.granularity),
    "file": lambda bank: os.dup(0),
    "memory": lambda bank: b"x" * (1 << 20),
}
LEAK_EVERY = 50


class Held(NamedTuple):
    """What the process holds: counts, and resident memory in MiB."""

    pages: int
    mapped_pages: int
    reservations: int
    files: int
    mappings: int
    resident: float


TOLERANCE = Held(pages=0, mapped_pages=0, reservations=0, files=0, mappings=16, resident=24.0)
"""Growth that is not a leak: the allocator's arenas come and go."""


def main() -> None:
    """Run the soak; exit status 1 when something stayed behind."""
    parser = argparse.ArgumentParser(prog="python -m weave_bench.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--driver", choices=DRIVERS, default="host")
    parser.add_argument("--cycles", type=int, default=10_000, help="loads and unloads (default: 10,000)")
    parser.add_argument("--leak", choices=LEAKS, help="keep one of these every now and then, on purpose")
    arguments = parser.parse_args()
    started = time.monotonic()
    before, after = soak(arguments.driver, arguments.cycles, arguments.leak)
    grown = leaks(before, after)
    table = Table(title=f"{arguments.cycles:,} loads and unloads, {arguments.driver} driver")
    for column in ("held, nothing loaded", "after warming up", "at the end", ""):
        table.add_column(column, justify="left" if not column or column.startswith("held") else "right")
    for field, first, last in zip(Held._fields, before, after, strict=True):
        unit = " MiB" if field == "resident" else ""
        table.add_row(field, f"{first:.5g}{unit}", f"{last:.5g}{unit}", "leaked" if field in grown else "")
    Console().print(table)
    verdict = f"leaked: {', '.join(grown)}" if grown else "nothing stays behind"
    print(f"{verdict} ({time.monotonic() - started:.0f} s)")
    sys.exit(1 if grown else 0)


def soak(driver: str, cycles: int, leak: str | None = None) -> tuple[Held, Held]:
    """Run `cycles` loads and unloads; what is held after the first tenth of them, and at the end."""
    torch.set_num_threads(1)  # rows are small: threads would wait for each other, on a busy machine for long
    make, geometry = DRIVERS[driver]
    bank = plain_bank(make(), geometry, slots=SLOTS, rows=4 * geometry.experts)
    adapters = [
        random_adapter(f"adapter {number}", geometry, _experts(number, geometry), seed=number)
        for number in range(ADAPTERS)
    ]
    draw = random.Random(0)
    try:
        _turn(bank, adapters, draw, max(1, cycles // 10), None)
        before = held(bank)
        _turn(bank, adapters, draw, cycles - cycles // 10, leak)
        after = held(bank)
    finally:
        close(bank)
    return before, after


def leaks(before: Held, after: Held) -> list[str]:
    """The kinds of things of which there are more than before, beyond `TOLERANCE`."""
    return [
        field
        for field, first, last, slack in zip(Held._fields, before, after, TOLERANCE, strict=True)
        if last - first > slack
    ]


def held(bank: ExpertBank) -> Held:
    """What the process holds now."""
    gc.collect()
    stats = bank.pool.driver.stats()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Held(
        stats.pages,
        stats.mapped_pages,
        stats.reservations,
        len(os.listdir("/proc/self/fd")),
        len(Path("/proc/self/maps").read_text().splitlines()),
        int(status["VmRSS"].split()[0]) / 1024,
    )


def _experts(number: int, geometry: Geometry) -> dict[int, list[int]]:
    draw = random.Random(number)
    ids = range(geometry.experts)
    return {layer: sorted(draw.sample(ids, draw.randint(1, 3))) for layer in range(geometry.layers)}


def _turn(bank: ExpertBank, adapters: list[PackedAdapter], draw: random.Random, cycles: int, leak: str | None) -> None:
    """Load and unload at random, `cycles` times each; the slots are empty before and after."""
    loaded: set[int] = set()
    for cycle in range(cycles):
        while len(loaded) == SLOTS or (loaded and draw.random() < 0.5):
            bank.remove(loaded.pop())
        slot = next(slot for slot in range(1, SLOTS + 1) if slot not in loaded)
        bank.install(slot, draw.choice(adapters))
        loaded.add(slot)
        if cycle % 1000 == 0 and leak is None:  # it would find a leaked page itself
            bank.check_integrity()
        if leak is not None and cycle % LEAK_EVERY == 0:
            _leaked.append(LEAKS[leak](bank))
    for slot in loaded:
        bank.remove(slot)
    if leak is None:
        bank.check_integrity()


if __name__ == "__main__":
    main()
