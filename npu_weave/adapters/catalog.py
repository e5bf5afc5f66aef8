"""Adapters by name, found when somebody asks for them: below a directory, or at any place that fsspec reaches.

Nothing is listed at start and no list is kept, so a catalogue of a million names costs what one of ten does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from npu_weave.adapters.paths import resolve_adapter_path, validate_adapter_name
from npu_weave.adapters.progress import Progress, silent
from npu_weave.errors import AdapterNotFoundError, ConfigError

InUse = Callable[[], Collection[Path]]
"""Directories that must stay, as adapters in service were read from them."""


class AdapterCatalog(Protocol):
    """Where adapters are by name. Safe to use from several threads.

    Attributes:
        location: for people.
        root: the directory below which everything lies that `find` returns.
    """

    location: str
    root: Path

    def find(self, name: str) -> Path | None:
        """The real directory of an adapter, here and whole; None where the catalogue has none of that name.

        Raises:
            AdapterError: ADAPTER_NAME_INVALID, CATALOG_UNREACHABLE, CATALOG_DOWNLOAD_FAILED.
            AdapterPathError: a link leads out of the catalogue.
            CapacityError: CATALOG_CACHE_FULL.
        """


def open_catalog(
    location: str,
    *,
    cache: Path,
    cache_bytes: int,
    in_use: InUse = tuple,
    progress: Progress = silent,
) -> AdapterCatalog:
    """The catalogue at a directory, or at a URL that fsspec knows (``hf://organisation``, ``s3://bucket/adapters``).

    Args:
        cache: directory in which adapters from elsewhere are kept.
        cache_bytes: that they may take there.
        in_use: called when some have to go.
        progress: told of downloads.

    Raises:
        ConfigError: CATALOG_INVALID, there is no such directory, or nothing here can speak that protocol.
    """
    if "://" in location:
        from npu_weave.adapters.disk_cache import DiskCache
        from npu_weave.adapters.remote_catalog import RemoteCatalog

        return RemoteCatalog(location, DiskCache(cache, cache_bytes, in_use), progress)
    root = Path(location).expanduser()
    if not root.is_dir():
        raise ConfigError("CATALOG_INVALID", location, expected="a directory or a URL", got="no directory")
    return LocalCatalog(root)


class LocalCatalog:
    """`AdapterCatalog` of a directory: the adapter NAME is the directory NAME in it, or a link to another one there."""

    def __init__(self, root: Path) -> None:
        self.location = str(root)
        self.root = root.resolve()

    def find(self, name: str) -> Path | None:
        """See `AdapterCatalog.find`."""
        try:
            return resolve_adapter_path(self.root / validate_adapter_name(name), [self.root])
        except AdapterNotFoundError:
            return None
