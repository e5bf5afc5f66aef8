"""Loads, unloads, re-points, calls that must be refused and processes that are killed, one every two seconds."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from weave_bench.serve_soak.history import GONE, History
from weave_bench.serve_soak.traffic import Found
from weave_bench.serve_soak.truth import Name

EVERY = 2.0
FEWEST = 0.5
"""Share of the names that stays in service."""
READER = "npu_weave.residency.background_process"
"""In the command line of processes that read adapters."""
LOADING, OLD = 0.1, 20.0
"""Seconds after a load began within which a reader is killed, and how old it must be: no load is to lose two."""


async def make_changes(
    client: httpx.AsyncClient, pid: int, names: Sequence[Name], histories: Mapping[str, History], broken: Path,
    found: Found, *, until: float, seed: int,
) -> None:  # fmt: skip
    """Change something every `EVERY` seconds until the monotonic instant `until`; at last all names are in service.

    Args:
        pid: the server's.
        broken: an empty directory, for what is no valid adapter.
    """
    draw = random.Random(seed)
    refusals = _refusals(names, broken)
    while time.monotonic() < until:
        await asyncio.sleep(EVERY)
        served = [name for name in names if histories[name.name].now is not GONE]
        absent = [name for name in names if name not in served]
        kind = draw.choice(("re-point", "re-point", "re-point, killed", "unload", "load", "refusal"))
        if kind == "refusal":
            await _expect(client, *draw.choice(refusals), found)
        elif kind == "load" and absent:
            await _load(client, draw.choice(absent), histories, found)
        elif kind == "unload" and len(served) > FEWEST * len(names):
            await _unload(client, draw.choice(served), histories, found)
        else:
            killing = asyncio.create_task(_kill_reader(pid, draw, found)) if kind == "re-point, killed" else None
            await _load(client, draw.choice(served), histories, found)
            if killing is not None:
                await killing
    for name in names:
        if histories[name.name].now is GONE:
            await _load(client, name, histories, found)


def _refusals(names: Sequence[Name], broken: Path) -> list[tuple[str, Mapping[str, object], int]]:
    """Calls, their bodies and the status that each must be refused with. The last re-points a name to half a file."""
    whole, half = names[0].contents[0].path, broken / "half"
    shutil.copytree(whole, half)
    (shard,) = half.glob("*.safetensors")
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    return [
        ("load", {"lora_name": "broken", "lora_path": str(broken)}, 400),
        ("load", {"lora_name": "outside", "lora_path": "/etc"}, 403),
        ("load", {"lora_name": "nowhere", "lora_path": str(broken / "nowhere")}, 404),
        ("load", {"lora_name": "../up", "lora_path": str(whole)}, 400),
        ("unload", {"lora_name": "nobody"}, 404),
        ("load", {"lora_name": names[0].name, "lora_path": str(half), "load_inplace": True}, 400),
    ]


async def _kill_reader(pid: int, draw: random.Random, found: Found) -> None:
    """Kill one of the processes that read adapters, a moment after a load began, if one is old: nobody may notice."""
    await asyncio.sleep(draw.uniform(0, LOADING))
    readers = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that was killed before
            if READER in process.cmdline() and time.time() - process.create_time() > OLD:
                readers.append(process)
    if readers:
        draw.choice(readers).kill()
        found.note("reader killed")


async def _load(client: httpx.AsyncClient, name: Name, histories: Mapping[str, History], found: Found) -> None:
    """Bring a name into service, or let it stand for its other content."""
    history = histories[name.name]
    before = history.now
    content = next(each for each in name.contents if each.name != before)
    history.begins(content.name, time.monotonic())
    body = {"lora_name": name.name, "lora_path": str(content.path), "load_inplace": before is not GONE}
    response = await client.post("/v1/load_lora_adapter", json=body)
    kind = "loaded" if before is GONE else "re-pointed"
    if response.status_code == 200:
        history.settled(time.monotonic())
        found.note(kind)
    else:
        history.refused()
        found.note(f"not {kind}: {response.status_code}", failure=response.text[:500])


async def _unload(client: httpx.AsyncClient, name: Name, histories: Mapping[str, History], found: Found) -> None:
    history = histories[name.name]
    history.begins(GONE, time.monotonic())
    response = await client.post("/v1/unload_lora_adapter", json={"lora_name": name.name})
    if response.status_code == 200:
        history.settled(time.monotonic())
        found.note("unloaded")
    else:
        history.refused()
        found.note(f"not unloaded: {response.status_code}", failure=response.text[:500])


async def _expect(client: httpx.AsyncClient, call: str, body: Mapping[str, object], status: int, found: Found) -> None:
    response = await client.post(f"/v1/{call}_lora_adapter", json=body)
    if response.status_code == status:
        found.note(f"refused as it must be, {status}")
    else:
        found.note("not refused as it must be", failure=f"{body}: {response.status_code}, {response.text[:300]}")
