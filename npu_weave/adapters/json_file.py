"""JSON read with suspicion: bounded size, strict UTF-8, no key twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from npu_weave.adapters.printable import printable_path
from npu_weave.adapters.source_file import open_source
from npu_weave.errors import AdapterFileError

MAX_JSON_BYTES = 16 << 20


class _DuplicateKeyError(ValueError):
    """One object of a JSON text names a key twice."""


def read_json_object(path: Path, *, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in the file at `path`, which may have up to `limit` bytes.

    Raises:
        AdapterFileError: JSON_TOO_LARGE, JSON_INVALID or a FILE_* code.
    """
    source = open_source(path)
    if source.size > limit:
        raise AdapterFileError(
            "JSON_TOO_LARGE", printable_path(path), expected=f"at most {limit} bytes", got=f"{source.size} bytes"
        )
    try:
        return parse_json_object(bytes(source.read(0, source.size)))
    except ValueError as reason:
        raise AdapterFileError(
            "JSON_INVALID", printable_path(path), expected="one JSON object", got=str(reason)
        ) from reason


def parse_json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that `data` holds.

    Raises:
        ValueError: it is not UTF-8, not JSON, not an object, nested too deeply, or names a key twice.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKeyError(f"key {key!r} twice")
        found[key] = value
    return found
