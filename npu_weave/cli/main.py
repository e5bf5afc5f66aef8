"""The `npu-weave` command: an index of its command groups."""

from __future__ import annotations

from typing import Annotated

import typer

from npu_weave import __version__
from npu_weave.cli import adapter, doctor, live, memory, plan, serve, status

app = typer.Typer(
    name="npu-weave",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Many ESFT adapters over one shared MoE base model.",
)
app.add_typer(adapter.app, name="adapter")
app.command(name="serve", context_settings=serve.CONTEXT)(serve.serve)
app.command(name="memory")(memory.memory)
app.command(name="plan")(plan.plan)
app.command(name="load")(live.load)
app.command(name="unload")(live.unload)
app.command(name="status")(status.status)
app.command(name="top")(status.top)
app.command(name="doctor")(doctor.doctor)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Many ESFT adapters over one shared MoE base model."""
