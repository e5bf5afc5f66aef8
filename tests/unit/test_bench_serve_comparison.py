"""Which system is asked when, and how ratios are paired."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from weave_bench.results import Spread
from weave_bench.serving import comparison
from weave_bench.serving.comparison import DISTURBED, Trial, compare, order, over_repeats, rows
from weave_bench.serving.records import Outcome, Wave

WAVES = {name: lambda repeat: Wave([]) for name in ("base", "one", "two")}


def trial(load: float = 1.0) -> Trial:
    return Trial({"load": load}, WAVES, "base", lambda outcome: {})


def test_systems_take_turns_within_each_trial_of_each_repeat() -> None:
    assert order([trial(), trial()], 2) == [
        (0, "base", 0), (0, "one", 0), (0, "two", 0), (1, "base", 0), (1, "one", 0), (1, "two", 0),
        (0, "two", 1), (0, "one", 1), (0, "base", 1), (1, "two", 1), (1, "one", 1), (1, "base", 1),
    ]  # fmt: skip


def test_ratios_are_of_one_repeat() -> None:
    repeats = {"base": [{"t": 1.0}, {"t": 10.0}, {"t": 100.0}], "one": [{"t": 2.0}, {"t": 20.0}, {"t": 200.0}]}
    base, one = rows(trial(), repeats, ("t",), ("t",), " / base")
    assert base.values["t / base"] is None
    assert one.values["t / base"] == Spread(2.0, 2.0, 2.0, 3)
    assert one.values["t"] == Spread(20.0, 11.0, 110.0, 3)
    assert one.labels == {"system": "one", "load": 1.0}


def test_a_repeat_that_shows_nothing_is_left_out_of_both_sides() -> None:
    repeats = {"base": [{"t": 1.0}, None, {"t": 4.0}], "one": [None, {"t": 5.0}, {"t": 8.0}]}
    base, one = rows(trial(), repeats, ("t",), ("t",), " / base")
    assert one.values["t / base"] == Spread(2.0, 2.0, 2.0, 1)
    assert isinstance(base.values["t"], Spread) and base.values["t"].repeats == 2


def test_nothing_found_is_none() -> None:
    assert over_repeats([None, None]) is None
    assert over_repeats([None, 2.0]) == Spread(2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_every_system_is_asked_in_every_repeat(repeats: int) -> None:
    turns = order([trial(1.0), trial(2.0)], repeats)
    assert len(set(turns)) == len(turns) == 2 * 3 * repeats


def sends(monkeypatch: pytest.MonkeyPatch, stolen: Sequence[Sequence[float]]) -> list[int]:
    """Has each wave's host take what is said, call by call; a wave's seconds are its number. How many were sent."""
    sizes: list[int] = []

    def send(waves: Sequence[Wave], title: str) -> list[Outcome]:
        taken = stolen[len(sizes)]
        sizes.append(len(waves))
        return [Outcome([], 10.0 * len(sizes) + n, 0.0, share) for n, share in enumerate(taken)]

    monkeypatch.setattr(comparison, "send", send)
    return sizes


def timed() -> Trial:
    waves = {name: lambda repeat: Wave([]) for name in ("base", "one")}
    return Trial({}, waves, "base", lambda outcome: {"s": outcome.seconds})


def seconds(found: Sequence[comparison.Repeats]) -> list[list[float | None]]:
    return [[figures["s"] for figures in own if figures] for own in found[0].values()]


def test_what_the_host_disturbed_is_sent_once_more_to_all_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second repeat's two waves one was disturbed; in its order the reference is the last."""
    sizes = sends(monkeypatch, [[0.0, DISTURBED, 0.2, 0.0, 0.0, 0.0], [0.01, 0.0]])
    found = compare([timed()], 3, "t", again=3)
    assert sizes == [6, 2]
    assert seconds(found) == [[10.0, 21.0, 14.0], [11.0, 20.0, 15.0]]


def test_the_time_of_which_the_host_took_less_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sends(monkeypatch, [[0.2, 0.0, 0.0, 0.3], [0.0, 0.21, 0.1, 0.1]])
    assert seconds(compare([timed()], 2, "t", again=2)) == [[10.0, 23.0], [11.0, 22.0]]


def test_only_the_worst_are_sent_again_and_none_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = [0.2, 0.0, 0.0, 0.3, 0.1, 0.0]
    sizes = sends(monkeypatch, [disturbed, [0.0, 0.0], disturbed])
    assert seconds(compare([timed()], 3, "t", again=1)) == [[10.0, 21.0, 14.0], [11.0, 20.0, 15.0]]
    compare([timed()], 3, "t")
    assert sizes == [6, 2, 6]
