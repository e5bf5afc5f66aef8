"""How commands answer: text for people or one JSON document, and the exit code of an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from npu_weave.errors import WeaveError


def print_json(document: dict[str, Any]) -> None:
    """Prints one JSON document on stdout."""
    typer.echo(json.dumps(document, indent=2))


def print_fields(title: str, fields: dict[str, str]) -> None:
    """Prints a heading and names with their values on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(title, style="bold")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, value)
    console.print(table)


@contextmanager
def reported_errors(as_json: bool) -> Iterator[None]:
    """Turns a WeaveError of the body into its report and its exit code.

    As text it goes to stderr; as JSON, `{"error": {kind, code, thing, expected, got, remedy}}` to stdout.
    """
    try:
        yield
    except WeaveError as error:
        if as_json:
            print_json({"error": error.to_dict()})
        else:
            typer.echo(f"error {error}", err=True)
        raise typer.Exit(error.exit_code) from None


def human_bytes(count: int) -> str:
    """E.g. `1.5 MiB (1572864 bytes)`."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit} ({count} bytes)"
