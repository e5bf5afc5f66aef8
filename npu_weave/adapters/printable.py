"""Text from files one does not trust, made fit for a terminal or a log."""

from __future__ import annotations

from pathlib import Path


def printable(text: str, limit: int = 160) -> str:
    """`text` without control characters or lone surrogates, cut to about `limit` characters."""
    safe = text if text.isprintable() else ascii(text)
    return safe if len(safe) <= limit else f"{safe[:limit]}..."


def printable_path(path: Path) -> str:
    """A path as `printable` text."""
    return printable(str(path), 1000)


def name_some(names: list[str], limit: int = 5) -> str:
    """The first names and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
