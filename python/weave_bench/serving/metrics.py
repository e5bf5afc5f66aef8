"""From when pieces of answers came to the figures people compare."""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weave_bench.serving.records import Outcome, Reply

Figures = Mapping[str, float | None]
"""Of one run, by name; None for what does not apply."""


@dataclass(frozen=True)
class Slo:
    """A bound an answer should keep, in seconds: to the first token, and the mean of each token after it."""

    ttft: float
    tpot: float

    def kept(self, reply: Reply) -> bool:
        """Whether an answer came whole and within both bounds."""
        time = tpot(reply)
        return reply.finished and ttft(reply) <= self.ttft and (time is None or time <= self.tpot)


def ttft(reply: Reply) -> float:
    """Seconds from when the request was due to the first token. The reply has at least one."""
    return reply.times[0] - reply.due


def tpot(reply: Reply) -> float | None:
    """Seconds a token after the first piece, on average; None where nothing came after it."""
    after = sum(reply.tokens[1:])
    return (reply.times[-1] - reply.times[0]) / after if after else None


def gaps(reply: Reply) -> list[float]:
    """Seconds between the pieces of an answer, which mostly hold one token each."""
    return [later - earlier for earlier, later in zip(reply.times, reply.times[1:], strict=False)]


def percentiles(values: Sequence[float], title: str) -> dict[str, float | None]:
    """The 50th, 90th and 99th, in milliseconds, as ``"TITLE p50"`` and so on; None without a value."""
    if not values:
        return {f"{title} p{p}": None for p in (50, 90, 99)}
    found = np.percentile(np.asarray(values), (50, 90, 99)) * 1e3
    return {f"{title} p{p}": float(value) for p, value in zip((50, 90, 99), found, strict=True)}


def throughput(replies: Sequence[Reply], horizon: float, settled: float = 0.0) -> tuple[float, float]:
    """Prefill and decode tokens a second while requests keep arriving, from `settled` to `horizon` seconds.

    Prefill counts prompts whose first token came in that time; decode counts the tokens after the first.
    What a server still has to do at the end is not waited for: else a server that ends with one half idle would be
    charged for a lull that steady traffic does not have.
    """
    prompt = decoded = 0
    for reply in replies:
        begin, end = bisect.bisect_right(reply.times, settled), bisect.bisect_right(reply.times, horizon)
        decoded += sum(reply.tokens[begin:end])
        if begin == 0 < end:
            prompt += reply.prompt_tokens
            decoded -= 1
    return prompt / (horizon - settled), decoded / (horizon - settled)


def to_the_end(replies: Sequence[Reply]) -> float | None:
    """Prompt and generated tokens a second until the last answer is whole; None where one never was.

    Beside `throughput` it counts the whole work, however a server orders prompts and answers meanwhile.
    """
    if not replies or not all(reply.finished for reply in replies):
        return None
    return sum(reply.prompt_tokens + sum(reply.tokens) for reply in replies) / max(reply.times[-1] for reply in replies)


def measure(outcome: Outcome, horizon: float, slo: Slo, settled: float = 0.0) -> Figures:
    """The figures of one run: latencies in ms, throughput in tokens a second, goodput in requests a second.

    Throughput is that from `settled` to `horizon` seconds, the rest is of all requests.
    """
    begun = [reply for reply in outcome.replies if reply.times]
    times = [time for reply in begun if reply.finished and (time := tpot(reply)) is not None]
    prefill, decode = throughput(outcome.replies, horizon, settled)
    return {
        **percentiles([ttft(reply) for reply in begun], "TTFT"),
        **percentiles(times, "TPOT"),
        **percentiles([gap for reply in begun for gap in gaps(reply)], "ITL"),
        "prefill": prefill,
        "decode": decode,
        "to the end": to_the_end(outcome.replies),
        "goodput": sum(slo.kept(reply) for reply in outcome.replies) / horizon,
        "unfinished": float(sum(not reply.finished and not reply.error for reply in outcome.replies)),
        "errors": float(sum(bool(reply.error) for reply in outcome.replies)),
        "client CPU": outcome.client_cpu,
        "stolen": outcome.stolen,
    }


def typical(outcomes: Sequence[Outcome]) -> Slo:
    """The medians over all replies: what a bound is made a multiple of."""
    replies = [reply for outcome in outcomes for reply in outcome.replies if reply.finished]
    times = [time for reply in replies if (time := tpot(reply)) is not None]
    return Slo(statistics.median(map(ttft, replies)), statistics.median(times))


def step_seconds(outcome: Outcome) -> float:
    """Seconds a decode step while every request of a wave decodes: the mean over that time and all of them.

    Raises:
        ValueError: there was no time in which all decoded.
    """
    first = max(reply.times[0] for reply in outcome.replies)
    last = min(reply.times[-1] for reply in outcome.replies)
    found = []
    for reply in outcome.replies:
        begin, end = bisect.bisect_left(reply.times, first), bisect.bisect_right(reply.times, last) - 1
        tokens = sum(reply.tokens[begin + 1 : end + 1])
        if tokens < 1:
            raise ValueError(f"{len(outcome.replies)} requests never all decoded at once: ask for more tokens")
        found.append((reply.times[end] - reply.times[begin]) / tokens)
    return statistics.fmean(found)


def ratio(one: Figures, other: Figures, key: str) -> float | None:
    """One figure over another's of the same repeat; None where either is missing or the second is zero."""
    upper, lower = one[key], other[key]
    return upper / lower if upper is not None and lower else None
