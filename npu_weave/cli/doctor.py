"""`npu-weave doctor`: whether this machine can serve, and what is missing; the first thing to run on a new one."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from npu_weave.cli.reporting import print_json

_MARKS = {"ok": "ok", "absent": "-", "wrong": "WRONG"}


def doctor(
    expert_parallel: Annotated[int, typer.Option(min=1, help="Ranks of expert parallelism to compute limits for.")] = 1,
    experts: Annotated[
        int | None, typer.Option(min=1, help="Routed experts of the base model: says how many rows are left.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Look at versions, memory drivers, hooks into the engine, operators and limits.

    Ends with 1 when something is wrong; what is absent may be meant so.
    """
    from npu_weave.engine.diagnosis import diagnose

    findings = list(diagnose(expert_parallel, experts))
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        console = Console(highlight=False, markup=False, emoji=False)
        for topic, group in groupby(findings, key=lambda finding: finding.topic):
            console.print(topic, style="bold")
            table = Table(box=None, show_header=False, pad_edge=False)
            table.add_column(no_wrap=True)
            table.add_column(style="dim", no_wrap=True)
            table.add_column(overflow="fold")
            for finding in group:
                table.add_row(_MARKS[finding.state], finding.thing, finding.detail)
            console.print(table)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)
