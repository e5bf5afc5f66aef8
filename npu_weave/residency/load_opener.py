"""The engine core's part of a load: whether there is an adapter at a path, and what is known of its content."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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


class AdapterOpener:
    """Validates adapters, headers only, and remembers what was in them. May run on a thread of its own."""

    def __init__(self, geometry: MoEGeometry, model: Path, allowed_roots: Sequence[Path] | None = None) -> None:
        self._geometry = geometry
        self._model = model
        self._allowed_roots = allowed_roots
        self._memo = DigestMemo()

    def open(self, name: str, path: str) -> Opened:
        """Validate the adapter at `path`.

        Raises:
            AdapterError: the name, the path or a file is not as it must be.
        """
        validate_adapter_name(name)
        real = resolve_adapter_path(path, self._allowed_roots)
        seen_ns, identity = time.time_ns(), directory_identity(real)
        open_adapter(real, self._geometry, allowed_roots=self._allowed_roots, base_fingerprint=self._base_fingerprint)
        return Opened(identity, seen_ns, self._memo.find(identity))

    def note(self, opened: Opened, digest: str) -> None:
        """Remember that what was opened has this content."""
        self._memo.note(opened.identity, opened.seen_ns, digest)

    def known(self, opened: Opened) -> str:
        """The content of what was opened, if it is known by now; else empty."""
        return self._memo.find(opened.identity)

    @cached_property
    def _base_fingerprint(self) -> str | None:
        """Of the base model, where its checkpoint is a directory here; adapters that note their base are held to it."""
        return base_fingerprint(self._model) if self._model.is_dir() else None
