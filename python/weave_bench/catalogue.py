"""The part ``catalogue``: what looking up a name costs in a catalogue of a thousand names and of a million."""

from __future__ import annotations

import gc
import random
import tempfile
import time
from pathlib import Path

import psutil
from tqdm import tqdm

from npu_weave.adapters.catalog import AdapterCatalog, open_catalog
from weave_bench.results import Part, Row, Table, spread

NAMES, QUICK_NAMES = (1_000, 1_000_000), (1_000, 20_000)
LOOKUPS = 5_000
_GROUP = 100
"""Look-ups a repeat."""

COLUMNS = {
    "opened": "ms to open the catalogue",
    "found": "us a name that is there",
    "not found": "us a name that is not",
    "memory": "MiB by which the process grew, opening and looking up",
}
_SHOWS = (
    "Names are directories; nothing is listed, so a look-up is the file system's own search for one name, and memory "
    "does not know how many there are. Names are looked up in an order of chance after the directory's "
    "making, so most of what the file system needs is in memory. A catalogue at a URL takes one listing of one place "
    "over the network instead."
)


def measure(*, quick: bool) -> Part:
    """Make both catalogues below a temporary directory, and look names up."""
    begun = time.monotonic()
    rows = []
    for count in QUICK_NAMES if quick else NAMES:
        with tempfile.TemporaryDirectory(prefix="npu-weave-catalogue-") as directory:
            rows.append(_row(Path(directory), count))
    table = Table("catalogue", "Looking a name up", COLUMNS, rows, _SHOWS)
    settings = {"look-ups": LOOKUPS, "a repeat": f"{_GROUP} look-ups"}
    return Part("catalogue", time.monotonic() - begun, quick, settings, [table])


def _row(root: Path, count: int) -> Row:
    for number in tqdm(range(count), desc=f"{count:,} names", leave=False):
        (root / f"adapter-{number:07}").mkdir()
    draw = random.Random(0)
    known = [f"adapter-{draw.randrange(count):07}" for _ in range(LOOKUPS)]
    unknown = [f"adapter-{count + draw.randrange(count):07}" for _ in range(LOOKUPS)]
    gc.collect()
    before, begun = psutil.Process().memory_info().rss, time.perf_counter()
    catalog = open_catalog(str(root), cache=root / "unused", cache_bytes=1)
    opened = time.perf_counter() - begun
    found, missing = _microseconds(catalog, known, True), _microseconds(catalog, unknown, False)
    grown = psutil.Process().memory_info().rss - before
    values = {"opened": opened * 1e3, "found": spread(found), "not found": spread(missing), "memory": grown / 2**20}
    return Row({"names": count}, values)


def _microseconds(catalog: AdapterCatalog, names: list[str], there: bool) -> list[float]:
    """Of a look-up, one value a repeat."""
    taken = []
    for first in range(0, len(names), _GROUP):
        begun = time.perf_counter()
        for name in names[first : first + _GROUP]:
            assert (catalog.find(name) is not None) == there, name
        taken.append((time.perf_counter() - begun) / _GROUP * 1e6)
    return taken
