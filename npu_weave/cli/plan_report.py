"""A memory plan as tables for people and as one JSON object."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from npu_weave.residency.plan import Design, Plan
    from npu_weave.residency.plan_paper import Comparison, PaperFigures

PIPE_WIDTH = 120  # columns, where there is no terminal to fit into
GIB = 1 << 30
SHOWN = 12  # numbers of adapters in a table, at most

_MEANINGS: dict[Design, str] = {
    "exact": "base and tuned experts alone",
    "mapped": "npu-weave: whole pages of 2 MiB",
    "padded": "a grid of E_max rows an adapter and layer",
    "merged": "an engine and a full model for each adapter",
}
_DESIGN_NAMES: dict[Design, str] = {"mapped": "ExpertWeave (mapped)", "padded": "padded", "merged": "merged"}
_QUANTITIES = {"weights": "weights, GiB", "kv_tokens": "KV cache, tokens", "fragmentation": "F_mem, padded over exact"}


def plan_document(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values; every size in bytes, of one device."""
    from npu_weave.residency.plan import DESIGNS, MOST_ADAPTERS, PAGE_BYTES
    from npu_weave.residency.plan_settings import choose_settings

    base, budget, settings = plan.base, plan.budget, choose_settings(plan)
    return {
        "base": {
            "title": base.title,
            "origin": base.origin,
            "tensor_parallel_size": base.ranks,
            "geometry": base.geometry.to_dict(),
            "expert_bytes": base.geometry.expert_nbytes,
            "parts": {**base.parts, "routed experts": base.expert_bytes},
            "weights_bytes": base.weights_bytes,
            "kv_bytes_per_token": base.kv_token_bytes,
        },
        "device": {
            "memory_bytes": budget.memory_bytes,
            "utilization": budget.utilization,
            "overhead_bytes": budget.overhead_bytes,
            "least_kv_tokens": budget.least_tokens,
        },
        "page_bytes": PAGE_BYTES,
        "e_max": plan.e_max,
        "adapters": [
            {"name": name, "experts": sum(map(len, sets.values())), "most_in_a_layer": max(map(len, sets.values()))}
            for name, sets in plan.loaded
        ],
        "fragmentation": plan.need(plan.count).fragmentation,
        "rows_per_layer": {str(layer): rows for layer, rows in plan.rows(plan.count).items()},
        "designs": {
            design: vars(plan.outcome(design, plan.count))
            | {"most_adapters": plan.most[design], "most_is_limit": plan.most[design] == MOST_ADAPTERS}
            for design in DESIGNS
        },
        "steps": [
            {"adapters": count} | {design: vars(plan.outcome(design, count)) for design in DESIGNS}
            for count in _steps(plan.count)
        ],
        "settings": None if settings is None else vars(settings) | {"arguments": list(settings.arguments)},
    }


def print_plan(plan: Plan) -> None:
    """Prints the plan as tables on stdout."""
    from npu_weave.residency.plan_settings import choose_settings

    console, base, budget = _console(), plan.base, plan.budget
    shares = "" if base.ranks == 1 else f", one of {base.ranks} tensor parallel ranks"
    console.print(f"Memory of one device for {base.title}{shares}", style="bold")
    console.print(
        f"{len(base.geometry.moe_layers)} MoE layers of {base.geometry.num_experts} experts of "
        f"{base.geometry.expert_nbytes} bytes; {base.kv_token_bytes} bytes of KV cache a token"
    )
    console.print(
        f"{budget.memory_bytes / GIB:.2f} GiB, {budget.utilization:.0%} of it for the engine, "
        f"{budget.overhead_bytes / GIB:.2f} GiB of that for neither weights nor KV cache"
    )
    console.print(f"\nBase weights, from the {base.origin}")
    console.print(_parts_table(plan))
    if plan.count:
        console.print(f"\n{_adapters_line(plan)}")
        console.print(_designs_table(plan))
        console.print("\nBy number of adapters: weights, and KV cache in tokens")
        console.print(_steps_table(plan))
    else:
        tokens = plan.outcome("exact", 0).kv_tokens
        console.print(f"\nno adapters; {tokens} tokens of KV cache beside the base model")
        return
    settings = choose_settings(plan)
    if settings is None:
        console.print("\nno adapter fits beside the base model and a request of the longest length", style="bold")
        return
    short = "" if settings.max_loras == plan.count else f" (of {plan.count}: the others do not fit at once)"
    console.print(f"\nSettings for {settings.max_loras} adapters at once{short}", style="bold")
    # for copying: not cut into lines
    console.print(shlex.join(settings.arguments), soft_wrap=True)
    console.print(
        f"adapter memory holds them however their rows come to lie; {settings.kv_tokens} tokens of KV cache beside it"
    )


