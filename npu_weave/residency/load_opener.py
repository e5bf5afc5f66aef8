"""The engine core's part of a load: whether there is an adapter at a path, and what is known of its content."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from npu_weave.adapters.adapter import open_adapter
from npu_weave.adapters.checkpoint import base_fingerprint
from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.adapters.paths import resolve_adapter_path, validate_adapter_name
from npu_weave.residency.load_identity import DigestMemo, Identity, directory_identity


@dataclass(frozen=True)
class Opened:
    """A directory that holds a valid adapter.

    Attributes:
        identity: the state it was validated in.
        seen_ns: when, on the wall clock.
        digest: its content, if it was read in that state before; else empty.
    """

    identity: Identity
    seen_ns: int
    digest: str


class Caller(Protocol):
    """Runs a function, here or elsewhere."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """What ``function(*args)`` returns or raises."""


def call_here(function: Callable[..., Any], *args: Any) -> Any:
    """`Caller` in this thread."""
    return function(*args)


class AdapterOpener:
    """Validates adapters, headers only, and remembers what was in them. May run on a thread of its own."""

    def __init__(
        self,
        geometry: MoEGeometry,
        model: Path,
        allowed_roots: Sequence[Path] | None = None,
        *,
        call: Caller = call_here,
    ) -> None:
        """
        Args:
            model: the base model, where its checkpoint is a directory here; adapters that note their base are held
                to it.
            call: runs the validation.
        """
        self._arguments = (geometry, model, allowed_roots)
        self._call = call
        self._memo = DigestMemo()

    def open(self, name: str, path: str) -> Opened:
        """Validate the adapter at `path`.

        Raises:
            AdapterError: the name, the path or a file is not as it must be.
        """
        validate_adapter_name(name)
        seen_ns, identity = self._call(_validate, path, *self._arguments)
        return Opened(identity, seen_ns, self._memo.find(identity))

    def note(self, opened: Opened, digest: str) -> None:
        """Remember that what was opened has this content."""
        self._memo.note(opened.identity, opened.seen_ns, digest)

    def known(self, opened: Opened) -> str:
        """The content of what was opened, if it is known by now; else empty."""
        return self._memo.find(opened.identity)


def _validate(
    path: str, geometry: MoEGeometry, model: Path, allowed_roots: Sequence[Path] | None
) -> tuple[int, Identity]:
    real = resolve_adapter_path(path, allowed_roots)
    seen_ns, identity = time.time_ns(), directory_identity(real)
    open_adapter(real, geometry, allowed_roots=allowed_roots, base_fingerprint=_fingerprint(model))
    return seen_ns, identity


@cache
def _fingerprint(model: Path) -> str | None:
    return base_fingerprint(model) if model.is_dir() else None
