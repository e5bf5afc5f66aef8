"""``python -m weave_bench.load_speed``: how fast adapters come from disk and from the host's memory into device rows.

Beside every figure stands, measured in the same run and in turn with it, what the machine needs for the bytes alone: to
read the files and copy them once (cold), or to copy them once (warm). A cold load takes memory for what it reads, which
a virtual machine may have to ask its host for; so the bytes alone are read both into fresh memory and into memory that
was there before. Files are dropped from the page cache before they are read. Geometry of an expert: that of
DeepSeek-V2-Lite, 16.5 MiB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from npu_weave.adapters.fresh_memory import fresh_tensor
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.packed import PackedAdapter
from npu_weave.memory import HostDriver
from npu_weave.residency.load_reader import AdapterReader
from weave_bench.adapter_files import geometry_of, write_adapter
from weave_bench.plain_layer import Geometry, PlainLayer, close, plain_bank

COLD = Geometry(layers=12, experts=64, hidden=2048, width=1408)
WARM = Geometry(layers=4, experts=64, hidden=2048, width=1408)  # twenty such adapters fit into memory twice
EXPERTS_A_LAYER = 5
BASE_EXPERTS_HERE = EXPERTS_A_LAYER  # base experts take memory and no part: as few as there can be


class Figure(NamedTuple):
    """Seconds of repetitions, ours and those of the bytes alone."""

    title: str
    nbytes: int
    ours: list[float]
    bare: list[float]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m weave_bench.load_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 2, 5, 10, 20], help="adapters loaded together")
    parser.add_argument("--directory", type=Path, help="where adapters are written for the run (default: temporary)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker's loader, which must leave the cores to the steps
    with tempfile.TemporaryDirectory(prefix="npu-weave-load-", dir=arguments.directory) as scratch:
        figures = measure(Path(scratch), arguments.repeat, arguments.adapters)
    table = Table(title="loading, host driver, one thread; median (lowest ... highest)")
    for column in ("", "MiB", "npu-weave GB/s", "bytes alone GB/s", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    for figure in figures:
        table.add_row(figure.title, f"{figure.nbytes / 2**20:.0f}", *_speeds(figure))
    Console(width=120).print(table)
    for line in page_costs(arguments.repeat):
        print(line)


def _speeds(figure: Figure) -> tuple[str, str, str]:
    def text(seconds: Sequence[float]) -> str:
        speeds = sorted(figure.nbytes / each / 1e9 for each in seconds)
        return f"{statistics.median(speeds):.2f} ({speeds[0]:.2f} ... {speeds[-1]:.2f})"

    ratios = sorted(bare / ours for ours, bare in zip(figure.ours, figure.bare, strict=True))
    ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} ... {ratios[-1]:.2f})"
    return text(figure.ours), text(figure.bare), ratio


def measure(scratch: Path, repeat: int, counts: Sequence[int]) -> list[Figure]:
    """A cold load of one adapter, then warm loads of several."""
    figures = _cold(scratch / "cold", repeat)
    paths = [write_adapter(scratch / f"warm{number}", WARM, _tuned(WARM), seed=number) for number in range(max(counts))]
    os.sync()  # nothing is to be written while memory is measured
    packed = [_packed(path, WARM) for path in paths]
    with _bank(WARM, max(counts)) as bank:
        sink = _touched(sum(adapter.nbytes for adapter in packed))
        figures += [_warm(bank, packed[:count], sink, repeat) for count in counts]
    return figures


def _tuned(geometry: Geometry) -> dict[int, list[int]]:
    return {layer: list(range(EXPERTS_A_LAYER)) for layer in range(geometry.layers)}


@contextmanager
def _bank(geometry: Geometry, adapters: int) -> Iterator[ExpertBank]:
    """Room for `adapters`, its pages taken before anything is timed, as an engine's are."""
    few = Geometry(geometry.layers, BASE_EXPERTS_HERE, geometry.hidden, geometry.width)
    rows = adapters * EXPERTS_A_LAYER
    bank = plain_bank(HostDriver(), few, slots=adapters, rows=rows)
    bank.pool.preallocate(bank.pool.in_use + sum(layer.pages_bound(rows) for layer in bank.layers.values()))
    try:
        yield bank
    finally:
        close(bank)


