"""Adapters pinned to a content: a name that a pin is about serves just that content, wherever its files come from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npu_weave.errors import AdapterError, ConfigError

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Pins:
    """Content digests by adapter name (``npu-weave adapter inspect`` prints them). Names without one are free."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = dict(digests)

    def check(self, name: str, digest: str) -> None:
        """Raises AdapterError ADAPTER_PIN_MISMATCH, the name is pinned to other content."""
        pinned = self._digests.get(name, digest)
        if digest != pinned:
            raise AdapterError(
                "ADAPTER_PIN_MISMATCH",
                f"adapter {name!r}",
                expected=f"the content it is pinned to, {pinned}",
                got=digest,
                remedy="put that content back, or change the pin and start the server again",
            )


def read_pins(path: Path | None) -> Pins:
    """The pins in a JSON file, an object of names and digests; none for None.

    Raises:
        ConfigError: PINS_INVALID.
    """
    if path is None:
        return Pins({})
    try:
        found: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _invalid(path, str(error)) from error
    if not isinstance(found, dict):
        raise _invalid(path, type(found).__name__)
    wrong = next((name for name, digest in found.items() if not _is_digest(digest)), None)
    if wrong is not None:
        raise _invalid(path, f"{wrong!r}: {found[wrong]!r}")
    return Pins(found)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _invalid(path: Path, got: str) -> ConfigError:
    return ConfigError(
        "PINS_INVALID",
        str(path),
        expected='an object {"name": "digest of 64 hex digits"}',
        got=got[:300],
        remedy="npu-weave adapter inspect prints an adapter's digest",
    )