def paper_document(found: PaperFigures) -> dict[str, Any]:
    """The comparison with the paper as JSON values."""
    return {
        "fitted_overhead_bytes": found.overhead_bytes,
        "figures": [vars(figure) | {"deviation": figure.deviation} for figure in found.figures],
    }


def print_paper(found: PaperFigures) -> None:
    """Prints the comparison with the paper on stdout."""
    console = _console()
    console.print("The memory figure of the ExpertWeave paper (arXiv 2508.17624)", style="bold")
    console.print("one device of 64 GiB, DeepSeek-V2-Lite; gate-math, then gate-intent, then token-math")
    console.print(f"fitted: {found.overhead_bytes / GIB:.3f} GiB neither weights nor KV cache, of 90 % of the device\n")
    table = _table("quantity", "design", right=("adapters", "computed", "published", "deviation"))
    for figure in found.figures:
        row = (_number(figure, figure.computed), _number(figure, figure.published), f"{figure.deviation:+.2%}")
        table.add_row(_QUANTITIES[figure.quantity], _DESIGN_NAMES[figure.design], str(figure.adapters), *row)
    console.print(table)


def _number(figure: Comparison, value: float) -> str:
    return f"{value:.0f}" if figure.quantity == "kv_tokens" else f"{value:.2f}"


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _table(*left: str, right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _parts_table(plan: Plan) -> Table:
    unit, size = _unit(plan)
    table = _table("part", right=(unit,))
    for part, nbytes in {**plan.base.parts, "routed experts": plan.base.expert_bytes}.items():
        table.add_row(part, f"{nbytes / size:.3f}")
    table.add_row("all", f"{plan.base.weights_bytes / size:.3f}")
    return table


def _unit(plan: Plan) -> tuple[str, int]:
    return ("GiB", GIB) if plan.base.weights_bytes >= GIB >> 1 else ("MiB", 1 << 20)


def _adapters_line(plan: Plan) -> str:
    base = plan.base.geometry.num_experts
    rows = [count - base for count in plan.rows(plan.count).values()]
    return (
        f"{plan.count} adapters, {sum(rows)} tuned experts; rows a layer: {base} and {min(rows)} to {max(rows)} "
        f"(mean {sum(rows) / len(rows):.1f}); E_max = {plan.e_max}, F_mem = {plan.need(plan.count).fragmentation:.3f}"
    )


def _designs_table(plan: Plan) -> Table:
    from npu_weave.residency.plan import DESIGNS, MOST_ADAPTERS

    unit, size = _unit(plan)
    sizes = tuple(f"{name}\n{unit}" for name in ("weights", "over base", "left"))
    table = _table("design", "", right=(*sizes, "KV cache\ntokens", "most\nadapters"))
    for design in DESIGNS:
        outcome, most = plan.outcome(design, plan.count), plan.most[design]
        table.add_row(
            design,
            _MEANINGS[design],
            f"{outcome.weights_bytes / size:.2f}",
            f"{(outcome.weights_bytes - plan.base.weights_bytes) / size:.2f}",
            f"{outcome.left_bytes / size:.2f}",
            str(outcome.kv_tokens) if outcome.fits else "does not fit",
            f"{most} or more" if most == MOST_ADAPTERS else str(most),
        )
    return table


def _steps_table(plan: Plan) -> Table:
    from npu_weave.residency.plan import DESIGNS

    unit, size = _unit(plan)
    names = tuple(f"{design}\n{column}" for design in DESIGNS for column in (unit, "tokens"))
    table = _table("adapters", right=names)
    for count in _steps(plan.count):
        cells = []
        for design in DESIGNS:
            outcome = plan.outcome(design, count)
            cells += [f"{outcome.weights_bytes / size:.2f}", str(outcome.kv_tokens) if outcome.fits else "-"]
        name = plan.loaded[count - 1][0] if count > 0 and plan.count < SHOWN else ""
        table.add_row(f"{count} + {name}" if name else str(count), *cells)
    return table


def _steps(count: int) -> list[int]:
    """0 to `count` where that is few, else powers of two and `count`."""
    if count < SHOWN:
        return list(range(count + 1))
    powers = [1 << power for power in range(count.bit_length())]
    return sorted({0, *powers[-(SHOWN - 2) :], count})
