"""What a soak found: memory over time, and all of it as text."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from weave_bench.serve_soak.traffic import Found

EVERY = 10.0
GROWTH = 0.05
"""By how much the last quarter of the time may hold more than the second."""
INTENDED = (
    "exact", "near tie", "hung up", "not in service, said so", "loaded", "re-pointed", "unloaded", "reader killed",
    "refused as it must be, 400", "refused as it must be, 403", "refused as it must be, 404",
)  # fmt: skip


class Held(NamedTuple):
    """What all processes of the server hold at one instant."""

    memory_mib: float
    pages_mib: float
    files: int


@dataclass
class Watch:
    """What a server held, every `EVERY` seconds."""

    pid: int
    seen: list[Held] = field(default_factory=list)

    async def follow(self, until: float) -> None:
        """Look until the monotonic instant `until`."""
        while time.monotonic() < until:
            self.seen.append(self.held())
            await asyncio.sleep(EVERY)

    def held(self) -> Held:
        """Now: proportional memory, that of mapped pages (shared memory), open files."""
        parent = psutil.Process(self.pid)
        memory, shared, files = 0, 0, 0
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # one that reads adapters was killed
                memory += process.memory_full_info().pss
                shared += process.memory_info().shared
                files += process.num_fds()
        return Held(memory / 2**20, shared / 2**20, files)

    def growth(self) -> Mapping[str, tuple[float, float]]:
        """Of each quantity: medians over the second and the last quarter of the time."""
        quarter = max(1, len(self.seen) // 4)
        second, last = self.seen[quarter : 2 * quarter] or self.seen, self.seen[-quarter:]
        return {
            name: (statistics.median(getattr(each, name) for each in second),
                   statistics.median(getattr(each, name) for each in last))
            for name in Held._fields
        }  # fmt: skip


def problems(found: Found, watch: Watch) -> list[str]:
    """What should not have been; empty when all held."""
    wrong = [f"{count} x {kind}: {found.failures.get(kind, '')}" for kind, count in found.outcomes.items()
             if kind not in INTENDED]  # fmt: skip
    grown = [f"{name} grew from {early:.0f} to {late:.0f}" for name, (early, late) in watch.growth().items()
             if late > early * (1 + GROWTH)]  # fmt: skip
    return wrong + grown


def write_report(found: Found, watch: Watch, head: Mapping[str, object], path: Path) -> None:
    """As Markdown."""
    lines = ["# Soak", "", "One run of `bash scripts/soak.sh`.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in head.items()]
    lines += ["", "| what | how often |", "|---|---:|"]
    lines += [f"| {kind} | {count:,} |" for kind, count in found.outcomes.most_common()]
    lines += ["", "| held by all processes | second quarter | last quarter |", "|---|---:|---:|"]
    lines += [f"| {name} | {early:,.0f} | {late:,.0f} |" for name, (early, late) in watch.growth().items()]
    if found.gaps:
        p50, p99 = np.percentile(found.gaps, (50, 99)) * 1e3
        lines += ["", f"Between two pieces of an answer: p50 {p50:.1f} ms, p99 {p99:.1f} ms."]
    wrong = problems(found, watch)
    lines += ["", "Nothing that should not have been."] if not wrong else ["", *(f"- {each}" for each in wrong)]
    lines += ["", _MEANING]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


_MEANING = (
    "Each answer is compared with what plain vLLM says with the content merged that the adapter's name stood for while "
    "the request was sent. *exact*: token by token. *near tie*: the same up to a token where two are about as likely "
    "(log-probabilities within 0.1), which sums rounded otherwise can turn. An answer of another revision, of the base "
    "model or of nobody would be listed as such, and end the run with an error."
)
