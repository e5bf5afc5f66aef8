"""What the soak calls right and wrong: contents a request may have met, answers held to them, memory that grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from weave_bench.serve_soak.history import GONE, History
from weave_bench.serve_soak.report import Held, Watch, problems, write_report
from weave_bench.serve_soak.traffic import Found
from weave_bench.serve_soak.truth import Truth
from weave_bench.serve_soak.verdict import EXACT, NEAR_TIE, STALE, WRONG, judge
from weave_lab.demo.traffic import Reply


def reply(*tokens: int, logprobs: tuple[float, ...] | None = None) -> Reply:
    return Reply("", tokens, (-0.1,) * len(tokens) if logprobs is None else logprobs)


TRUTH = Truth(
    {
        "old": {"p": [reply(1, 2, 3)]},
        "new": {"p": [reply(1, 5, 6), reply(1, 5, 7, logprobs=(-0.1, -0.1, -0.7))]},
        "base": {"p": [reply(9)], "q": [reply(9)]},
    }
)


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        (reply(1, 5, 6), EXACT),
        (reply(1, 5, 7), EXACT),  # as the reference answers when it is asked alone
        (reply(1, 2, 3), STALE),
        (reply(9), STALE),
        (reply(1, 5, 8, logprobs=(-0.1, -0.1, -0.75)), NEAR_TIE),
        (reply(1, 5, 8, logprobs=(-0.1, -0.1, -3.0)), WRONG),
        (reply(1, 4, 6, logprobs=(-0.4, -0.1, -0.1)), WRONG),  # another model that begins alike
        (reply(1, 5), WRONG),  # cut short
        (reply(), WRONG),
    ],
)
def test_an_answer_is_held_to_what_its_request_may_have_met(answer: Reply, meant: str) -> None:
    assert judge(answer, "p", {"new"}, {"old", "base"}, TRUTH) == meant


def test_while_a_name_is_re_pointed_both_contents_are_right() -> None:
    assert judge(reply(1, 2, 3), "p", {"old", "new"}, {"base"}, TRUTH) == EXACT


def test_prompts_that_tell_nothing_apart_are_known() -> None:
    assert TRUTH.tells_apart("p", ["old", "new", "base"])
    alike = Truth({"a": {"p": [reply(1), reply(2)]}, "b": {"p": [reply(2)]}})
    assert not alike.tells_apart("p", ["a", "b"])


def test_a_name_stands_for_both_while_a_call_changes_it() -> None:
    history = History()
    history.begins("old", 0.0)
    history.begins("new", 10.0)
    assert history.now == "new" and history.between(5, 9) == {"old"} and history.between(11, 99) == {"old", "new"}
    history.settled(12.0)
    assert history.between(9, 11) == {"old", "new"} and history.between(12.5, 20) == {"new"}
    history.begins(GONE, 20.0)
    history.settled(21.0)
    assert history.between(20.5, 20.6) == {"new", GONE} and history.between(22, 23) == {GONE}


def test_a_refused_call_changes_nothing() -> None:
    history = History()
    history.begins("old", 0.0)
    history.begins("new", 10.0)
    history.refused()
    assert history.now == "old" and history.between(11, 12) == {"old"}


def watch(*memory: float) -> Watch:
    return Watch(1, [Held(each, 10.0, 5) for each in memory])


def test_what_should_not_have_been_is_said(tmp_path: Path) -> None:
    found = Found()
    for outcome in ("exact", "near tie", "re-pointed", "refused as it must be, 404"):
        found.note(outcome)
    assert problems(found, watch(100, 100, 100, 104)) == []
    found.note("wrong", failure="math answered nonsense")
    found.note("wrong", failure="another")
    assert problems(found, watch(100, 100, 100, 106)) == [
        "2 x wrong: math answered nonsense",
        "memory_mib grew from 100 to 106",
    ]
    write_report(found, watch(100, 100, 100, 100), {"minutes": 1}, tmp_path / "deep" / "soak.md")
    text = (tmp_path / "deep" / "soak.md").read_text()
    assert "| wrong | 2 |" in text and "math answered nonsense" in text and "Nothing that should" not in text
