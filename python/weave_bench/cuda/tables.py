"""The part's three tables: what their columns mean, what they show, and how a row comes from times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from weave_bench.cuda.limits import Work
from weave_bench.cuda.traffic import ADAPTERS
from weave_bench.results import Label, Row, Spread, Table, ratios, spread

_TEXTS: dict[str, tuple[str, dict[str, str], str]] = {
    "gpu-overhead": (
        "A layer with adapters beside base tokens, on a GPU",
        {
            "base": "microseconds a step, the same tokens with the same choice of experts, all for the base model",
            "adapters": "microseconds a step",
            "time ratio": "adapters over base, in pairs",
            "base rows": "distinct expert rows on this GPU that a step of base tokens touches, on average",
            "adapter rows": "the same of the adapters' tokens",
            "row ratio": "adapter rows over base rows: what physics asks for in decode, an upper bound in prefill",
            "time / rows": "time ratio over row ratio: above 1 is npu-weave's own, below it computing hides reading",
            "floor": "microseconds: the rows touched at the speed of a large copy, or the operations at that of a "
            "large product, whichever takes longer",
            "reached": "percent: floor over time with adapters",
            "base reached": "percent: the base tokens' floor over their time",
        },
        "One MoE layer, gating to weighted sum; attention, shared experts and everything else of a model are not in "
        f"it. All {ADAPTERS} adapters are loaded; `adapters` says how many of them the tokens use, dealt evenly. "
        "Launched one by one (eager), small batches take as long as Python needs to launch them, whatever they touch: "
        "graphs show the device's own time. Which experts adapters tune, and how the router chooses, is made up.",
    ),
    "gpu-parity": (
        "The same work two ways, on a GPU",
        {
            "npu-weave": "microseconds a step with virtual weight tensors, all adapters loaded",
            "other": "microseconds a step of what it is compared with",
            "ratio": "npu-weave over other, in pairs; 1 is the aim",
        },
        "Virtual against padded: the same kernel, rows and tokens, with memory under the rows in use or under all. "
        "Base tokens: in the layer with all adapters loaded, against ordinary tensors of base experts alone. One "
        "adapter: against ordinary tensors of the merged model's experts. Outputs were the same in every bit, or "
        "nothing would stand here.",
    ),
    "gpu-separate": (
        "A layer with rerouting in separate operators, on a GPU",
        {
            "fused": "microseconds a step with gating and rerouting in one kernel",
            "reroute / fused": "time with our rerouting operator after the gating over fused, in pairs",
            "layers": "time with torch operators after the gating (the paper's SingleOp) over fused, in pairs",
            "reroute adds": "microseconds a step",
            "separate adds": "microseconds a step",
        },
        "The whole layer each time, so that ratios say what rerouting is worth in it; the paper's are of whole models.",
    ),
}

TABLES = tuple(_TEXTS)


def make_table(name: str, rows: Sequence[Row]) -> Table:
    """The table of a name of `TABLES` with these rows."""
    title, columns, shows = _TEXTS[name]
    return Table(name, title, columns, rows, shows)


def overhead_row(
    labels: Mapping[str, Label],
    times: Mapping[str, Sequence[float]],
    work: Mapping[str, Work],
    floors: Mapping[str, float],
) -> Row:
    """Adapters beside base tokens: times, and the rows that both touch."""
    touched = work["adapters"].rows / work["base"].rows if work["base"].rows else None
    ratio = ratios(times["adapters"], times["base"])
    return Row(
        labels,
        {
            "base": spread(times["base"]),
            "adapters": spread(times["adapters"]),
            "time ratio": ratio,
            "base rows": work["base"].rows,
            "adapter rows": work["adapters"].rows,
            "row ratio": touched,
            "time / rows": None if touched is None else spread([a / b / touched for a, b in _pairs(times)]),
            "floor": floors["adapters"],
            "reached": spread([100 * floors["adapters"] / time for time in times["adapters"]]),
            "base reached": spread([100 * floors["base"] / time for time in times["base"]]),
        },
    )


def parity_rows(labels: Mapping[str, Label], times: Mapping[str, Sequence[float]], adapters: int) -> Iterator[Row]:
    """Two ways that do the same work, for each such pair that was measured."""
    for title, one, other in (
        ("virtual / padded", "adapters", "padded"),
        ("base tokens / base model alone", "base", "base alone"),
        ("one adapter / its merged model", "adapters", "merged"),
    ):
        if other in times:
            yield Row(
                {"compared": title, **labels, "adapters": adapters},
                {
                    "npu-weave": spread(times[one]),
                    "other": spread(times[other]),
                    "ratio": ratios(times[one], times[other]),
                },
            )


def separate_row(labels: Mapping[str, Label], times: Mapping[str, Sequence[float]]) -> Row:
    """Rerouting within the gating's kernel, by our own operator after it, and in torch operators."""
    fused = times["adapters"]

    def added(name: str) -> Spread:
        return spread([one - other for one, other in zip(times[name], fused, strict=True)])

    return Row(
        labels,
        {
            "fused": spread(fused),
            "reroute / fused": ratios(times["reroute"], fused),
            "layers": ratios(times["separate"], fused),
            "reroute adds": added("reroute"),
            "separate adds": added("separate"),
        },
    )


def _pairs(times: Mapping[str, Sequence[float]]) -> Iterator[tuple[float, float]]:
    return zip(times["adapters"], times["base"], strict=True)
