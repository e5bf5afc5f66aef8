"""Two adapters: one npu-weave engine beside two engines with a merged checkpoint each, of the same total resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from weave_bench.results import Row, Table
from weave_bench.serving.comparison import Trial, compare, rows
from weave_bench.serving.metrics import Figures, Slo, measure
from weave_bench.serving.models import Adapter
from weave_bench.serving.open_load import COLUMNS, Target, paced
from weave_bench.serving.records import Outcome, Wave
from weave_bench.serving.workload import Prompts, shares

MERGED = "two merged engines"
_LATENCIES = tuple(key for key in COLUMNS if key.startswith(("TTFT", "TPOT", "ITL")))
_TOTAL = "prefill + decode"
_COLUMNS = {**COLUMNS, _TOTAL: "tokens a second while requests arrive, of prompts and generated"}
_COMPARED = ("prefill", "decode", _TOTAL, "goodput", *_LATENCIES)


def merged_table(
    asked: Mapping[str, Sequence[Target]], adapters: Sequence[Adapter], loads: Sequence[tuple[float, float]],
    capacity: float, horizon: float, repeats: int, slo: Slo, texts: Prompts,
) -> Table:  # fmt: skip
    """Systems beside the merged engines.

    Args:
        asked: system -> whom requests of each adapter ask; `MERGED` among them.
        adapters: in the order of their shares.
        loads: (rate over `capacity`, alpha). Above 1 queues grow, latencies say nothing and throughput does.
        capacity: requests a second.
    """
    trials = []
    for load, alpha in loads:
        rate = round(load * capacity, 1)
        labels = {"load": load, "rate": rate, "alpha": alpha, "larger share": round(shares(len(adapters), alpha)[0], 2)}
        waves = {
            name: _cut(paced(alpha, rate, horizon, adapters, targets, texts), horizon if load >= 1 else None)
            for name, targets in asked.items()
        }
        trials.append(Trial(labels, waves, MERGED, _figures(horizon, slo, full=load >= 1)))
    made: list[Row] = []
    for trial, found in zip(trials, compare(trials, repeats, "merged"), strict=True):
        made += rows(trial, found, list(_COLUMNS), _COMPARED, " / merged")
    ratios = {f"{key} / merged": f"{key} over that of the two merged engines" for key in _COMPARED}
    return Table("merged", "One engine with two adapters, or two engines", _COLUMNS | ratios, made, _SHOWS)


def _cut(pace: Callable[[int], Wave], limit: float | None) -> Callable[[int], Wave]:
    if limit is None:
        return pace
    return lambda repeat: _limited(pace(repeat), limit)


def _limited(wave: Wave, limit: float) -> Wave:
    return Wave(wave.calls, limit)


def _figures(horizon: float, slo: Slo, *, full: bool) -> Callable[[Outcome], Figures]:
    """Figures of a run; of one with more than can be served, without latencies, which only say how long it went on."""

    def figures(outcome: Outcome) -> Figures:
        found = dict(measure(outcome, horizon, slo))
        prefill, decode = found["prefill"], found["decode"]
        assert prefill is not None and decode is not None
        found[_TOTAL] = prefill + decode
        return {**found, **dict.fromkeys(_LATENCIES)} if full else found

    return figures


_SHOWS = (
    "The paper's comparison: two checkpoints, each with one adapter merged in, served by an engine each, beside one "
    "engine with both adapters. The merged engines have half the KV cache and half the threads each; both sides may "
    "use every core, and the operating system shares cores out among the merged engines' processes. `load` is the "
    "rate over what npu-weave answers a second when many requests come at once; above 1 both have more than they can "
    "do, and throughput is what they get done. The paper finds +14 to 18 % decode and +7 to 14 % prefill on NPUs. "
    "What decides here is different: two engines run two Python schedulers and servers at once on the cores, where "
    "one engine runs one, and the small model keeps neither busy with computing alone. So this shows how the two "
    "behave on a small host, not what a device that computes all the time would gain; KV cache never runs short with "
    "this model, where on a device it does."
)
