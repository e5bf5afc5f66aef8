"""The part ``live``: gaps between tokens while adapters are loaded and unloaded, beside gaps while none are.

One npu-weave engine of the wide model, whose steps mostly read and compute experts as on a device, answers streams
without a pause. In every other window adapters are loaded from files and unloaded again, one after the other.
"""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from tqdm import tqdm

from weave_bench.host import Host, least_disturbed
from weave_bench.results import Part, Row, Spread, Table, spread
from weave_bench.serving.events import EventReader
from weave_bench.serving.models import Adapter, make_wide
from weave_bench.serving.systems import Engine, Spec, engines
from weave_bench.serving.workload import Prompts
from weave_lab.artifacts import locate

STREAMS = {1: 6, 8: 18}
"""Pairs of windows by number of streams: a step is all that streams beside each other show of one, and with more of
them it takes longer. So each has about as many steps."""
WINDOW = 8.0
"""Seconds with loads, and as many without."""
QUICK_PAIRS = 3
SPARE_PAIRS = 4
"""More pairs at most, where the host took cores away: a pause of a tenth of a second is a p99 of its own."""
DISTURBED = 0.01
"""Share of the cores' time that a host may take from a pair."""
_RESAMPLED = 400
"""Times that as many pairs are drawn at random from those that count, to see how far a percentile may be trusted."""
SERVED = 2
"""Adapters that answer; the others come and go."""
_KV_BYTES = 512 << 20
_PROMPT, _TOKENS = 64, 512

COLUMNS = {
    "p50": "ms between two tokens of a stream, without loads, over all windows; in brackets the quarters of what pairs "
    "of windows drawn from these at random would have shown",
    "p50 with loads": "ms",
    "p50 ratio": "with over without",
    "p99": "ms, without loads",
    "p99 with loads": "ms",
    "p99 ratio": "with over without; the aim is at most 1.10",
    "pairs": "of windows that count, one without and one with loads",
    "loads": "adapters a window that were loaded and unloaded",
    "load": "ms from the request to load an adapter to its answer",
    "stolen": "share of the cores' time that the host of this machine gave to others in the windows that count",
    "left out": "pairs of windows that do not count, because it took more in them",
}
_SHOWS = (
    "Files come from the system's page cache and nothing from the host cache, so every load opens, checks, hashes, "
    "packs and copies its experts. Processes beside the engine open, check and hash, a thread of it packs and copies, "
    "all with the lowest priority, and while steps run they rest longer than they work. On a machine with few cores "
    "they share these with the steps, and caches and memory in any case. On a device steps run elsewhere, and loads "
    "share the path to its memory instead. A virtual machine's host may take cores away for a tenth of a second and "
    "more, which a p99 shows as its own: pairs "
    "of windows were added while that happened, and of all those count of which it took least, whatever they showed."
)


def measure(*, quick: bool) -> Part:
    """Start one server, measure, stop it."""
    begun, threads = time.monotonic(), max(1, len(os.sched_getaffinity(0)) - 1)
    domains = sorted(path.name for path in (locate() / "adapters").iterdir())
    with tempfile.TemporaryDirectory(prefix="npu-weave-live-") as directory:
        scratch = Path(directory)
        base, adapters = make_wide(domains, scratch)
        nbytes = sum(file.stat().st_size for file in adapters[-1].path.glob("*.safetensors"))
        spec = Spec(
            "npu-weave", base, adapters[:SERVED], threads, _KV_BYTES, scratch,
            extra=["--host-cache", "0", "--max-loras", str(len(adapters))],
        )  # fmt: skip
        with engines([spec], scratch / "logs", Console()) as found:
            rows = [
                _row(found["npu-weave"], adapters, streams, QUICK_PAIRS if quick else pairs)
                for streams, pairs in STREAMS.items()
            ]
    settings = {
        "model": "wide, random weights",
        "an adapter": f"{nbytes / 2**20:.0f} MiB",
        "threads of the engine": threads,
        "windows": f"of {WINDOW:g} s, with loads and without in turn",
        "more pairs at most": f"{SPARE_PAIRS}, while the host took over {DISTURBED:.0%} of the cores from one",
    }
    table = Table("live", "Gaps between tokens while adapters come and go", COLUMNS, rows, _SHOWS)
    return Part("live", time.monotonic() - begun, quick, settings, [table])


