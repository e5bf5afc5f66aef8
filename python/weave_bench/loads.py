"""The part ``loads``: how fast adapters come from disk and from the host's memory into device rows.

Beside every figure stands, measured in turn with it, what the machine needs for the bytes alone: to read the files and
copy them once, or to copy them once. A load from disk takes memory for what it reads, which a virtual machine may have
to ask its host for; so the bytes alone are read both into fresh memory and into memory that was there before. Files are
dropped from the page cache before they are read. Geometry of an expert: that of DeepSeek-V2-Lite, 16.5 MiB.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from npu_weave.adapters.fresh_memory import fresh_tensor
from npu_weave.experts.bank import ExpertBank
from npu_weave.experts.packed import PackedAdapter
from npu_weave.memory import HostDriver
from npu_weave.residency.expert_reads import LocalSource
from npu_weave.residency.load_reader import AdapterReader
from weave_bench.adapter_files import geometry_of, write_adapter
from weave_bench.plain_layer import Geometry, PlainLayer, close, plain_bank
from weave_bench.results import Part, Row, Table, ratios, spread

COLD, QUICK_COLD = (Geometry(layers=layers, experts=64, hidden=2048, width=1408) for layers in (12, 4))
WARM = Geometry(layers=2, experts=64, hidden=2048, width=1408)  # twenty such adapters, three times: 10 GiB
EXPERTS_A_LAYER = 5
BASE_EXPERTS_HERE = EXPERTS_A_LAYER  # base experts take memory and no part: as few as there can be
ADAPTERS, QUICK_ADAPTERS = (1, 5, 10, 20), (1, 5)
REPEATS, QUICK_REPEATS = 11, 3


class Figure(NamedTuple):
    """Seconds of repetitions, ours and those of the bytes alone."""

    title: str
    nbytes: int
    ours: list[float]
    bare: list[float]


def measure(*, quick: bool) -> Part:
    """Measure in a process of its own, whose memory is gone when the next part begins."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure_here, quick).result()


def measure_here(quick: bool) -> Part:
    """As `measure`, in this process."""
    begun = time.monotonic()
    counts, repeats, cold = (QUICK_ADAPTERS, QUICK_REPEATS, QUICK_COLD) if quick else (ADAPTERS, REPEATS, COLD)
    torch.set_num_threads(1)  # as in a worker's loader, which must leave the cores to the steps
    with tempfile.TemporaryDirectory(prefix="npu-weave-load-") as scratch:
        tables = [_loads(measure_loads(Path(scratch), repeats, counts, cold)), _pages(repeats)]
    settings = {
        "driver": "the host's",
        "threads that copy": 1,
        "experts of an adapter": f"{EXPERTS_A_LAYER} a layer of 16.5 MiB, bfloat16",
        "layers": f"{cold.layers} from disk, {WARM.layers} from the host's memory",
        "repeats": repeats,
    }
    return Part("loads", time.monotonic() - begun, quick, settings, tables)


def _loads(figures: Sequence[Figure]) -> Table:
    columns = {
        "MiB": "loaded",
        "npu-weave": "GB/s",
        "bytes alone": "GB/s",
        "ratio": "npu-weave's speed over that of the bytes alone, in pairs",
    }
    rows = [
        Row(
            {"what": figure.title},
            {
                "MiB": figure.nbytes / 2**20,
                "npu-weave": spread([figure.nbytes / seconds / 1e9 for seconds in figure.ours]),
                "bytes alone": spread([figure.nbytes / seconds / 1e9 for seconds in figure.bare]),
                "ratio": ratios(figure.bare, figure.ours),
            },
        )
        for figure in figures
    ]
    return Table("loads", "Adapters into device rows, beside the bytes alone", columns, rows, _SHOWS)


def _pages(repeats: int) -> Table:
    rows = [Row({"call": name}, {"a page": spread(times)}) for name, times in page_costs(repeats).items()]
    shows = "Beside copying a page these calls are small; they are made once a load, not in a step."
    return Table("pages", "Mapping and unmapping a page of 2 MiB", {"a page": "us"}, rows, shows)


_SHOWS = (
    "From the host's memory one compiled loop writes rows and reads each back while it is in the first-level cache. "
    "From disk, reading, hashing (blake3) and packing run beside each other; rows are written when the content is "
    "known, as experts that are on the device already are not written again. A load keeps what it has packed, so it "
    "needs new memory, which a virtual machine gets from its host page by page: beside a buffer that was there before, "
    "that is what it is slower by. The copy into an NPU's or a GPU's memory is not measured here."
)


def measure_loads(scratch: Path, repeat: int, counts: Sequence[int], cold: Geometry) -> list[Figure]:
    """A cold load of one adapter of geometry `cold`, then warm loads of several."""
    figures = _cold(scratch / "cold", cold, repeat)
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


def _cold(path: Path, geometry: Geometry, repeat: int) -> list[Figure]:
    files = sorted(write_adapter(path, geometry, _tuned(geometry), seed=0).glob("*.safetensors"))
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
    with _bank(geometry, 1) as bank:
        for _ in range(repeat):
            for figure, way in zip(figures, ways.values(), strict=True):
                _forget(files)
                figure.bare.append(_seconds(way))
                _forget(files)
                figure.ours.append(_seconds(lambda: bank.install(1, _packed(path, geometry))))
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

    figure = Figure(f"from host memory, {len(packed)} adapter{'s' if len(packed) > 1 else ''}", nbytes, [], [])
    for _ in range(repeat):
        figure.bare.append(_seconds(bare))
        figure.ours.append(_seconds(ours))
        for slot in range(1, len(packed) + 1):
            bank.remove(slot)
    return figure


def page_costs(repeat: int) -> dict[str, list[float]]:
    """Microseconds a page of the host driver that mapping and unmapping cost, one a repetition."""
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

    found: dict[str, list[float]] = {"map": [], "unmap": []}
    for _ in range(repeat):
        found["map"].append(_seconds(map_all) / count * 1e6)
        driver.fence()
        found["unmap"].append(_seconds(unmap_all) / count * 1e6)
    return found


def _packed(path: Path, geometry: Geometry) -> PackedAdapter:
    """As for the worker of an engine, but in this process: open, check, read, digest, pack."""
    ports = {index: PlainLayer(index, geometry) for index in range(geometry.layers)}
    reader = AdapterReader(LocalSource(geometry_of(geometry)), ports)
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
