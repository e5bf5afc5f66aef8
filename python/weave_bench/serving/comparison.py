"""The same requests to several systems, turn by turn, and tables of what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weave_bench.results import Label, Row, Spread, spread
from weave_bench.serving.metrics import Figures, ratio
from weave_bench.serving.records import Outcome, Wave
from weave_bench.serving.traffic import send

DISTURBED = 0.05
"""Share of the cores' time that a host may take from a repeat."""


@dataclass(frozen=True)
class Trial:
    """One setting in which systems are compared.

    Attributes:
        labels: the setting.
        waves: system -> its requests in a given repeat; those of one repeat ask all systems the same.
        reference: the system the others are set against.
        figures: what is read off a wave's outcome; None where it shows nothing.
    """

    labels: Mapping[str, Label]
    waves: Mapping[str, Callable[[int], Wave]]
    reference: str
    figures: Callable[[Outcome], Figures | None]


Repeats = Mapping[str, Sequence[Figures | None]]
"""System -> its figures, one a repeat."""


def order(trials: Sequence[Trial], repeats: int) -> list[tuple[int, str, int]]:
    """(trial, system, repeat) in the order of sending: round after round, each trial's systems beside each other.

    Every other round goes through the systems backwards, so that none always follows the same.
    """
    turns = []
    for repeat in range(repeats):
        for index, trial in enumerate(trials):
            names = list(trial.waves)
            turns += [(index, name, repeat) for name in (names if repeat % 2 == 0 else reversed(names))]
    return turns


def compare(trials: Sequence[Trial], repeats: int, title: str, *, again: int = 0) -> list[Repeats]:
    """Send every trial's waves `repeats` times to each of its systems; the figures, one a trial.

    Args:
        again: so many repeats of a trial at most, those of which the host took most, and more than `DISTURBED`, are
            sent once more, to all of its systems; that time counts of which it took less.
    """
    found = _send(trials, order(trials, repeats), title)
    taken = {turn: max(outcome.stolen for outcome in each.values()) for turn, each in found.items()}
    worst = {turn for turn in sorted(taken, key=taken.__getitem__, reverse=True)[:again] if taken[turn] > DISTURBED}
    if worst:
        turns = [turn for turn in order(trials, repeats) if (turn[0], turn[2]) in worst]
        for turn, each in _send(trials, turns, f"{title}, again").items():
            if max(outcome.stolen for outcome in each.values()) < taken[turn]:
                found[turn] = each
    return [
        {name: [trial.figures(found[index, repeat][name]) for repeat in range(repeats)] for name in trial.waves}
        for index, trial in enumerate(trials)
    ]


def _send(
    trials: Sequence[Trial], turns: Sequence[tuple[int, str, int]], title: str
) -> dict[tuple[int, int], dict[str, Outcome]]:
    """(trial, repeat) -> what became of each system's wave."""
    found: dict[tuple[int, int], dict[str, Outcome]] = {}
    outcomes = send([trials[index].waves[name](repeat) for index, name, repeat in turns], title)
    for (index, name, repeat), outcome in zip(turns, outcomes, strict=True):
        found.setdefault((index, repeat), {})[name] = outcome
    return found


def over_repeats(values: Sequence[float | None]) -> Spread | None:
    """Of what was found; None where nothing was."""
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def rows(trial: Trial, repeats: Repeats, keys: Sequence[str], compared: Sequence[str], suffix: str) -> list[Row]:
    """One row a system: its figures by `keys`, and of `compared` the ratio to the reference within each repeat.

    The ratio's column is the figure's name with `suffix`; the reference has none.
    """
    made = []
    for name, own in repeats.items():
        values = {key: over_repeats([figures[key] for figures in own if figures is not None]) for key in keys}
        for key in compared:
            pairs = [(one, other) for one, other in zip(own, repeats[trial.reference], strict=True) if one and other]
            found = over_repeats([ratio(one, other, key) for one, other in pairs])
            values[key + suffix] = None if name == trial.reference else found
        made.append(Row({"system": name, **trial.labels}, values))
    return made
