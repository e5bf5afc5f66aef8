"""How much of a model's depth this machine can hold for a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.errors import CapacityError, ConfigError
from npu_weave.residency.footprint_formula import ExpertSets, need

SHARE = 3
"""One in so many bytes of available memory is taken when nobody says how many layers to measure."""


def available_bytes() -> int:
    """Memory that can be taken now without swapping: the machine's, or what its control group (v2) leaves."""
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = int(meminfo["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except OSError:  # no control group here, or of the older kind
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


def choose_layers(
    geometry: MoEGeometry, adapters: Sequence[ExpertSets], page_bytes: int, *, asked: int | None, available: int
) -> tuple[int, ...]:
    """The first MoE layers to measure: as many as asked, or as fit in a third of the `available` bytes.

    Raises:
        ConfigError: FOOTPRINT_ARGUMENT, the model has no such number of MoE layers.
        CapacityError: MEMORY_EXHAUSTED, not even one layer fits, or not those asked for.
    """
    layers = geometry.moe_layers
    if asked is not None and not 1 <= asked <= len(layers):
        raise ConfigError("FOOTPRINT_ARGUMENT", "layers", expected=f"1 to {len(layers)}", got=str(asked))
    budget = available // SHARE if asked is None else available
    fitting = 0
    while fitting < len(layers) and _peak(geometry, layers[: fitting + 1], adapters, page_bytes) <= budget:
        fitting += 1
    wanted = max(1, fitting) if asked is None else asked
    if wanted > fitting:
        raise CapacityError(
            "MEMORY_EXHAUSTED",
            f"{wanted} MoE layers",
            expected=f"{_peak(geometry, layers[:wanted], adapters, page_bytes)} bytes",
            got=f"{budget} bytes to take of {available} available",
            remedy="measure fewer layers or adapters" if wanted > 1 else "give --layers 1, or measure a smaller model",
        )
    return layers[:wanted]


def _peak(geometry: MoEGeometry, layers: Sequence[int], adapters: Sequence[ExpertSets], page_bytes: int) -> int:
    return need(geometry, layers, adapters, 0, page_bytes).paged_bytes
