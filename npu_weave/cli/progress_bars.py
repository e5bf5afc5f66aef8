"""Progress bars on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yields a callback `(stage, done, total)` [bytes] that draws one bar a stage on stderr, if that is a terminal."""
    bar: tqdm | None = None
    drawn = ""
    visible = sys.stderr.isatty()

    def show(stage: str, done: int, total: int) -> None:
        nonlocal bar, drawn
        if not visible:
            return
        if bar is None or drawn != stage:
            if bar is not None:
                bar.close()
            drawn = stage
            bar = tqdm(desc=stage, total=total, unit="B", unit_scale=True, unit_divisor=1024, leave=False)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
