"""Figures of servers, from replies whose times are known."""

from __future__ import annotations

import pytest

from weave_bench.serving.metrics import (
    Slo,
    gaps,
    measure,
    percentiles,
    ratio,
    step_seconds,
    throughput,
    to_the_end,
    tpot,
    ttft,
    typical,
)
from weave_bench.serving.records import Outcome, Reply

DUE = 1.0


def reply(times: list[float], tokens: list[int] | None = None, **fields: object) -> Reply:
    known: dict[str, object] = {"due": DUE, "sent": DUE + 0.01, "prompt_tokens": 10, "finished": True, **fields}
    return Reply(times=times, tokens=tokens or [1] * len(times), **known)


def outcome(*replies: Reply) -> Outcome:
    return Outcome(list(replies), 10.0, 0.1, 0.0)


def test_the_first_token_counts_from_when_the_request_was_due() -> None:
    assert ttft(reply([1.5, 1.6])) == pytest.approx(0.5)


def test_time_a_token_leaves_the_first_piece_out() -> None:
    assert tpot(reply([1.5, 1.7, 1.9])) == pytest.approx(0.2)
    assert tpot(reply([1.5, 1.9], [3, 4])) == pytest.approx(0.1)
    assert tpot(reply([1.5])) is None


def test_gaps_are_between_pieces() -> None:
    assert gaps(reply([1.0, 1.5, 1.75], [1, 2, 1])) == [0.5, 0.25]


def test_percentiles_are_in_milliseconds() -> None:
    found = percentiles([value / 100 for value in range(101)], "X")
    assert found == pytest.approx({"X p50": 500, "X p90": 900, "X p99": 990})
    assert percentiles([], "X") == {"X p50": None, "X p90": None, "X p99": None}


def test_throughput_counts_what_came_within_the_horizon() -> None:
    early, late = reply([1.0, 3.0, 5.0], [2, 2, 4]), reply([4.5], prompt_tokens=100)
    assert throughput([early, late], 4.0) == (10 / 4, 3 / 4)
    assert throughput([early, late], 5.0) == (110 / 5, 7 / 5)


def test_throughput_leaves_out_what_came_before_it_settled() -> None:
    early, late = reply([1.0, 3.0, 5.0], [2, 2, 4]), reply([4.5], prompt_tokens=100)
    assert throughput([early, late], 5.0, 1.0) == (100 / 4, 6 / 4), "the early prompt and its first piece came before"
    assert throughput([early, late], 4.0, 0.5) == (10 / 3.5, 3 / 3.5)
    assert throughput([early, late], 4.0, 3.0) == (0.0, 0.0)


def test_work_to_the_end_counts_prompts_and_answers() -> None:
    assert to_the_end([reply([1.0, 2.0], [2, 3]), reply([5.0], prompt_tokens=35)]) == (15 + 36) / 5
    assert to_the_end([reply([1.0, 2.0]), reply([1.5], finished=False)]) is None
    assert to_the_end([]) is None


def test_goodput_needs_both_bounds_and_the_whole_answer() -> None:
    within = reply([1.5, 1.7])
    slow_start, slow_tokens = reply([2.5, 2.6]), reply([1.5, 3.5])
    given_up, single = reply([1.5, 1.7], finished=False), reply([1.2])
    slo = Slo(ttft=1.0, tpot=0.5)
    assert [slo.kept(one) for one in (within, slow_start, slow_tokens, given_up, single)] == [
        True,
        False,
        False,
        False,
        True,
    ]
    assert measure(outcome(within, slow_start, slow_tokens, given_up, single), 4.0, slo)["goodput"] == 2 / 4


def test_what_never_began_is_not_kept() -> None:
    assert not Slo(10.0, 10.0).kept(reply([], finished=False))


def test_unfinished_and_failed_requests_are_told_apart() -> None:
    found = measure(
        outcome(reply([1.5, 1.6]), reply([], finished=False), reply([], finished=False, error="status 500")),
        2.0,
        Slo(9, 9),
    )
    assert (found["unfinished"], found["errors"], found["TTFT p50"]) == (1.0, 1.0, pytest.approx(500))


def test_bounds_are_made_from_medians() -> None:
    replies = [reply([DUE + first, DUE + first + step]) for first, step in ((0.1, 0.5), (0.2, 0.1), (0.9, 0.2))]
    assert typical([outcome(*replies[:2]), outcome(replies[2])]) == Slo(pytest.approx(0.2), pytest.approx(0.2))


def test_a_step_is_timed_while_all_decode() -> None:
    # the first decodes fast before the second begins and after it has ended
    first = reply([1.0, 1.1, 2.0, 3.0, 4.0, 4.1, 4.2])
    second = reply([2.0, 3.0, 4.0])
    assert step_seconds(outcome(first, second)) == pytest.approx(1.0)


def test_tokens_of_one_piece_are_counted_in_a_step() -> None:
    assert step_seconds(outcome(reply([1.0, 3.0], [1, 4]))) == pytest.approx(0.5)


def test_a_step_needs_time_in_which_all_decode() -> None:
    with pytest.raises(ValueError, match="never all decoded"):
        step_seconds(outcome(reply([1.0, 2.0]), reply([3.0, 4.0])))


def test_a_ratio_of_nothing_is_none() -> None:
    assert ratio({"a": 3.0}, {"a": 2.0}, "a") == 1.5
    assert ratio({"a": None}, {"a": 2.0}, "a") is ratio({"a": 1.0}, {"a": 0.0}, "a") is None
