"""Engines in turn, one kind after the other, and the tables of what they took."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from weave_bench.results import Row, Table, ratios, spread
from weave_bench.whole_engine.models import adapter_sets, memory_for, write_base, write_hollow_adapter
from weave_bench.whole_engine.plan import EnginePlan
from weave_bench.whole_engine.process import Measures, measure_engine

_COLUMNS = {
    "base": "ms, the base model alone in plain vLLM",
    "adapters": "ms, requests of all adapters in turn",
    "ratio": "adapters over base, repeat by repeat",
    "tokens a second": "of the engine with adapters: prompt tokens in prefill, generated ones in decode",
}
_SHOWS = (
    "Prefill is the time to the first and only token of one request; decode is the time of a step of a batch, as the "
    "difference between long and short answers. Weights are random and adapters nearly zero, so which experts tokens "
    "choose is near to even: a batch of trained adapters touches other numbers of distinct rows. Engines of both kinds "
    "do not fit beside each other, so they are started in turn, and pairs are further apart than in other tables."
)


def compare_engines(plan: EnginePlan) -> tuple[list[Table], list[str]]:
    """The tables, and what was left out: an engine that did not start or failed, with the end of its log.

    Raises:
        RuntimeError: the base model alone failed, so there is nothing to compare with.
    """
    with tempfile.TemporaryDirectory(prefix="npu-weave-engine-") as directory:
        scratch = Path(directory)
        geometry = write_base(scratch / "base", plan.model)
        sets = adapter_sets(geometry, max(plan.adapters))
        paths = [write_hollow_adapter(scratch / f"adapter-{at}", geometry, each, at) for at, each in enumerate(sets)]
        found: dict[int, list[Measures]] = {count: [] for count in (0, *plan.adapters)}
        left_out = []
        turns = [count for _ in range(plan.rounds) for count in found]
        for count in tqdm(turns, desc="engines"):
            if count not in found:
                continue
            memory = memory_for(geometry, sets[:count])
            try:
                found[count].append(measure_engine(scratch / "base", plan, paths[:count], memory, scratch))
            except RuntimeError as error:
                if count == 0:
                    raise
                del found[count]
                left_out.append(f"an engine with {count} adapters: {error}")
    return _tables(plan, found.pop(0), found), left_out


def _tables(plan: EnginePlan, base: Sequence[Measures], served: dict[int, list[Measures]]) -> list[Table]:
    rows = []
    for count, engines in served.items():
        for step, sizes in (("prefill", plan.prompts), ("decode", plan.batches)):
            for size in sizes:
                alone = [taken for each in base for taken in getattr(each, step)[size]]
                ours = [taken for each in engines for taken in getattr(each, step)[size]]
                values = {
                    "base": spread(alone),
                    "adapters": spread(ours),
                    "ratio": ratios(ours, alone),
                    "tokens a second": spread([1e3 * size / taken for taken in ours]),
                }
                rows.append(Row({"adapters": count, "step": step, "size": size}, values))
    capacity = [
        Row(
            {"system": "npu-weave" if count else "base model alone", "adapters": count},
            {"KV tokens": float(engines[0].kv_tokens), "start": spread([each.start for each in engines])},
        )
        for count, engines in ((0, base), *served.items())
    ]
    columns = {"KV tokens": "tokens that the KV cache holds", "start": "seconds until the engine was ready"}
    shows = "The same share of the device's memory for every engine: what adapters take, the KV cache has less."
    return [
        Table(
            "gpu-engine", "A whole engine on a GPU, with adapters beside the base model alone", _COLUMNS, rows, _SHOWS
        ),
        Table("gpu-engine-capacity", "KV cache of the engines", columns, capacity, shows),
    ]
