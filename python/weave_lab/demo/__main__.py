"""``python -m weave_lab.demo``: serve the small model with its adapters, and hold every answer against merged models.

Every task's held-out prompts go to the base model and to the task's adapter at once, as mixed traffic over HTTP, to
one `npu-weave serve`. The same prompts go to plain vLLM servers: one for the base model, one for each merged
checkpoint. The demonstration ends with 0 only if all tokens and log-probabilities are the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from weave_lab.artifacts import locate
from weave_lab.demo.report import Outcome, print_answers, print_table
from weave_lab.demo.servers import plain_server, weave_server
from weave_lab.demo.traffic import Reply, Request, send
from weave_lab.evaluate import held_out
from weave_lab.tasks import Example, by_name

_SERVERS_AT_ONCE = 3  # each takes about 2 GB of memory and, while it starts, one core

Examples = Mapping[str, list[Example]]


def main() -> None:
    """Run the demonstration; exit status 1 when an answer differs."""
    parser = argparse.ArgumentParser(prog="python -m weave_lab.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, help="directory with base/ and adapters/ (default: the shipped one)")
    parser.add_argument("--count", type=int, default=50, help="prompts a task (default: 50)")
    arguments = parser.parse_args()
    models = arguments.models or locate()
    adapters = {path.name: path for path in sorted((models / "adapters").iterdir())}
    examples = {name: held_out(by_name(name), arguments.count) for name in adapters}
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="npu-weave-demo-") as scratch:
        outcomes = run(models / "base", adapters, examples, Path(scratch), console)
    print_answers(console, outcomes)
    print_table(console, outcomes)
    same = all(outcome.exact for outcome in outcomes)
    console.print(
        "[green]every answer equals that of plain vLLM, token by token and bit by bit[/]"
        if same
        else "[red]some answers differ from plain vLLM[/]"
    )
    sys.exit(0 if same else 1)


def run(base: Path, adapters: Mapping[str, Path], examples: Examples, scratch: Path, console: Console) -> list[Outcome]:
    """Start all servers, send the traffic, and pair the answers up, one `Outcome` a task."""
    merged = merge(base, adapters, scratch, console)
    plain = {"base": base, **merged}
    console.print(f"starting 1 server with {len(adapters)} adapters, and {len(plain)} plain servers to compare with")
    with ThreadPoolExecutor(max_workers=_SERVERS_AT_ONCE) as pool:
        woven = pool.submit(ask_weave, base, adapters, examples, scratch)
        truth = {
            name: pool.submit(ask_plain, name, model, examples if name == "base" else {name: examples[name]}, scratch)
            for name, model in plain.items()
        }
        served_base, served_adapter = woven.result()
        answers = {name: future.result() for name, future in truth.items()}
    return [
        Outcome(
            name, examples[name], served_base[name], served_adapter[name], answers["base"][name], answers[name][name]
        )
        for name in adapters
    ]


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
) -> tuple[dict[str, list[Reply]], dict[str, list[Reply]]]:
    """Answers of the base model and of the adapters by task, from one server under mixed traffic."""
    requests = [
        Request(model, example.prompt)
        for row in zip(*examples.values(), strict=True)
        for name, example in zip(examples, row, strict=True)
        for model in ("base", name)
    ]
    with weave_server(base, adapters, scratch / "npu-weave.log") as url:
        replies = send(url, requests, "npu-weave")
    of_base: dict[str, list[Reply]] = {name: [] for name in examples}
    of_adapter: dict[str, list[Reply]] = {name: [] for name in examples}
    names = [name for _ in range(len(requests) // (2 * len(examples))) for name in examples for _ in range(2)]
    for name, request, reply in zip(names, requests, replies, strict=True):
        (of_base if request.model == "base" else of_adapter)[name].append(reply)
    return of_base, of_adapter


def ask_plain(name: str, model: Path, examples: Examples, scratch: Path) -> dict[str, list[Reply]]:
    """Answers of plain vLLM on one checkpoint, by task."""
    prompts = [(task, example.prompt) for task, rows in examples.items() for example in rows]
    with plain_server(model, scratch / f"plain-{name}.log") as url:
        replies = send(url, [Request("model", prompt) for _, prompt in prompts], f"plain {name}")
    answers: dict[str, list[Reply]] = {task: [] for task in examples}
    for (task, _), reply in zip(prompts, replies, strict=True):
        answers[task].append(reply)
    return answers


if __name__ == "__main__":
    main()
