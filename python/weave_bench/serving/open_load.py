"""Requests that arrive on their own: npu-weave beside the base model alone, by adapters, rate and skew."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weave_bench.results import Row, Table
from weave_bench.serving.comparison import Trial, compare, rows
from weave_bench.serving.metrics import Figures, Slo, measure, typical
from weave_bench.serving.models import Adapter
from weave_bench.serving.records import Call, Outcome, Wave
from weave_bench.serving.systems import Engine
from weave_bench.serving.traffic import send
from weave_bench.serving.workload import Asked, Prompts, arrivals, calls

ALONE = "base model alone"
SETTLED = 30.0
"""Seconds given to answer what is on its way when the last request has come."""
_SINGLES = 8
"""About as many requests are sent one by one to find latencies without load."""

Target = tuple[str, str]

COLUMNS = {
    **{f"{name} p{p}": f"ms, {text}" for name, text in (
        ("TTFT", "from when a request was due to its first token"),
        ("TPOT", "a token after the first, mean of each request"),
        ("ITL", "between two pieces of an answer"),
    ) for p in (50, 90, 99)},
    "prefill": "prompt tokens a second while requests arrive",
    "decode": "generated tokens a second while requests arrive",
    "to the end": "prompt and generated tokens a second until the last answer is whole",
    "goodput": "requests a second answered whole and within the bounds (see settings)",
    "unfinished": "requests given up unanswered",
    "errors": "requests that failed",
    "client CPU": "processor seconds a second of the measuring client",
    "stolen": "share of the cores' time that the host of this machine gave to others meanwhile",
}  # fmt: skip
COMPARED = ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "ITL p50", "ITL p99", "prefill", "decode", "goodput")


@dataclass(frozen=True)
class Traffic:
    """What requests of one model look like.

    Attributes:
        texts: where prompts come from.
        lengths: tokens of every prompt and every answer; None takes the tasks' own.
        crowd: requests sent at once to find how many an engine answers a second.
    """

    texts: Prompts
    lengths: tuple[int, int] | None = None
    crowd: int = 96

    def paced(
        self, alpha: float, rate: float, horizon: float, adapters: Sequence[Asked], targets: Sequence[Target]
    ) -> Callable[[int], Wave]:
        """Repeat -> the requests that arrive in it; the repeat is the seed, so all systems get the same."""
        domains = [adapter.domain for adapter in adapters]

        def wave(repeat: int) -> Wave:
            made = calls(arrivals(rate, horizon, repeat), alpha, domains, targets, self.texts, self.lengths)
            return Wave(made, horizon + SETTLED)

        return wave


def saturate(traffic: Traffic, targets: Sequence[Target], adapters: Sequence[Adapter], repeats: int) -> float:
    """Requests a second that a system answers when many come at once, the best of some: adapters in equal shares."""
    pace = traffic.paced(1.0, traffic.crowd, 1.0, adapters, targets)
    crowds = [
        [Call(0.0, call.url, call.model, call.prompt, call.tokens) for call in pace(seed).calls]
        for seed in range(repeats + 1)
    ]
    found = send([Wave(crowd) for crowd in crowds], "calibrate")[1:]  # the first warms up
    return max(len(outcome.replies) / outcome.seconds for outcome in found)


def unloaded(traffic: Traffic, engine: Engine, adapters: Sequence[Adapter]) -> Slo:
    """Median TTFT and TPOT of one engine's own model, one request at a time: what bounds are multiples of."""
    pace = traffic.paced(1.0, _SINGLES, 1.0, adapters, [engine.target(None)] * len(adapters))
    alone = [Wave([Call(0.0, call.url, call.model, call.prompt, call.tokens)]) for call in pace(0).calls]
    return typical(send(alone, "unloaded latency"))


def arrivals_table(
    alone: Engine, weaves: Sequence[Engine], loads: Sequence[tuple[float, float]], horizon: float, repeats: int,
    slo: Slo, traffic: Traffic,
) -> Table:  # fmt: skip
    """Each of `weaves` with its adapters beside the base model alone, at each of `loads` (requests a second, alpha)."""
    trials = [_trial(alone, weave, rate, alpha, horizon, slo, traffic) for rate, alpha in loads for weave in weaves
              if alpha == 1 or len(_adapters(weave)) > 1]  # fmt: skip
    made: list[Row] = []
    for trial, found in zip(trials, compare(trials, repeats, "arrivals"), strict=True):
        made += rows(trial, found, list(COLUMNS), COMPARED, " / base")
    ratios = {f"{key} / base": f"{key} over that of the base model alone" for key in COMPARED}
    return Table("arrivals", "Requests that arrive on their own", COLUMNS | ratios, made, _SHOWS)


def _trial(
    alone: Engine, weave: Engine, rate: float, alpha: float, horizon: float, slo: Slo, traffic: Traffic
) -> Trial:
    adapters = _adapters(weave)
    figures: Callable[[Outcome], Figures] = functools.partial(measure, horizon=horizon, slo=slo)
    to_base = [alone.target(None)] * len(adapters)
    to_adapters = [weave.target(adapter) for adapter in adapters]
    return Trial(
        {"adapters": len(adapters), "rate": rate, "alpha": alpha},
        {
            ALONE: traffic.paced(alpha, rate, horizon, adapters, to_base),
            "npu-weave": traffic.paced(alpha, rate, horizon, adapters, to_adapters),
        },
        ALONE,
        figures,
    )


def _adapters(engine: Engine) -> Sequence[Adapter]:
    return engine.spec.adapters or ()


_SHOWS = (
    "Poisson arrivals, shares of adapters by a power law. The base model alone is plain vLLM and is asked the same "
    "prompts at the same instants, so it stands for what no adapter would cost; it does not do the same job. Each row"
    " of npu-weave is set against the row before it, repeat by repeat. The ratios hold the experts that more adapters"
    " touch in a batch, npu-weave's own work in a step, and the server's around it. With a model this small most of a"
    " step is the server's and the framework's fixed work, so experts weigh less here than on a large model, and "
    "fixed costs more: ratios carry over in direction, not in size, and milliseconds not at all. Ratios of throughput"
    " stay at 1 as long as both keep up with the arrivals. Latencies of many requests at once are those of a machine "
    "that client and servers share."
)
