"""The tables of the server benchmark: who is asked what in each, and that rows have the columns they declare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from weave_bench.results import Spread, Table, spread
from weave_bench.serving import merged, microbenchmarks, open_load
from weave_bench.serving.comparison import Repeats, Trial
from weave_bench.serving.footprint import Loads, footprint_row, footprint_table
from weave_bench.serving.merged import MERGED, Pair, merged_rows, merged_table
from weave_bench.serving.metrics import Slo
from weave_bench.serving.microbenchmarks import decode_table, prefill_table, targets
from weave_bench.serving.models import Adapter
from weave_bench.serving.open_load import ALONE, Traffic, arrivals_table
from weave_bench.serving.records import Outcome, Reply, Wave
from weave_bench.serving.systems import STEP_TOKENS, Spec
from weave_bench.serving.workload import Prompts

TASKS = ("cipher", "intent", "island", "record")
ADAPTERS = [Adapter(f"{task}-{turn}", task, Path(task), 10) for turn in (1, 2) for task in TASKS]


class Standing:
    """An engine that stands still: what tables are made from, without a process."""

    memory, start_seconds, kv_tokens = 3 << 20, 2.0, 100

    def __init__(self, url: str, adapters: Sequence[Adapter] | None) -> None:
        self.url = url
        self.spec = Spec(url, Path("m"), adapters, 1, 1 << 20)

    def target(self, adapter: Adapter | None) -> tuple[str, str]:
        return self.url, "base" if adapter is None else adapter.name

    def memory_bytes(self) -> int:
        return self.memory

    def cpu_seconds(self) -> float:
        return 0.0


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """The trials of a table, in place of whose sending every request is answered at once."""
    seen: list[Trial] = []

    def answer(wave: Wave) -> Outcome:
        replies = [
            Reply(c.at, c.at, [c.at + 0.1 * (n + 1) for n in range(c.tokens)], [1] * c.tokens, len(c.prompt), True)
            for c in wave.calls
        ]
        return Outcome(replies, 1.0, 0.1, 0.0)

    def compare(asked: Sequence[Trial], repeats: int, title: str, *, again: int = 0) -> list[Repeats]:
        seen.extend(asked)
        return [
            {name: [trial.figures(answer(wave(r))) for r in range(repeats)] for name, wave in trial.waves.items()}
            for trial in asked
        ]

    for module in (open_load, microbenchmarks, merged):
        monkeypatch.setattr(module, "compare", compare)
    return seen


def assert_whole(table: Table) -> None:
    assert table.rows and table.shows
    for row in table.rows:
        assert set(row.values) == set(table.columns)


def test_base_and_adapters_get_the_same_requests(trials: list[Trial]) -> None:
    alone, weaves = Standing("alone", None), [Standing("one", ADAPTERS[:1]), Standing("eight", ADAPTERS)]
    loads = [(20.0, 1.0), (20.0, 0.3)]
    table = arrivals_table(alone, weaves, loads, 4.0, 2, Slo(1, 1), Traffic(Prompts()))
    assert_whole(table)
    assert [tuple(trial.labels.values()) for trial in trials] == [(1, 20.0, 1.0), (8, 20.0, 1.0), (8, 20.0, 0.3)]
    for trial in trials:
        assert trial.reference == ALONE
        base, weave = (trial.waves[name](1).calls for name in (ALONE, "npu-weave"))
        assert [(c.at, c.prompt, c.tokens) for c in base] == [(c.at, c.prompt, c.tokens) for c in weave]
        assert {(c.url, c.model) for c in base} == {("alone", "base")}
        assert all(c.prompt.startswith(c.model.rpartition("-")[0]) for c in weave)
        assert trial.waves[ALONE](0).calls != base


def test_prefill_is_one_request_of_the_length(trials: list[Trial]) -> None:
    asked = targets(Standing("alone", None), Standing("eight", ADAPTERS))
    assert_whole(prefill_table(asked, TASKS, (128, 300), 3, Prompts()))
    for trial in trials:
        assert len(trial.waves) == 3
        for wave in trial.waves.values():
            (call,) = wave(2).calls
            assert len(call.prompt) == trial.labels["prompt"] and call.tokens == 1


def test_decode_asks_the_adapters_in_turn_for_long_enough(trials: list[Trial]) -> None:
    asked = targets(Standing("alone", None), Standing("eight", ADAPTERS))
    table = decode_table(asked, TASKS, (1, 32), 256, 48, 2, Prompts())
    assert_whole(table)
    everyone, single = (trials[1].waves[f"npu-weave with 8 loaded, {who} asked"](0).calls for who in ("all", "one"))
    base = trials[1].waves[ALONE](0).calls
    assert [c.model for c in everyone] == [adapter.name for adapter in ADAPTERS] * 4
    assert {c.model for c in single} == {ADAPTERS[0].name}
    assert [c.prompt for c in everyone] == [c.prompt for c in single] == [c.prompt for c in base]
    assert len({c.prompt for c in base}) == 32
    assert all(len(c.prompt) == 256 and c.tokens > 48 + 32 * 256 // STEP_TOKENS for c in everyone)
    step = table.rows[0].values["step"]
    assert isinstance(step, Spread) and step.median == pytest.approx(100.0)


def test_merged_engines_get_the_requests_of_their_adapters(trials: list[Trial]) -> None:
    pair = Pair("m", Path("m"), ADAPTERS[2:4], Traffic(Prompts()), ((0.5, 0.3), (1.5, 0.3)), 4.0, 2.0, 3.0, 160)
    asked = {MERGED: [("a", "base"), ("b", "base")], "npu-weave": [("w", "island-1"), ("w", "record-1")]}
    found = merged_rows(pair, asked, 40.0, 2, Slo(1, 1), again=0)
    assert_whole(merged_table(found))
    for trial in trials:
        both, one = (trial.waves[name](0).calls for name in (MERGED, "npu-weave"))
        assert [{"a": "island-1", "b": "record-1"}[c.url] for c in both] == [c.model for c in one]
        assert [(c.at, c.prompt) for c in both] == [(c.at, c.prompt) for c in one]
    within, over = trials
    assert within.labels["rate"] == 20.0 and within.waves[MERGED](0).limit > pair.horizon
    assert over.labels["rate"] == 60.0 and over.waves[MERGED](0).limit == pair.settled + pair.measured
    assert max(call.at for call in over.waves[MERGED](0).calls) > pair.horizon
    for key in ("TTFT p50", "goodput"):
        said = [row.values[key] for row in found]
        assert all(said[:2]) and said[2:] == [None, None]


def test_above_load_1_throughput_is_that_after_it_has_settled(trials: list[Trial]) -> None:
    """Every request is answered at once: what it asked before has no part in it."""
    traffic = Traffic(Prompts(), lengths=(50, 1))
    pair = Pair("m", Path("m"), ADAPTERS[2:4], traffic, ((1.5, 1.0),), 4.0, 2.0, 3.0, 160)
    (row,) = merged_rows(pair, {MERGED: [("a", "base"), ("b", "base")]}, 20.0, 1, Slo(1, 1), again=0)
    answered = [call for call in trials[0].waves[MERGED](0).calls if 2.0 < call.at + 0.1 <= 5.0]
    prefill = row.values["prefill"]
    assert isinstance(prefill, Spread) and prefill.median == pytest.approx(50 * len(answered) / 3)


def test_total_throughput_is_both(trials: list[Trial]) -> None:
    traffic = Traffic(Prompts(), lengths=(50, 10))
    pair = Pair("m", Path("m"), ADAPTERS[2:4], traffic, ((1.5, 1.0),), 4.0, 0.0, 4.0, 160)
    (row,) = merged_rows(pair, {MERGED: [("a", "base"), ("b", "base")]}, 20.0, 1, Slo(1, 1), again=0)
    values = {key: row.values[key] for key in ("prefill", "decode", "prefill + decode")}
    prefill, decode, total = (value.median for value in values.values())
    assert prefill > decode > 0 and total == pytest.approx(prefill + decode)
    assert {len(c.prompt) for c in trials[0].waves[MERGED](0).calls} == {50}


def test_footprints_of_several_engines_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weave_bench.serving.footprint.idle_cpu", lambda engines: 0.0)
    engines = [Standing("a", None), Standing("b", None)]
    both = footprint_row("both", engines)
    loads = Loads(spread([1.0]), spread([0.5]))
    eight = footprint_row("eight", [Standing("w", ADAPTERS)], loads)
    assert_whole(footprint_table([both, eight]))
    assert (both.values["memory"], both.values["KV tokens"], both.values["adapters"]) == (6.0, 200.0, 0.0)
    assert (eight.values["adapters"], eight.values["load, disk"]) == (8.0, spread([1.0]))
