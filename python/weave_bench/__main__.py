"""``python -m weave_bench``: run parts of the benchmarks, and make a report of what they found."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from weave_bench import machine, report
from weave_bench.host import Host
from weave_bench.results import SCHEMA, Origin, Part, Run, read_run, write_run

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

PARTS = {
    "steps": "MoE layers step by step: adapters beside the base model, virtual beside padded, and our own work",
    "serve": "servers under the paper's workload: TTFT, TPOT, throughput, goodput, memory",
    "live": "gaps between tokens while adapters are loaded and unloaded",
    "accuracy": "base, merged and served answers, task by task",
    "memory": "physical memory under base and adapters, and the KV cache left",
    "loads": "adapters from disk and from host memory, and what a page costs",
    "catalogue": "looking a name up among a thousand and a million",
    "kernels": "gating and rerouting, fused and in parts",
    "gpu": "layers at full geometry, and a whole engine, on a GPU",
}
"""What can be run, in the order of the report. A part is a module with ``measure(*, quick: bool) -> Part``."""

BY_NAME, QUICK_BY_NAME = {"gpu"}, {"gpu", "live"}
"""What is run only when it is named; a quick run has too few gaps between tokens for a percentile of them."""
_CHOICE = f"of {', '.join(PARTS)}; all but gpu without any, of a quick run all but gpu and live"

RUN = Path("build") / "bench" / "run.json"
QUICK_RUN = RUN.with_name("quick") / RUN.name
REPORT = "report.md"


@app.command("run")
def run_parts(
    parts: Annotated[list[str] | None, typer.Argument(help=_CHOICE)] = None,
    quick: Annotated[bool, typer.Option(help="fewer repeats and smaller sizes: minutes in all")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help=f"the run's file, to which parts are added; {RUN}, or {QUICK_RUN} for a quick run"),
    ] = None,
) -> None:
    """Measure, note what was found, and write the report beside it. Nothing else should run on the machine.

    Parts that the file has already stay, until they are measured again; the report says where each comes from.
    """
    out = out or (QUICK_RUN if quick else RUN)
    wanted = chosen(parts, quick=quick)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers are stopped, too
    console = Console(width=None if sys.stdout.isatty() else 160)
    run = read_run(out) if out.exists() else Run(SCHEMA)
    for name in wanted:
        console.rule(f"{name}: {PARTS[name]}")
        origin = _origin()
        begun, host = time.monotonic(), Host()
        part: Part = importlib.import_module(f"weave_bench.{name}").measure(quick=quick)
        run.add(part, msgspec.structs.replace(origin, stolen=host.stolen()))
        write_run(run, out)
        report.print_part(part, console)
        console.print(f"{name} took {time.monotonic() - begun:.0f} s; noted in {out}")
    written = report.write_report(run, out.with_name(REPORT))
    console.print(f"wrote {written[0]} and {len(written) - 1} figures")


def chosen(parts: list[str] | None, *, quick: bool) -> list[str]:
    """The parts that were named, or those that run without. Raises typer.BadParameter for one that is not there."""
    unknown = [name for name in parts or () if name not in PARTS]
    if unknown:
        raise typer.BadParameter(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return parts or [name for name in PARTS if name not in (QUICK_BY_NAME if quick else BY_NAME)]


@app.command("report")
def make_report(
    run: Annotated[Path, typer.Argument(help="the file of a run")],
    out: Annotated[Path, typer.Option(help="the report; its figures go into a directory of its name")],
) -> None:
    """Write the report of a run again, in Markdown, with figures."""
    written = report.write_report(read_run(run), out)
    Console().print(f"wrote {written[0]} and {len(written) - 1} figures")


def _origin() -> Origin:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return Origin(machine.describe_machine(), machine.describe_versions(), machine.commit(), started)


if __name__ == "__main__":
    app()
