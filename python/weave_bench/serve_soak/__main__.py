"""``python -m weave_bench.serve_soak``: soak a server, and say whether anything was wrong."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from weave_bench import machine
from weave_bench.serve_soak.changes import make_changes
from weave_bench.serve_soak.history import History
from weave_bench.serve_soak.report import Watch, problems, write_report
from weave_bench.serve_soak.traffic import Found, send_requests
from weave_bench.serve_soak.truth import Name, Truth, find_truth, make_names
from weave_lab.artifacts import locate
from weave_lab.demo.servers import BASE, ENGINE, SETTINGS, option, running

SLOTS, HOSTED = 8, 14
"""Adapters on the device and on the host at once: fewer than there are, so that they make room for each other."""


def main(
    minutes: Annotated[float, typer.Option(help="How long requests arrive.")] = 15.0,
    adapters: Annotated[int, typer.Option(help="Names, each with two contents.")] = 20,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 6.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and changes.")] = 0,
    out: Annotated[Path, typer.Option(help="The report.")] = Path("build/soak.md"),
) -> None:
    """Serve, ask, change and compare; ends with an error unless every answer was right."""
    console, models = Console(), locate()
    with tempfile.TemporaryDirectory(prefix="npu-weave-soak-") as directory:
        scratch = Path(directory)
        names = make_names(models, adapters, scratch)
        truth = find_truth(models, names, scratch)
        names = _told_apart(names, truth)
        broken = scratch / "broken"
        broken.mkdir()
        with running(_command(models / "base", names, scratch), _environment(), scratch / "server.log") as up:
            url, process = up
            console.print(f"{len(names)} adapters are up; {minutes:g} minutes to go")
            found, watch = asyncio.run(
                _soak(url, process.pid, names, truth, broken, minutes=minutes, rate=rate, seed=seed)
            )
    head = {
        **machine.describe_machine(), **machine.describe_versions(), "commit": machine.commit(),
        "minutes": minutes, "adapters": f"{len(names)}, two contents each", "slots": SLOTS, "on the host": HOSTED,
        "requests a second": rate, "seed": seed,
    }  # fmt: skip
    write_report(found, watch, head, out)
    console.print(out.read_text())
    if problems(found, watch):
        sys.exit(1)


async def _soak(
    url: str, pid: int, names: list[Name], truth: Truth, broken: Path, *, minutes: float, rate: float, seed: int
) -> tuple[Found, Watch]:
    histories = {name.name: History() for name in names}
    for name in names:
        histories[name.name].begins(name.contents[0].name, 0.0)
    found, watch, until = Found(), Watch(pid), time.monotonic() + 60 * minutes
    # the server closes idle connections on its own; a fresh one for each request cannot meet that
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await asyncio.gather(
            send_requests(client, names, histories, truth, found, rate=rate, until=until, seed=seed),
            make_changes(client, pid, names, histories, broken, found, until=until, seed=seed + 1),
            watch.follow(until),
        )
    return found, watch


def _told_apart(names: list[Name], truth: Truth) -> list[Name]:
    """With those prompts alone whose answers tell the contents and the base model apart."""
    kept = []
    for name in names:
        contents = [BASE, *(content.name for content in name.contents)]
        prompts = [prompt for prompt in name.prompts if truth.tells_apart(prompt, contents)]
        if prompts:
            kept.append(Name(name.name, name.contents, prompts))
    return kept


def _command(base: Path, names: list[Name], root: Path) -> list[str]:
    named = [part for name in names for part in ("--adapter", f"{name.name}={name.contents[0].path}")]
    roots = [part for path in (root, base.parent) for part in ("--adapter-root", str(path))]
    options = [part for key, value in ENGINE.items() for part in option(key, value)]
    return [
        sys.executable, "-m", "npu_weave", "serve", str(base), *named, *roots, "--served-model-name", BASE,
        "--max-loras", str(SLOTS), "--max-cpu-loras", str(HOSTED), *options,
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    return {**os.environ, **SETTINGS}


if __name__ == "__main__":
    typer.run(main)
