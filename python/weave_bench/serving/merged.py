"""Two adapters: one npu-weave engine beside two engines with a merged checkpoint each, of the same total resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from weave_bench.results import Label, Row, Table
from weave_bench.serving.comparison import Trial, compare, rows
from weave_bench.serving.metrics import Figures, Slo, measure
from weave_bench.serving.models import Adapter
from weave_bench.serving.open_load import COLUMNS, Target, Traffic
from weave_bench.serving.records import Outcome, Wave
from weave_bench.serving.workload import shares

MERGED = "two merged engines"
MERGED_WHOLE = "two merged engines, all threads each"
WEAVE = "npu-weave"
WEAVE_HALF = "npu-weave, half the threads"
_LATENCIES = tuple(key for key in COLUMNS if key.startswith(("TTFT", "TPOT", "ITL")))
_BACKLOG = 120.0
"""Seconds given to answer what has piled up when the last request has come."""
_TOTAL = "prefill + decode"
_COLUMNS = {**COLUMNS, _TOTAL: "tokens a second while requests arrive, of prompts and generated"}
_COMPARED = ("prefill", "decode", _TOTAL, "to the end", "goodput", *_LATENCIES)


@dataclass(frozen=True)
class Pair:
    """A model with two adapters, and what is asked of it.

    Attributes:
        model: name for people.
        adapters: two, the one with the larger share first.
        loads: (rate over what npu-weave answers a second when many come at once, alpha). Above 1 queues grow:
            latencies say nothing then, and throughput does.
        horizon: seconds in which requests arrive.
        variants: whether both sides are also measured with the other's number of threads an engine, at the last load.
    """

    model: str
    base: Path
    adapters: Sequence[Adapter]
    traffic: Traffic
    loads: Sequence[tuple[float, float]]
    horizon: float
    variants: bool = False


def merged_rows(
    pair: Pair, asked: Mapping[str, Sequence[Target]], capacity: float, repeats: int, slo: Slo, *, again: int
) -> list[Row]:
    """Systems beside the merged engines.

    Args:
        pair: the model.
        asked: system -> whom requests of each adapter ask; `MERGED` among them.
        capacity: requests a second, what loads are shares of.
        repeats: of every load.
        slo: bounds for goodput.
        again: see `compare`.
    """
    trials = []
    for load, alpha in pair.loads:
        rate = round(load * capacity, 2)
        share = round(shares(len(pair.adapters), alpha)[0], 2)
        labels: dict[str, Label] = {
            "model": pair.model,
            "load": load,
            "rate": rate,
            "alpha": alpha,
            "larger share": share,
        }
        over = load >= 1
        waves = {
            name: _waves(pair.traffic.paced(alpha, rate, pair.horizon, pair.adapters, targets), pair.horizon, over)
            for name, targets in asked.items()
            if name in (MERGED, WEAVE) or (load, alpha) == pair.loads[-1]
        }
        trials.append(Trial(labels, waves, MERGED, _figures(pair.horizon, slo, over)))
    made: list[Row] = []
    for trial, found in zip(trials, compare(trials, repeats, f"merged, {pair.model}", again=again), strict=True):
        made += rows(trial, found, list(_COLUMNS), _COMPARED, " / merged")
    return made


def merged_table(found: Sequence[Row]) -> Table:
    """The rows of all models."""
    ratios = {f"{key} / merged": f"{key} over that of the two merged engines" for key in _COMPARED}
    return Table("merged", "One engine with two adapters, or two engines", _COLUMNS | ratios, list(found), _SHOWS)


def _waves(pace: Callable[[int], Wave], horizon: float, over: bool) -> Callable[[int], Wave]:
    """Where more comes than can be done, answering all of it takes longer."""
    return (lambda repeat: Wave(pace(repeat).calls, horizon + _BACKLOG)) if over else pace


def _figures(horizon: float, slo: Slo, over: bool) -> Callable[[Outcome], Figures]:
    """Figures of a run; of one with more than can be done, without latencies, which only say how long it went on."""

    def figures(outcome: Outcome) -> Figures:
        found = dict(measure(outcome, horizon, slo))
        prefill, decode = found["prefill"], found["decode"]
        assert prefill is not None and decode is not None
        found[_TOTAL] = prefill + decode
        return {**found, **dict.fromkeys(_LATENCIES)} if over else found

    return figures


_SHOWS = (
    "The paper's comparison: two checkpoints, each with one adapter merged in, served by an engine each, beside one "
    "engine with both adapters. The merged engines have half the KV cache and half the threads each; both sides may "
    "use every core. So what one merged engine leaves idle under skew the other cannot use; in the paper both "
    "instances share their NPUs, which is nearer to `all threads each`, where the threads of two engines contend "
    "instead. `load` is the rate over what npu-weave answers a second when many requests come at once; above 1 both "
    "sides have more than they can do, latencies are left out, and throughput is what they get done: `to the end` "
    "over all work until it is done, prefill and decode while requests arrive. Those two start from an empty server "
    "and depend on how long that lasts: vLLM takes up new prompts beside running answers, so a side that falls behind"
    " first shows fewer generated tokens, and their ratio overstates what a long run would show. The paper finds +14 "
    "to 18 % decode and +7 to 14 % prefill on NPUs under skew. `wide` is a model of random weights with experts large"
    " enough that a step is mostly reading and computing them, as on a device; `weave-tiny` is the small real model, "
    "where a step is mostly Python: there two engines run two schedulers and two servers at once on the cores, and "
    "one engine only one. Random weights choose experts nearly evenly; a trained model's choice is more uneven, which"
    " makes batches of one adapter touch fewer experts. KV cache never runs short here; on a device that holds merged"
    " checkpoints it does, which adds to what the paper gains. A virtual machine's host may take cores away, "
    "unevenly: repeats of which it took most were measured once more, all systems again, whatever they had shown; "
    "`stolen` is what was left of that."
)
