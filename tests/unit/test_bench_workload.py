"""The workload: shares by the power law, Poisson arrivals per adapter, prompts of each adapter's own domain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weave_bench.serving.records import Call
from weave_bench.serving.workload import Prompts, adapter_at, answer_tokens, arrivals, calls, shares

TASKS = ["cipher", "intent", "island", "record"]


def looks_exponential(gaps: np.ndarray, rate: float) -> bool:
    """By the Kolmogorov-Smirnov distance, at the level of 1 %."""
    expected = 1 - np.exp(-rate * np.sort(gaps))
    ranks = np.arange(len(gaps) + 1) / len(gaps)
    distance = max(np.max(ranks[1:] - expected), np.max(expected - ranks[:-1]))
    return bool(distance < 1.63 / math.sqrt(len(gaps)))


@pytest.mark.parametrize("count", [1, 2, 20])
def test_alpha_of_one_is_uniform(count: int) -> None:
    assert shares(count, 1.0) == pytest.approx([1 / count] * count)


def test_shares_are_the_power_law_cut_into_equal_parts() -> None:
    half = [math.sqrt(part / 4) for part in range(5)]
    assert shares(4, 0.5) == pytest.approx([half[i + 1] - half[i] for i in range(4)])
    drawn = np.random.default_rng(0).power(0.5, 200_000) * 4
    assert np.bincount(drawn.astype(int), minlength=4) / 200_000 == pytest.approx(shares(4, 0.5), abs=0.005)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.7, 1.0])
def test_shares_sum_to_one_and_fall(alpha: float) -> None:
    found = shares(10, alpha)
    assert sum(found) == pytest.approx(1)
    assert found == sorted(found, reverse=True) or alpha == 1


def test_less_alpha_is_more_skew() -> None:
    largest = [shares(5, alpha)[0] for alpha in (1.0, 0.7, 0.3, 0.1)]
    assert largest == sorted(largest) and largest[-1] > 0.8


@pytest.mark.parametrize(("count", "alpha"), [(0, 1.0), (3, 0.0), (3, 1.5), (3, -1.0)])
def test_what_is_no_law_is_refused(count: int, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        shares(count, alpha)


@pytest.mark.parametrize(("count", "alpha"), [(1, 1.0), (5, 1.0), (5, 0.3), (20, 0.1)])
def test_quantiles_fall_on_adapters_by_their_shares(count: int, alpha: float) -> None:
    grid = (np.arange(100_000) + 0.5) / 100_000
    found = np.bincount([adapter_at(float(q), count, alpha) for q in grid], minlength=count) / len(grid)
    assert found == pytest.approx(shares(count, alpha), abs=1e-4)
    assert adapter_at(1.0, count, alpha) == count - 1


def test_arrivals_are_poisson() -> None:
    found = arrivals(rate=50.0, horizon=200.0, seed=3)
    instants = np.array([arrival.at for arrival in found])
    assert len(found) == pytest.approx(10_000, abs=400)
    assert instants[0] > 0 and instants[-1] < 200
    assert looks_exponential(np.diff(instants), 50)
    assert not looks_exponential(np.diff(instants), 60)
    in_seconds = np.bincount(instants.astype(int), minlength=200)
    assert in_seconds.var() / in_seconds.mean() == pytest.approx(1, abs=0.25)


def test_each_adapter_has_a_poisson_process_of_its_own() -> None:
    found = arrivals(rate=50.0, horizon=200.0, seed=4)
    alpha, count = 0.3, 5
    of = np.array([adapter_at(arrival.quantile, count, alpha) for arrival in found])
    instants = np.array([arrival.at for arrival in found])
    for adapter, share in enumerate(shares(count, alpha)):
        own = np.diff(instants[of == adapter])
        assert len(own) + 1 == pytest.approx(10_000 * share, rel=0.12)
        assert looks_exponential(own, 50 * share)


def test_arrivals_come_back_with_their_seed_only() -> None:
    assert arrivals(5.0, 20.0, 1) == arrivals(5.0, 20.0, 1)
    assert arrivals(5.0, 20.0, 1) != arrivals(5.0, 20.0, 2)


def test_calls_ask_each_adapter_of_its_own_domain() -> None:
    arrived = arrivals(50.0, 4.0, 0)
    targets = [("http://one", task) for task in TASKS]
    made = calls(arrived, 0.3, TASKS, targets, Prompts())
    assert [call.at for call in made] == [arrival.at for arrival in arrived]
    assert {call.model for call in made} == set(TASKS)
    assert all(call.prompt.startswith(f"{call.model}: ") for call in made)


def test_all_systems_are_asked_the_same() -> None:
    texts, arrived = Prompts(), arrivals(50.0, 4.0, 0)

    def asked(target: tuple[str, str]) -> list[tuple[float, str, int]]:
        made: list[Call] = calls(arrived, 0.3, TASKS, [target] * 4, texts)
        return [(call.at, call.prompt, call.tokens) for call in made]

    assert asked(("http://one", "base")) == asked(("http://two", "x"))


def test_as_many_tokens_are_asked_for_as_the_right_answer_has() -> None:
    texts = Prompts()
    (call,) = calls(arrivals(50.0, 4.0, 0)[:1], 1.0, ["record"], [("u", "m")], texts)
    (example,) = [example for example in texts.pool("record") if example.prompt == call.prompt]
    assert call.tokens == answer_tokens(example) == len((example.answer + "\n").encode())


@pytest.mark.parametrize("tokens", [1, 128, 2048])
def test_texts_have_the_length_asked_for(tokens: int) -> None:
    text = Prompts().text("intent", tokens, 7)
    assert len(text.encode()) == tokens
    assert text == Prompts().text("intent", tokens, 7) != Prompts().text("intent", tokens + 1, 8)
