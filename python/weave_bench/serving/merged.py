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
_TO_THE_END = "to the end"
_LATENCIES = tuple(key for key in COLUMNS if key.startswith(("TTFT", "TPOT", "ITL")))
_TOTAL = "prefill + decode"
_COLUMNS = {
    **{key: text for key, text in COLUMNS.items() if key != _TO_THE_END},
    "prefill": "prompt tokens a second while requests arrive; above load 1 once it has settled",
    "decode": "generated tokens a second, likewise",
    _TOTAL: "tokens a second of prompts and generated, likewise",
    "unfinished": "requests not answered when the run ended; above load 1 what has piled up by then",
}
_COMPARED = ("prefill", "decode", _TOTAL, "goodput", *_LATENCIES)


@dataclass(frozen=True)
class Pair:
    """A model with two adapters, and what is asked of it.

    Attributes:
        model: name for people.
        adapters: two, the one with the larger share first.
        loads: (rate over what npu-weave answers a second when many come at once, alpha). Above 1 queues grow:
            latencies say nothing then, and throughput does.
        horizon: seconds in which requests arrive below load 1.
        settled, measured: above load 1: seconds that pass first, and those of which throughput is measured then.
        step_tokens: most tokens a step, in every engine of the model.
        variants: whether merged engines with all threads each are measured as well, at the last load.
    """

    model: str
    base: Path
    adapters: Sequence[Adapter]
    traffic: Traffic
    loads: Sequence[tuple[float, float]]
    horizon: float
    settled: float
    measured: float
    step_tokens: int
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
    trials = [_trial(pair, load, alpha, asked, round(load * capacity, 2), slo) for load, alpha in pair.loads]
    made: list[Row] = []
    for trial, found in zip(trials, compare(trials, repeats, f"merged, {pair.model}", again=again), strict=True):
        made += rows(trial, found, list(_COLUMNS), _COMPARED, " / merged")
    return made


def merged_table(found: Sequence[Row]) -> Table:
    """The rows of all models."""
    ratios = {f"{key} / merged": f"{key} over that of the two merged engines" for key in _COMPARED}
    return Table("merged", "One engine with two adapters, or two engines", _COLUMNS | ratios, list(found), _SHOWS)


def _trial(
    pair: Pair, load: float, alpha: float, asked: Mapping[str, Sequence[Target]], rate: float, slo: Slo
) -> Trial:
    """One load. Of more than can be done only throughput is known: the rest says how long it went on."""
    over = load >= 1
    begin, end = (pair.settled, pair.settled + pair.measured) if over else (0.0, pair.horizon)
    share = round(shares(len(pair.adapters), alpha)[0], 2)
    labels: dict[str, Label] = {
        "model": pair.model, "load": load, "rate": rate, "alpha": alpha, "larger share": share,
    }  # fmt: skip

    def waves(targets: Sequence[Target]) -> Callable[[int], Wave]:
        pace = pair.traffic.paced(alpha, rate, end, pair.adapters, targets)
        return (lambda repeat: Wave(pace(repeat).calls, end)) if over else pace  # what has piled up is given up

    def figures(outcome: Outcome) -> Figures:
        found = dict(measure(outcome, end, slo, begin))
        prefill, decode = found["prefill"], found["decode"]
        assert prefill is not None and decode is not None
        found[_TOTAL] = prefill + decode
        return {**found, **dict.fromkeys(("goodput", *_LATENCIES))} if over else found

    systems = [name for name in asked if name in (MERGED, WEAVE) or (load, alpha) == pair.loads[-1]]
    return Trial(labels, {name: waves(asked[name]) for name in systems}, MERGED, figures)


_SHOWS = (
    "The paper's comparison: two checkpoints, each with one adapter merged in, served by an engine each, beside one "
    "engine with both adapters. The merged engines have half the KV cache and half the threads each; both sides may "
    "use every core. So what one merged engine leaves idle under skew the other cannot use, unless two of these cores "
    "are one core's two threads, as on many hosts; in the paper both instances share their NPUs, which is nearer to "
    "`all threads each`, where the threads of two engines contend instead. `load` is the rate over what npu-weave "
    "answers a second when many requests come at once. Above 1 both sides have more than they can do: requests pile "
    "up, latencies and goodput are left out, and throughput is what they get done. It is measured once as many "
    "answers end as begin: vLLM takes up new prompts beside running answers, and right after a start prompts are all "
    "there is. So that this comes soon, steps of `wide` are short, as many tokens as one prompt and its share of "
    "running answers (see settings); from an empty server, with steps as long as a processor takes seconds for, any "
    "ratio may be had. The paper finds +14 to 18 % decode and +7 to 14 % prefill on NPUs under skew. `wide` is a "
    "model of random weights with experts large enough that a step is mostly reading and computing them, as on a "
    "device; `weave-tiny` is the small real model, where a step is mostly Python: there two engines run two "
    "schedulers and two servers at once on the cores, and one engine only one. Random weights choose experts nearly "
    "evenly; a trained model's choice is more uneven, which makes batches of one adapter touch fewer experts. KV "
    "cache never runs short here; on a device that holds merged checkpoints it does, which adds to what the paper "
    "gains. A virtual machine's host may take cores away, unevenly: repeats of which it took most were measured once "
    "more, all systems again, whatever they had shown; `stolen` is what was left of that."
)
