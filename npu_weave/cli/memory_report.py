"""A memory measurement as tables for people and as one JSON object."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from npu_weave.residency.footprint import Footprint, Reading, Step
    from npu_weave.residency.footprint_formula import Need

_ORIGINS = {
    "adapters": "the adapters' own",
    "expert configurations": "the expert configurations given",
    "synthetic": "SYNTHETIC, made up to the statistics of the paper's ten adapters",
}
PIPE_WIDTH = 120  # columns, where there is no terminal to fit into


def footprint_document(footprint: Footprint) -> dict[str, Any]:
    """The measurement as JSON values; every size in bytes, `waste` and `fragmentation` as ratios."""
    source = footprint.source
    return {
        "title": source.title,
        "expert_sets": source.origin,
        "geometry": source.geometry.to_dict(),
        "page_bytes": footprint.closed.page_bytes,
        "expert_bytes": source.geometry.expert_nbytes,
        "e_max": source.e_max,
        "layers": {"measured": list(footprint.layers), "all": list(source.geometry.moe_layers)},
        "measured": [_step_fields(step, step.measured) | _reading_fields(step.reading) for step in footprint.steps],
        "computed_for_all_layers": [
            _step_fields(step, step.full) | {"paged_bytes": step.full.paged_bytes, "waste": _paging_waste(step.full)}
            for step in footprint.steps
        ],
        "reserved_bytes": footprint.reserved_bytes,
        "after_unloading": _reading_fields(footprint.unloaded),
        "after_closing": {
            "pages": footprint.closed.pages,
            "reservations": footprint.closed.reservations,
            "rss_shmem_bytes": footprint.closed_shmem_bytes,
        },
    }


def print_footprint(footprint: Footprint) -> None:
    """Prints the measurement as tables on stdout."""
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    source, geometry = footprint.source, footprint.source.geometry
    measured, every = len(footprint.layers), len(geometry.moe_layers)
    console.print(f"Expert weights of {source.title}", style="bold")
    console.print(
        f"{every} MoE layers of {geometry.num_experts} experts of {geometry.expert_nbytes} bytes; "
        f"pages of {footprint.closed.page_bytes >> 20} MiB; E_max = {source.e_max}"
    )
    console.print(f"sets of experts: {_ORIGINS[source.origin]}")
    depth = f"all {every} MoE layers" if measured == every else f"ONLY {measured} of {every} MoE layers"
    console.print(f"\nMEASURED: {depth}")
    console.print(_measured_table(footprint))
    if measured < every:
        console.print(f"\nCOMPUTED, not measured: all {every} MoE layers, pages by formula")
        console.print(_computed_table(footprint))
    base, unloaded = footprint.steps[0].reading, footprint.unloaded
    ending = Table(box=None, show_header=False, pad_edge=False)
    ending.add_row("base before any adapter", _mapped(base.driver_bytes, base.shmem_bytes))
    ending.add_row("all adapters unloaded", _mapped(unloaded.driver_bytes, unloaded.shmem_bytes))
    ending.add_row("all closed", _mapped(footprint.closed.mapped_bytes, footprint.closed_shmem_bytes))
    console.print("\nGiven back, bytes")
    console.print(ending)
    console.print()


def _mapped(driver: int, shmem: int) -> str:
    return f"{driver} (driver)  {shmem} (RssShmem)"


def _measured_table(footprint: Footprint) -> Table:
    unit, size = _unit(footprint.steps[0].measured.exact_bytes)
    table = _table("exact", "mapped,\ndriver", "mapped,\nRssShmem", unit=unit)
    for step in footprint.steps:
        read, needed = step.reading, step.measured
        sizes = (read.exact_bytes, read.driver_bytes, read.shmem_bytes)
        _add_row(table, step, needed, sizes, read.waste, size)
    return table


def _computed_table(footprint: Footprint) -> Table:
    unit, size = _unit(footprint.steps[0].full.exact_bytes)
    table = _table("exact", "pages by\nformula", unit=unit)
    for step in footprint.steps:
        sizes = (step.full.exact_bytes, step.full.paged_bytes)
        _add_row(table, step, step.full, sizes, _paging_waste(step.full), size)
    return table


def _table(*sizes: str, unit: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("adapters")
    table.add_column("tuned\nexperts", justify="right")
    for name in sizes:
        table.add_column(f"{name}\n{unit}" if "\n" not in name else f"{name} {unit}", justify="right")
    for name in ("waste\n%", f"padded\n{unit}", "F_mem", f"merged\n{unit}"):
        table.add_column(name, justify="right")
    return table


def _add_row(table: Table, step: Step, needed: Need, sizes: tuple[int, ...], waste: float, unit: int) -> None:
    table.add_row(
        f"{step.adapters} + {step.added}" if step.added else "0, base only",
        str(needed.experts),
        *(f"{size / unit:.3f}" for size in sizes),
        f"{100 * waste:.2f}",
        f"{needed.padded_bytes / unit:.3f}",
        f"{needed.fragmentation:.3f}",
        f"{needed.merged_bytes / unit:.3f}",
    )


def _unit(nbytes: int) -> tuple[str, int]:
    return ("GiB", 1 << 30) if nbytes >= 1 << 29 else ("MiB", 1 << 20)


def _paging_waste(needed: Need) -> float:
    return needed.paged_bytes / needed.exact_bytes - 1


def _step_fields(step: Step, needed: Need) -> dict[str, Any]:
    return {
        "adapters": step.adapters,
        "added": step.added,
        "experts": needed.experts,
        "exact_bytes": needed.exact_bytes,
        "padded_bytes": needed.padded_bytes,
        "fragmentation": needed.fragmentation,
        "merged_bytes": needed.merged_bytes,
    }


def _reading_fields(reading: Reading) -> dict[str, Any]:
    return {
        "exact_bytes": reading.exact_bytes,
        "driver_bytes": reading.driver_bytes,
        "rss_shmem_bytes": reading.shmem_bytes,
        "waste": reading.waste,
    }
