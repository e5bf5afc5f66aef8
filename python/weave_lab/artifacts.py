"""Where the trained model and adapters are; trains them on first use where they do not ship.

``python -m weave_lab.artifacts`` prints the directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

NAME = "weave-tiny"


def is_complete(directory: Path) -> bool:
    """True when `directory` holds finished artefacts: the report is written last."""
    return (directory / "report.json").is_file() and (directory / "base" / "config.json").is_file()


def shipped() -> Path:
    """Where a checkout of the repository keeps the artefacts; a wheel does not carry them."""
    return Path(__file__).resolve().parents[2] / "models" / NAME


def cached() -> Path:
    """Where artefacts made on first use are kept: under ``$XDG_CACHE_HOME``, by default ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "npu-weave" / NAME


def locate() -> Path:
    """The directory with ``base/``, ``adapters/<task>/`` and ``report.json``.

    Looks into the checkout, then into the cache; when both lack them, trains them into the cache, with progress bars
    (about a quarter of an hour on two cores). Safe to call from several processes: each trains aside and the first
    to finish wins.
    """
    for directory in (shipped(), cached()):
        if is_complete(directory):
            return directory
    return make(cached())


def make(target: Path) -> Path:
    """Trains the full recipe and moves the result to `target` in one step; returns `target`."""
    from weave_lab.train import full_recipe, train_all

    print(f"weave_lab: no trained artefacts yet; making them in {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=target.parent))
    try:
        train_all(full_recipe(), aside, seed=0)
        aside.chmod(0o755)
        if target.exists() and not is_complete(target):
            shutil.rmtree(target)
        if not target.exists():
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


if __name__ == "__main__":
    print(locate())
