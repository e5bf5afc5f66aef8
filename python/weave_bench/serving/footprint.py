"""What engines take: memory, KV cache, time to start; and how long an adapter takes to load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weave_bench.results import Row, Spread, Table, spread
from weave_bench.serving.models import Adapter
from weave_bench.serving.systems import Engine, idle_cpu

_MIB = 1 << 20


@dataclass(frozen=True)
class Loads:
    """Milliseconds from the request to load an adapter to its answer.

    Attributes:
        disk: content the server has not seen.
        host: the same again, after it was unloaded.
    """

    disk: Spread
    host: Spread


def measure_loads(engine: Engine, adapters: Sequence[Adapter]) -> Loads:
    """Load and unload each of `adapters` twice over HTTP, one after the other; none of them is in service before."""
    disk: list[float] = []
    host: list[float] = []
    for adapter in adapters:
        for found in (disk, host):
            found.append(engine.load(adapter.name, adapter.path) * 1e3)
            engine.unload(adapter.name)
    return Loads(spread(disk), spread(host))


def footprint_row(system: str, engines: Sequence[Engine], loads: Loads | None = None) -> Row:
    """One system of one engine or several, which are summed up; they have served requests before."""
    served = [len(engine.spec.adapters) if engine.spec.adapters is not None else None for engine in engines]
    starts = [engine.start_seconds for engine in engines if engine.start_seconds is not None]
    return Row(
        {"system": system, "engines": len(engines), "threads": sum(engine.spec.threads for engine in engines)},
        {
            "adapters": float(sum(count for count in served if count is not None)),
            "memory": sum(engine.memory_bytes() for engine in engines) / _MIB,
            "KV bytes": sum(engine.spec.kv_bytes for engine in engines) / _MIB,
            "KV tokens": float(sum(engine.kv_tokens for engine in engines)),
            "start": sum(starts) if len(starts) == len(engines) else None,
            "idle CPU": idle_cpu(engines),
            "load, disk": loads.disk if loads else None,
            "load, host": loads.host if loads else None,
        },
    )


def footprint_table(rows: Sequence[Row]) -> Table:
    """All systems that ran."""
    columns = {
        "adapters": "in service; a merged engine serves one model and no adapter",
        "memory": "MiB of physical memory of all processes, shared pages counted once, after serving",
        "KV bytes": "MiB set aside for the KV cache",
        "KV tokens": "that fit into it: blocks times block size, as the server says",
        "start": "seconds until healthy; nothing where engines were started beside each other",
        "idle CPU": "processor seconds a second while nobody asks",
        "load, disk": "ms to load an adapter over HTTP, content not seen before",
        "load, host": "ms to load it again after it was unloaded",
    }
    return Table("footprint", "What the systems take", columns, list(rows), _SHOWS)


_SHOWS = (
    "Nearly all memory here is Python, torch and vLLM in three processes an engine (and torch in two more that read "
    "adapters for npu-weave), and the touched part of the KV "
    "cache: the small model weighs 7 MiB and an adapter 1 MiB. So the table shows that an engine's own processes are "
    "paid once instead of once a model, and that adapters cost next to nothing; what experts take, part `memory` "
    "measures at full size. KV tokens are bought with the same bytes on both sides: on a device the merged "
    "checkpoints' weights come out of them first. Start is mostly imports. A load's time here is the path over HTTP, "
    "checks and the steps of the transaction, not copying."
)
