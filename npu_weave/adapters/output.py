"""Directories that appear complete or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from npu_weave.errors import OutputError


@contextmanager
def staged_directory(out: Path) -> Iterator[Path]:
    """A new directory beside `out` to write into; takes the name `out` when the body ends well, else is removed.

    Raises:
        OutputError: OUTPUT_EXISTS when `out` is there and not an empty directory; OUTPUT_WRITE_FAILED
            (disk full, no permission) from here or from an OSError in the body.
    """
    target = out.resolve()
    staging = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:12]}"
    try:
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise OutputError(
                "OUTPUT_EXISTS",
                str(out),
                expected="no such path, or an empty directory",
                got="something is there",
                remedy="choose another directory, or remove this one",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
        staging.rename(target)
    except (OSError, SafetensorError) as reason:
        raise OutputError("OUTPUT_WRITE_FAILED", str(out), expected="a writable place", got=str(reason)) from reason
    finally:
        shutil.rmtree(staging, ignore_errors=True)
