"""Adapters at any place that fsspec reaches, fetched into a disk cache when they are asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from npu_weave.adapters.disk_cache import DiskCache
from npu_weave.adapters.expert_config import EXPERT_CONFIG_NAME
from npu_weave.adapters.layout import INDEX_NAME
from npu_weave.adapters.paths import validate_adapter_name
from npu_weave.adapters.progress import Progress
from npu_weave.errors import AdapterError, ConfigError

_BLOCK = 8 << 20
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_JSON = (EXPERT_CONFIG_NAME, INDEX_NAME)
_STAMPS = ("ETag", "etag", "blob_id", "sha256", "md5", "checksum", "LastModified", "mtime", "created")
"""By which of these a file system tells one content of a file from the next, the best first."""


class _RemoteFile(NamedTuple):
    place: str
    name: str
    size: int
    stamp: str


class RemoteCatalog:
    """`AdapterCatalog` below a URL: the adapter NAME is the directory (repository, prefix) NAME there.

    One listing of that directory tells which files there are and in which state; a state that is in the cache already
    is not fetched again. Of a directory only the adapter's own files are read: its JSON and its safetensors.

    Args:
        location: what fsspec understands; its own settings (credentials, endpoints) come from the environment.

    Raises:
        ConfigError: CATALOG_INVALID.
    """

    def __init__(self, location: str, cache: DiskCache, progress: Progress) -> None:
        import fsspec

        try:
            self._files, self._place = fsspec.core.url_to_fs(location)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(
                "CATALOG_INVALID",
                location,
                expected="a URL of a protocol that fsspec speaks here",
                got=str(error),
                remedy="install what fsspec needs for it (s3fs, gcsfs ...), or correct the URL",
            ) from error
        self.location, self.root = location, cache.root
        self._cache, self._progress = cache, progress

    def find(self, name: str) -> Path | None:
        """See `AdapterCatalog.find`."""
        files = self._list(validate_adapter_name(name))
        if not files:
            return None
        revision = blake3(repr([(file.name, file.size, file.stamp) for file in files]).encode()).hexdigest()[:32]
        found = self._cache.get(name, revision)
        if found is not None:
            return found
        nbytes = sum(file.size for file in files)
        return self._cache.fill(name, revision, nbytes, lambda into: self._download(name, files, into))

    def _list(self, name: str) -> list[_RemoteFile]:
        """The adapter's files, by name; none where there is no such directory."""
        place = f"{self._place.rstrip('/')}/{name}"
        try:
            with suppress(NotImplementedError):
                self._files.invalidate_cache(place)
            entries = self._files.ls(place, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:  # every file system has its own
            raise AdapterError(
                "CATALOG_UNREACHABLE",
                f"adapter {name!r}",
                expected=f"an answer from {self.location}",
                got=f"{type(error).__name__}: {error}"[:300],
                remedy="ask again later; check credentials and network of the server",
            ) from error
        found = []
        for entry in entries:
            file = entry["name"].rsplit("/", 1)[-1]
            wanted = file in _JSON or (file.endswith(".safetensors") and _FILE.fullmatch(file) is not None)
            if entry["type"] == "file" and wanted:
                found.append(_RemoteFile(entry["name"], file, int(entry["size"]), _stamp(entry)))
        return sorted(found, key=lambda file: file.name)

    def _download(self, name: str, files: list[_RemoteFile], into: Path) -> None:
        """Fetch what is missing in `into`: a file that was cut short goes on where it ended."""
        total = sum(file.size for file in files)
        done = 0
        for file in files:
            target = into / file.name
            try:
                for _ in self._fetch(file, target):
                    self._progress(f"download {name}", done + target.stat().st_size, total)
            except Exception as error:  # every file system has its own
                raise _failed(name, f"{file.name}: {type(error).__name__}: {error}"[:300]) from error
            if target.stat().st_size != file.size:
                got = target.stat().st_size
                target.unlink()
                raise _failed(name, f"{got} bytes of {file.name} instead of {file.size}")
            done += file.size
        if self._list(name) != files:  # what came may be of two revisions
            for file in files:
                (into / file.name).unlink()
            raise _failed(name, "files that changed meanwhile")

    def _fetch(self, file: _RemoteFile, target: Path) -> Any:
        with target.open("ab") as sink:
            if sink.tell() >= file.size:
                return
            with self._files.open(file.place, "rb") as source:
                source.seek(sink.tell())
                while block := source.read(_BLOCK):
                    sink.write(block)
                    sink.flush()
                    yield


def _failed(name: str, got: str) -> AdapterError:
    return AdapterError(
        "CATALOG_DOWNLOAD_FAILED",
        f"adapter {name!r}",
        expected="all of its files",
        got=got,
        remedy="ask again: the download goes on where it ended",
    )


def _stamp(entry: Mapping[str, Any]) -> str:
    known = (str(entry[key]) for key in _STAMPS if entry.get(key) is not None)
    return next(known, "")
