"""Which names and paths a request may use for an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from npu_weave.errors import AdapterError, AdapterNotFoundError, AdapterPathError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(?:file|data|https?):", re.IGNORECASE)


def validate_adapter_name(name: str) -> str:
    """Returns `name` when it is a proper adapter name. Raises AdapterError ADAPTER_NAME_INVALID."""
    if _NAME.fullmatch(name) is None:
        raise AdapterError(
            "ADAPTER_NAME_INVALID",
            f"adapter name {name[:160]!r}",
            expected="1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit",
        )
    return name


def resolve_adapter_path(path: str | Path, allowed_roots: Sequence[Path] | None) -> Path:
    """The real path of an adapter directory, symbolic links resolved.

    Args:
        path: as given by a user or a request.
        allowed_roots: directories it must lie under (or be); None allows every directory.

    Raises:
        AdapterPathError: ADAPTER_PATH_URL, ADAPTER_PATH_INVALID, ADAPTER_PATH_OUTSIDE. A path outside the
            roots gives the same error whether it exists or not.
        AdapterNotFoundError: ADAPTER_NOT_FOUND.
    """
    shown = repr(str(path)[:300])
    if _URL.match(str(path)):
        raise AdapterPathError(
            "ADAPTER_PATH_URL", shown, expected="a local directory", got="a URL", remedy="download the adapter first"
        )
    if not str(path):
        raise AdapterPathError("ADAPTER_PATH_INVALID", shown, expected="a local directory", got="an empty path")
    try:
        real = Path(path).resolve(strict=False)
        roots = None if allowed_roots is None else [Path(root).resolve(strict=False) for root in allowed_roots]
        if roots is not None and not any(real.is_relative_to(root) for root in roots):
            raise AdapterPathError(
                "ADAPTER_PATH_OUTSIDE",
                shown,
                expected="a directory under one of the allowed roots",
                got="a path outside of them",
                remedy="move the adapter there, or have the operator allow its directory",
            )
        found = real.is_dir()
    except (OSError, ValueError, RuntimeError) as reason:
        # ValueError: a null byte; RuntimeError: a loop of symbolic links.
        raise AdapterPathError("ADAPTER_PATH_INVALID", shown, expected="a local directory", got=str(reason)) from reason
    if not found:
        raise AdapterNotFoundError("ADAPTER_NOT_FOUND", shown, expected="an adapter directory", got="no directory")
    return real