def _touched(nbytes: int) -> torch.Tensor:
    return torch.empty(nbytes, dtype=torch.uint8).fill_(1)


def _cold(path: Path, repeat: int) -> list[Figure]:
    files = sorted(write_adapter(path, COLD, _tuned(COLD), seed=0).glob("*.safetensors"))
    nbytes = sum(file.stat().st_size for file in files)
    sink, buffer = _touched(nbytes), _touched(nbytes)

    def bare(into: torch.Tensor) -> None:
        _read(files, into)
        sink.copy_(into)

    ways = {
        "from disk (bytes alone: fresh memory)": lambda: bare(fresh_tensor((nbytes,), torch.uint8)),
        "from disk (bytes alone: used memory)": lambda: bare(buffer),
    }
    figures = [Figure(title, nbytes, [], []) for title in ways]
    with _bank(COLD, 1) as bank:
        for _ in range(repeat):
            for figure, way in zip(figures, ways.values(), strict=True):
                _forget(files)
                figure.bare.append(_seconds(way))
                _forget(files)
                figure.ours.append(_seconds(lambda: bank.install(1, _packed(path, COLD))))
                bank.remove(1)
    return figures


def _warm(bank: ExpertBank, packed: Sequence[PackedAdapter], sink: torch.Tensor, repeat: int) -> Figure:
    weights = [weight for adapter in packed for layer in adapter.layers.values() for weight in layer.weights.values()]
    nbytes = sum(weight.nbytes for weight in weights)

    def bare() -> None:
        at = 0
        for weight in weights:
            sink[at : at + weight.nbytes].copy_(weight.reshape(-1).view(torch.uint8))
            at += weight.nbytes

    def ours() -> None:
        for slot, adapter in enumerate(packed, 1):
            bank.install(slot, adapter)

    figure = Figure(f"from host memory, {len(packed)} adapters", nbytes, [], [])
    for _ in range(repeat):
        figure.bare.append(_seconds(bare))
        figure.ours.append(_seconds(ours))
        for slot in range(1, len(packed) + 1):
            bank.remove(slot)
    return figure


def page_costs(repeat: int) -> list[str]:
    """What mapping and unmapping cost, in microseconds a page of the host driver."""
    driver = HostDriver()
    count = 256
    base = driver.reserve(count * driver.granularity)
    pages = [driver.create_page() for _ in range(count)]
    places = [(base + position * driver.granularity, page) for position, page in enumerate(pages)]

    def map_all() -> None:
        for address, page in places:
            driver.map(address, page)

    def unmap_all() -> None:
        for address, _ in places:
            driver.unmap(address)

    mapping, unmapping = [], []
    for _ in range(repeat):
        mapping.append(_seconds(map_all))
        driver.fence()
        unmapping.append(_seconds(unmap_all))
    return [
        f"{name}: {statistics.median(times) / count * 1e6:.1f} us a page of {driver.granularity >> 20} MiB "
        f"({min(times) / count * 1e6:.1f} ... {max(times) / count * 1e6:.1f})"
        for name, times in (("map", mapping), ("unmap", unmapping))
    ]


def _packed(path: Path, geometry: Geometry) -> PackedAdapter:
    """As the worker of an engine reads an adapter: open, check, read, digest, pack."""
    ports = {index: PlainLayer(index, geometry) for index in range(geometry.layers)}
    reader = AdapterReader(geometry_of(geometry), ports)
    return reader.read(path.name, str(path), "", None, lambda: False)


def _read(files: Sequence[Path], buffer: torch.Tensor) -> None:
    view, at = buffer.numpy().data, 0
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(view[at:]):
                at += count


def _forget(files: Sequence[Path]) -> None:
    """Drops the files from the page cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
