"""``python -m weave_bench.serving``: the workload and the client for any OpenAI-compatible server that runs already."""

from __future__ import annotations

import functools
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from weave_bench.results import Row
from weave_bench.serving.comparison import Trial, compare, rows
from weave_bench.serving.metrics import Slo, measure
from weave_bench.serving.open_load import COLUMNS, Traffic
from weave_bench.serving.workload import Asked, Prompts, shares
from weave_lab.tasks import by_name


def main(
    model: Annotated[list[str], typer.Argument(help="URL NAME=TASK ...: the server, then its models by share")],
    rate: Annotated[float, typer.Option(help="requests a second, of all models together")] = 5.0,
    alpha: Annotated[float, typer.Option(help="shape of the shares: 1 is uniform, less is more skewed")] = 1.0,
    horizon: Annotated[float, typer.Option(help="seconds in which requests arrive")] = 20.0,
    repeats: Annotated[int, typer.Option(help="runs, each with arrivals of its own")] = 3,
    ttft: Annotated[float, typer.Option(help="ms to the first token that count as good")] = 1000.0,
    tpot: Annotated[float, typer.Option(help="ms a further token that count as good")] = 100.0,
) -> None:
    """Measure a server: latencies, throughput and goodput, median and quartiles over repeats."""
    url, *named = model
    adapters = [_adapter(text) for text in named]
    if not adapters:
        raise typer.BadParameter("name at least one model and the task its prompts come from, NAME=TASK")
    targets = [(url.rstrip("/"), adapter.name) for adapter in adapters]
    waves = Traffic(Prompts()).paced(alpha, rate, horizon, adapters, targets)
    figures = functools.partial(measure, horizon=horizon, slo=Slo(ttft / 1e3, tpot / 1e3))
    trial = Trial({"rate": rate, "alpha": alpha}, {url: waves}, url, figures)
    (row,) = rows(trial, compare([trial], repeats, url)[0], list(COLUMNS), (), "")
    parts = zip(adapters, shares(len(adapters), alpha), strict=True)
    _print(row, [f"{adapter.name} {share:.0%}" for adapter, share in parts])


def _adapter(text: str) -> Asked:
    name, _, task = text.partition("=")
    try:
        return Asked(name, by_name(task).name)
    except KeyError as error:
        raise typer.BadParameter(f"{text}: {error.args[0]}") from error


def _print(row: Row, asked: list[str]) -> None:
    table = Table(title=f"{row.labels['system']}: {', '.join(asked)}")
    for heading in ("", "median (quartiles)", ""):
        table.add_column(heading)
    for name, value in row.values.items():
        table.add_row(name, str(value), COLUMNS[name])
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