def _row(engine: Engine, adapters: Sequence[Adapter], streams: int, pairs: int) -> Row:
    taken = asyncio.run(_windows(engine, adapters, streams, pairs))
    counted = least_disturbed(taken, pairs, _stolen)
    calm, busy = zip(*counted, strict=True)
    values: dict[str, Spread | float | None] = {}
    for name, quantile in (("p50", 50), ("p99", 99)):
        without, with_loads, ratio = estimate(
            [(pair[0].gaps, pair[1].gaps) for pair in counted], functools.partial(_milliseconds, quantile)
        )
        values |= {name: without, f"{name} with loads": with_loads, f"{name} ratio": ratio}
    values["loads"] = spread([float(len(each.loads)) for each in busy])
    values["load"] = spread([1e3 * load for each in busy for load in each.loads])
    values["pairs"] = float(pairs)
    values["stolen"] = spread([window.stolen for window in (*calm, *busy)])
    values["left out"] = float(len(taken) - pairs)
    return Row({"streams": streams}, values)


def estimate(pairs: Sequence[tuple[_Gaps, _Gaps]], figure: Callable[[Sequence[_Gaps]], float]) -> tuple[Spread, ...]:
    """A figure of all first, of all second of some pairs, and second over first.

    In brackets the quarters of what as many pairs show that are drawn from these at random (bootstrap): a hundredth of
    one window is three or four gaps, too few for a percentile of its own.
    """
    random = np.random.default_rng(0)
    draws = [range(len(pairs)), *(random.integers(len(pairs), size=len(pairs)) for _ in range(_RESAMPLED))]
    found = [[figure([pairs[index][side] for index in draw]) for draw in draws] for side in (0, 1)]
    found.append([one / other for one, other in zip(found[1], found[0], strict=True)])
    around = [spread(drawn) for _, *drawn in found]
    return tuple(Spread(each[0], drawn.low, drawn.high, len(pairs)) for each, drawn in zip(found, around, strict=True))


def _milliseconds(quantile: int, windows: Sequence[_Gaps]) -> float:
    return float(np.percentile(np.concatenate(windows), quantile)) * 1e3


class _Window:
    """Seconds between tokens that arrived in it, and of the loads that ended in it; what the host took of it."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.loads: list[float] = []
        self.stolen = 0.0


_Gaps = Sequence[float]
"""Of one window, in seconds."""
_Pair = tuple["_Window", "_Window"]
"""Without loads, and with."""


def _stolen(pair: _Pair) -> float:
    return max(window.stolen for window in pair)


async def _windows(engine: Engine, adapters: Sequence[Adapter], streams: int, pairs: int) -> list[_Pair]:
    """Windows without and with loads, in turn, until `pairs` are undisturbed or the spare ones are used up, too.

    One before them warms up.
    """
    current, taken = [_Window()], list[_Pair]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=engine.url, timeout=300, limits=limits) as client:
        answering = [asyncio.create_task(_stream(client, adapters, number, current)) for number in range(streams)]
        try:
            await asyncio.sleep(WINDOW / 2)
            for _ in tqdm(range(pairs + SPARE_PAIRS), desc=f"{streams} streams, pairs"):
                if sum(_stolen(pair) <= DISTURBED for pair in taken) == pairs:
                    break
                taken.append((await _window(client, (), current), await _window(client, adapters[SERVED:], current)))
        finally:
            for task in answering:
                task.cancel()
            await asyncio.gather(*answering, return_exceptions=True)
    return taken


async def _window(client: httpx.AsyncClient, changing: Sequence[Adapter], current: list[_Window]) -> _Window:
    """Seconds in which these adapters come and go, if there are any; the window is the current one meanwhile."""
    host, ends = Host(), time.monotonic() + WINDOW
    window = _Window()
    current.append(window)
    if changing:
        await _come_and_go(client, changing, ends, window)
    await asyncio.sleep(max(0.0, ends - time.monotonic()))
    window.stolen = host.stolen()
    return window


async def _stream(client: httpx.AsyncClient, adapters: Sequence[Adapter], number: int, current: list[_Window]) -> None:
    """Ask the served adapters again and again, and note when tokens come."""
    texts, adapter, turn = Prompts(), adapters[number % SERVED], 0
    while True:
        turn += 1
        prompt = texts.text(adapter.domain, _PROMPT, 1000 * number + turn)
        body = {"model": adapter.name, "prompt": prompt, "max_tokens": _TOKENS, "ignore_eos": True, "stream": True}
        last, reader = 0.0, EventReader()
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for data in response.aiter_bytes():
                for _ in reader.read(data):
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
