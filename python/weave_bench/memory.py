"""The part ``memory``: physical memory under base and adapters, measured; and what a device would have left.

As the paper's figures of memory: the ten published adapters over DeepSeek-V2-Lite's shape, one after the other, in the
virtual tensors that serve an engine, as many layers as fit; and the KV cache of a 64 GB device by arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from tqdm import tqdm

from npu_weave.adapters.geometry import MoEGeometry
from npu_weave.adapters.progress import Progress
from npu_weave.residency.footprint import Footprint, measure_footprint
from npu_weave.residency.footprint_source import source_from_geometry
from npu_weave.residency.footprint_synthetic import synthetic_adapters
from npu_weave.residency.plan_paper import paper_figures, paper_plan
from weave_bench.results import Part, Row, Table

GEOMETRY = "deepseek-v2-lite"
LAYERS, QUICK_LAYERS = None, 2
"""MoE layers measured; None for as many as fit in a third of the free memory."""

_MIB, _GIB = 2**20, 2**30

PAPER_SPARSITY: Mapping[str, float] = {
    "gate-math": 0.41, "gate-intent": 0.21, "gate-summary": 0.30, "gate-law": 0.39, "gate-translation": 0.64,
    "token-math": 0.32, "token-intent": 0.11, "token-summary": 0.36, "token-law": 0.34, "token-translation": 0.36,
}  # fmt: skip


def measure(*, quick: bool) -> Part:
    """Map base and adapters for real, and compute what does not fit here."""
    begun = time.monotonic()
    source = source_from_geometry(GEOMETRY, [])
    with _Bar() as progress:
        footprint = measure_footprint(source, layers=QUICK_LAYERS if quick else LAYERS, progress=progress)
    settings = {
        "geometry": GEOMETRY,
        "adapters": "the ten of the paper, by their published counts",
        "layers measured": len(footprint.layers),
        "of": len(source.geometry.moe_layers),
    }
    tables = [_adapters(source.geometry), _measured(footprint), _capacity(), _published()]
    return Part("memory", time.monotonic() - begun, quick, settings, tables)


def _adapters(geometry: MoEGeometry) -> Table:
    rows = []
    for name, sets in synthetic_adapters(geometry):
        counts = [len(experts) for experts in sets.values()]
        sparsity = 1 - sum(counts) / (len(counts) * max(counts))
        values = {"most": max(counts), "mean": sum(counts) / len(counts), "sparsity": sparsity}
        rows.append(Row({"adapter": name}, {**values, "paper": PAPER_SPARSITY[name]}))
    columns = {
        "most": "experts in one layer",
        "mean": "experts a layer",
        "sparsity": "share of rows that padding each layer to `most` would waste (the paper's S_i)",
        "paper": "the sparsity that it reports",
    }
    shows = "What is measured below: most and mean are the paper's, which experts they are is made up."
    return Table("adapters", "The paper's ten adapters", columns, rows, shows)


def _measured(footprint: Footprint) -> Table:
    rows = [
        Row(
            {"adapters": step.adapters, "added": step.added or "base model"},
            {
                "exact": step.reading.exact_bytes / _MIB,
                "driver": step.reading.driver_bytes / _MIB,
                "process": step.reading.shmem_bytes / _MIB,
                "waste": 100 * step.reading.waste,
                "padded": step.measured.padded_bytes / _MIB,
                "padding": 100 * (step.measured.fragmentation - 1),
                "merged": step.measured.merged_bytes / _MIB,
            },
        )
        for step in footprint.steps
    ]
    columns = {
        "exact": "MiB of the rows alone",
        "driver": "MiB in mapped pages, as the driver counts",
        "process": "MiB by which the process grew, as the system counts",
        "waste": "percent of pages over exact",
        "padded": "MiB of tensors with the same number of rows for each adapter (E_max), by arithmetic",
        "padding": "percent of padded over exact (the paper's F_mem less one)",
        "merged": "MiB of one copy of all experts an adapter, by arithmetic",
    }
    shows = (
        "Memory is mapped under rows in use only, so what is lost is at pages' edges. Measured on the host's driver, "
        "whose pages are as large as an NPU's."
    )
    return Table("memory", "Physical memory of experts, measured", columns, rows, shows)


def _capacity() -> Table:
    plan = paper_plan(paper_figures().overhead_bytes)
    rows = [
        Row(
            {"adapters": count, "design": design},
            {
                "weights": plan.outcome(design, count).weights_bytes / _GIB,
                "KV tokens": plan.outcome(design, count).kv_tokens,
            },
        )
        for count in (1, 2, 3)
        for design in ("merged", "padded", "mapped")
    ]
    columns = {"weights": "GiB on the device", "KV tokens": "tokens that the KV cache holds, over all engines"}
    shows = "A 64 GB device with DeepSeek-V2-Lite, by arithmetic; mapped is npu-weave. Zero tokens: it does not fit."
    return Table("capacity", "KV cache beside adapters", columns, rows, shows)


def _published() -> Table:
    figures = paper_figures()
    units = {"weights": "GiB", "kv_tokens": "tokens", "fragmentation": "ratio"}
    rows = [
        Row(
            {"quantity": f"{each.quantity.replace('_', ' ')}, {units[each.quantity]}", "design": each.design,
             "adapters": each.adapters},
            {"ours": each.computed, "paper": each.published, "deviation": 100 * each.deviation},
        )
        for each in figures.figures
    ]  # fmt: skip
    columns = {"ours": "computed", "paper": "published", "deviation": "percent"}
    shows = (
        "The paper's own setting, computed with our formulas. One constant is fitted to its three figures of the KV "
        f"cache: an engine's other memory, {figures.overhead_bytes / _GIB:.2f} GiB. Everything else follows."
    )
    return Table("published", "The paper's figures of memory, recomputed", columns, rows, shows)


class _Bar:
    """A progress bar for functions that report (what, done, total)."""

    def __enter__(self) -> Progress:
        self._bar = tqdm(desc="memory", unit="B", unit_scale=True, leave=False, disable=None)
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _show(self, what: str, done: int, total: int) -> None:
        self._bar.set_description(what, refresh=False)
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()
