"""The part ``live``: gaps between tokens while adapters are loaded and unloaded, beside gaps while none are.

One npu-weave engine of the wide model, whose steps mostly read and compute experts as on a device, answers streams
without a pause. In every other window adapters are loaded from files and unloaded again, one after the other.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from tqdm import tqdm

from weave_bench.results import Part, Row, Spread, Table, spread
from weave_bench.serving.models import Adapter, make_wide
from weave_bench.serving.systems import Engine, Spec, engines
from weave_bench.serving.workload import Prompts
from weave_lab.artifacts import locate

STREAMS = (1, 8)
WINDOW = 8.0
"""Seconds with loads, and as many without."""
PAIRS, QUICK_PAIRS = 15, 3
POOLED = 3
"""Windows of either kind whose gaps make one percentile: in one alone, a hundredth of them is three or four gaps."""
SERVED = 2
"""Adapters that answer; the others come and go."""
_KV_BYTES = 512 << 20
_PROMPT, _TOKENS = 64, 512

COLUMNS = {
    "p50": "ms between two tokens of a stream, without loads",
    "p50 with loads": "ms",
    "p50 ratio": "with over without",
    "p99": "ms, without loads",
    "p99 with loads": "ms",
    "p99 ratio": "with over without; the aim is at most 1.10",
    "loads": "adapters a window that were loaded and unloaded",
    "load": "ms from the request to load an adapter to its answer",
}
_SHOWS = (
    "Files come from the system's page cache and nothing from the host cache, so every load opens, checks, hashes, "
    "packs and copies its experts. Processes beside the engine open, check and hash, a thread of it packs and copies, "
    "all with the lowest priority. On a machine with few cores they share these with the steps, and caches and memory "
    "in any case. On a device steps run elsewhere, and loads share the path to its memory instead."
)


def measure(*, quick: bool) -> Part:
    """Start one server, measure, stop it."""
    begun = time.monotonic()
    pairs, threads = (QUICK_PAIRS if quick else PAIRS), max(1, len(os.sched_getaffinity(0)) - 1)
    domains = sorted(path.name for path in (locate() / "adapters").iterdir())
    with tempfile.TemporaryDirectory(prefix="npu-weave-live-") as directory:
        scratch = Path(directory)
        base, adapters = make_wide(domains, scratch)
        nbytes = sum(file.stat().st_size for file in adapters[-1].path.glob("*.safetensors"))
        spec = Spec(
            "npu-weave", base, adapters[:SERVED], threads, _KV_BYTES, scratch,
            ["--host-cache", "0", "--max-loras", str(len(adapters))],
        )  # fmt: skip
        with engines([spec], scratch / "logs", Console()) as found:
            rows = [_row(found["npu-weave"], adapters, streams, pairs) for streams in STREAMS]
    settings = {
        "model": "wide, random weights",
        "an adapter": f"{nbytes / 2**20:.0f} MiB",
        "threads of the engine": threads,
        "windows": f"{WINDOW:g} s, {pairs} with loads and {pairs} without, in turn; a repeat is {POOLED} of either",
    }
    table = Table("live", "Gaps between tokens while adapters come and go", COLUMNS, rows, _SHOWS)
    return Part("live", time.monotonic() - begun, quick, settings, [table])


def _row(engine: Engine, adapters: Sequence[Adapter], streams: int, pairs: int) -> Row:
    windows = asyncio.run(_windows(engine, adapters, streams, pairs))
    calm, busy = windows[0::2], windows[1::2]
    values: dict[str, Spread | float | None] = {}
    for name, quantile in (("p50", 50), ("p99", 99)):
        without, with_loads = _percentiles(calm, quantile), _percentiles(busy, quantile)
        values[name], values[f"{name} with loads"] = spread(without), spread(with_loads)
        values[f"{name} ratio"] = spread([one / other for one, other in zip(with_loads, without, strict=True)])
    values["loads"] = spread([float(len(each.loads)) for each in busy])
    values["load"] = spread([1e3 * taken for each in busy for taken in each.loads])
    return Row({"streams": streams}, values)


def _percentiles(windows: Sequence[_Window], quantile: int) -> list[float]:
    """Of the gaps of each `POOLED` windows, in milliseconds."""
    pooled = [windows[first : first + POOLED] for first in range(0, len(windows), POOLED)]
    return [float(np.percentile([gap for each in some for gap in each.gaps], quantile)) * 1e3 for some in pooled]


class _Window:
    """Seconds between tokens that arrived in it, and of the loads that ended in it."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.loads: list[float] = []


async def _windows(engine: Engine, adapters: Sequence[Adapter], streams: int, pairs: int) -> list[_Window]:
    """Windows without and with loads, in turn; one before them warms up."""
    current = [_Window()]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=engine.url, timeout=300, limits=limits) as client:
        answering = [asyncio.create_task(_stream(client, adapters, number, current)) for number in range(streams)]
        try:
            await asyncio.sleep(WINDOW / 2)
            for number in tqdm(range(2 * pairs), desc=f"{streams} streams"):
                current.append(_Window())
                ends = time.monotonic() + WINDOW
                if number % 2:
                    await _come_and_go(client, adapters[SERVED:], ends, current[-1])
                await asyncio.sleep(max(0.0, ends - time.monotonic()))
        finally:
            for task in answering:
                task.cancel()
            await asyncio.gather(*answering, return_exceptions=True)
    return current[1:]


async def _stream(client: httpx.AsyncClient, adapters: Sequence[Adapter], number: int, current: list[_Window]) -> None:
    """Ask the served adapters again and again, and note when tokens come."""
    texts, adapter, turn = Prompts(), adapters[number % SERVED], 0
    while True:
        turn += 1
        prompt = texts.text(adapter.domain, _PROMPT, 1000 * number + turn)
        body = {"model": adapter.name, "prompt": prompt, "max_tokens": _TOKENS, "ignore_eos": True, "stream": True}
        last = 0.0
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    now = time.monotonic()
                    if last:
                        current[-1].gaps.append(now - last)
                    last = now


async def _come_and_go(client: httpx.AsyncClient, adapters: Sequence[Adapter], ends: float, window: _Window) -> None:
    turn = 0
    while time.monotonic() < ends:
        adapter = adapters[turn % len(adapters)]
        turn += 1
        begun = time.monotonic()
        body = {"lora_name": adapter.name, "lora_path": str(adapter.path)}
        (await client.post("/v1/load_lora_adapter", json=body)).raise_for_status()
        window.loads.append(time.monotonic() - begun)
        (await client.post("/v1/unload_lora_adapter", json={"lora_name": adapter.name})).raise_for_status()
