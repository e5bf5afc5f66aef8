"""The same prompts to npu-weave and to plain vLLM on merged checkpoints, and the answers in pairs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from weave_lab.demo.plain import answers_of
from weave_lab.demo.report import Answers, Outcome
from weave_lab.demo.servers import BASE, weave_server
from weave_lab.demo.traffic import Reply, Request, send
from weave_lab.tasks import Example

_AT_ONCE = 32

Examples = Mapping[str, list[Example]]
"""By task."""


def run(base: Path, adapters: Mapping[str, Path], examples: Examples, scratch: Path, console: Console) -> list[Outcome]:
    """Ask the server and plain vLLM, side by side, and pair the answers up, one `Outcome` a task."""
    merged = merge(base, adapters, scratch, console)
    prompts = {name: [example.prompt for example in rows] for name, rows in examples.items()}
    everything = {BASE: [prompt for rows in prompts.values() for prompt in rows], **prompts}
    console.print(f"starting one server with {len(adapters)} adapters, and plain vLLM on {len(everything)} checkpoints")
    with ThreadPoolExecutor(max_workers=1) as pool:
        plain = pool.submit(answers_of, {BASE: base, **merged}, everything, scratch)
        served = ask_weave(base, adapters, examples, scratch)
        truth = plain.result()
    outcomes, first = [], 0
    for name, rows in examples.items():
        past = first + len(rows)
        of_base = Answers(truth[BASE].together[first:past], truth[BASE].alone[first:past])
        outcomes.append(Outcome(name, rows, served[name, BASE], served[name, name], of_base, truth[name]))
        first = past
    return outcomes


def merge(base: Path, adapters: Mapping[str, Path], scratch: Path, console: Console) -> dict[str, Path]:
    """Write a merged checkpoint for every adapter; returns their directories by name."""
    merged = {}
    for name, adapter in adapters.items():
        console.print(f"merging {name} into a checkpoint of its own")
        merged[name] = scratch / "merged" / name
        command = ["adapter", "merge", "--base", str(base), "--adapter", str(adapter), "--out", str(merged[name])]
        subprocess.run([sys.executable, "-m", "npu_weave", *command], check=True, stdout=subprocess.DEVNULL)
    return merged


def ask_weave(
    base: Path, adapters: Mapping[str, Path], examples: Examples, scratch: Path
) -> dict[tuple[str, str], Answers]:
    """Answers by (task, model), from one server: the base model and each task's adapter."""
    asked = [
        (task, Request(model, example.prompt))
        for row in zip(*examples.values(), strict=True)  # one prompt of each task in turn
        for task, example in zip(examples, row, strict=True)
        for model in (BASE, task)
    ]
    with weave_server(base, adapters, scratch / "npu-weave.log") as url:
        return ask(url, asked, "npu-weave")


def ask(url: str, asked: Sequence[tuple[str, Request]], title: str) -> dict[tuple[str, str], Answers]:
    """Send every request among the others, then alone; the replies by (task, model)."""
    requests = [request for _, request in asked]
    together = send(url, requests, f"{title}, mixed", at_once=_AT_ONCE)
    alone = send(url, requests, f"{title}, one by one", at_once=1)
    found: dict[tuple[str, str], tuple[list[Reply], list[Reply]]] = {}
    for (task, request), mixed, single in zip(asked, together, alone, strict=True):
        replies = found.setdefault((task, request.model), ([], []))
        replies[0].append(mixed)
        replies[1].append(single)
    return {key: Answers(*replies) for key, replies in found.items()}
