"""The paper's two: prefill of one prompt by its length, and decode by batch, at fixed lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from weave_bench.results import Table
from weave_bench.serving.comparison import Trial, compare, rows
from weave_bench.serving.metrics import Figures, step_seconds, ttft
from weave_bench.serving.open_load import ALONE
from weave_bench.serving.records import Call, Outcome, Wave
from weave_bench.serving.systems import STEP_TOKENS, Engine
from weave_bench.serving.workload import Prompts

_MARGIN = 8
"""Steps a decode wave has beyond those that are read."""

Target = tuple[str, str]


def targets(alone: Engine, weave: Engine) -> dict[str, list[Target]]:
    """System -> whom its requests ask in turn."""
    adapters = weave.spec.adapters or ()
    loaded = f"npu-weave with {len(adapters)} loaded"
    found = {ALONE: [alone.target(None)], f"{loaded}, base asked": [weave.target(None)]}
    found[f"{loaded}, one asked"] = [weave.target(adapters[0])]
    if len(adapters) > 1:
        found[f"{loaded}, all asked"] = [weave.target(adapter) for adapter in adapters]
    return found


def prefill_table(
    asked: Mapping[str, Sequence[Target]], domains: Sequence[str], lengths: Sequence[int], repeats: int, texts: Prompts
) -> Table:
    """Time to the first and only token of one request at a time, by prompt length; `asked` as of `targets`."""

    def waves(target: Target, length: int) -> Callable[[int], Wave]:
        return lambda repeat: Wave([Call(0.0, *target, texts.text(domains[repeat % len(domains)], length, repeat), 1)])

    trials = [
        # with one request at a time, all adapters in turn are no other than one
        Trial({"prompt": length}, {name: waves(who[0], length) for name, who in asked.items() if len(who) == 1},
              ALONE, _prefill_figures)
        for length in lengths
    ]  # fmt: skip
    columns = {"TTFT": "ms to the first token", "prefill": "prompt tokens a second"}
    title = "Prefill of one request by the length of its prompt"
    return _table("prefill", title, columns, trials, repeats, _PREFILL_SHOWS)


def decode_table(
    asked: Mapping[str, Sequence[Target]], domains: Sequence[str], batches: Sequence[int], prompt: int, steps: int,
    repeats: int, texts: Prompts,
) -> Table:  # fmt: skip
    """Time of a step while a whole batch decodes, by its size; request ``i`` asks the system's target ``i`` in turn."""

    def waves(who: Sequence[Target], batch: int) -> Callable[[int], Wave]:
        # what is prefilled first decodes on while the last are being prefilled
        tokens = steps + -(-batch * prompt // STEP_TOKENS) + _MARGIN

        def wave(repeat: int) -> Wave:
            made = []
            for index in range(batch):
                text = texts.text(domains[index % len(domains)], prompt, 1000 * repeat + index)
                made.append(Call(0.0, *who[index % len(who)], text, tokens))
            return Wave(made)

        return wave

    trials = [
        Trial({"batch": batch, "prompt": prompt}, {name: waves(who, batch) for name, who in asked.items()}, ALONE,
              _decode_figures)
        for batch in batches
    ]  # fmt: skip
    columns = {
        "step": "ms a decode step while the whole batch decodes (the TPOT of a batch)",
        "decode": "tokens a second of the whole batch",
    }
    return _table("decode", "Decode by batch size", columns, trials, repeats, _DECODE_SHOWS)


def _table(
    name: str, title: str, columns: Mapping[str, str], trials: Sequence[Trial], repeats: int, shows: str
) -> Table:
    made = []
    for trial, found in zip(trials, compare(trials, repeats, name), strict=True):
        made += rows(trial, found, list(columns), list(columns), " / base")
    ratios = {f"{key} / base": f"{key} over that of the base model alone" for key in columns}
    return Table(name, title, {**columns, **ratios}, made, shows)


def _prefill_figures(outcome: Outcome) -> Figures | None:
    (reply,) = outcome.replies
    if not reply.finished:
        return None
    return {"TTFT": ttft(reply) * 1e3, "prefill": reply.prompt_tokens / ttft(reply)}


def _decode_figures(outcome: Outcome) -> Figures | None:
    """None when the answers came in so few pieces that no step can be told from the next."""
    if not all(reply.finished for reply in outcome.replies):
        return None
    try:
        seconds = step_seconds(outcome)
    except ValueError:
        return None
    return {"step": seconds * 1e3, "decode": len(outcome.replies) / seconds}


_PREFILL_SHOWS = (
    "One request at a time, one token generated. Base model and adapters of npu-weave are asked the same prompts as "
    "the base model alone. The time holds HTTP, tokenising and the scheduler; at short prompts it is mostly those. "
    "The small model was trained on 512 tokens: beyond, its answers mean nothing, and the work is that of any prompt."
    " One adapter touches as many experts as the base model, so what is over 1 here is npu-weave's own, and noise."
)
_DECODE_SHOWS = (
    "A batch of equal prompts is prefilled, then steps are timed while all of it decodes. `base asked` and `one "
    "asked` touch as many experts as the base model alone, so what is over 1 there is npu-weave's own work in a step,"
    " and noise; with `all asked` a batch reaches more distinct experts, which any design has to read that keeps "
    "adapters apart (part `steps` counts them). Experts of this model are small and stay in the processor's cache: on"
    " a large model, reading them is the larger share of a step. Repeats in which the client could not tell steps "
    "apart are left out of the medians; the number of repeats shows it."
)
