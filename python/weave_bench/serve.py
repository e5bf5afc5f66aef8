"""Servers under the paper's workload: base model alone, npu-weave, merged checkpoints; one client for all.

Engines that are compared are up together and are asked in turn; while one is asked the others wait and take no
processor time, which is measured (`footprint`).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from weave_bench.results import Part, Row, Table
from weave_bench.serving.footprint import footprint_row, footprint_table, measure_loads
from weave_bench.serving.lora import try_lora
from weave_bench.serving.merged import MERGED, MERGED_WHOLE, WEAVE, Pair, merged_rows, merged_table
from weave_bench.serving.metrics import Slo
from weave_bench.serving.microbenchmarks import decode_table, prefill_table, targets
from weave_bench.serving.models import WIDE, Adapter, make_adapters, make_wide, merge
from weave_bench.serving.open_load import ALONE, Traffic, arrivals_table, saturate, unloaded
from weave_bench.serving.systems import OPTIONS, STEP_TOKENS, Engine, Spec, engines
from weave_bench.serving.workload import Prompts
from weave_lab.artifacts import locate

_KV_BYTES = 512 << 20
_WIDE_LENGTHS = (128, 16)
"""Tokens of prompts and answers of the wide model."""
_WIDE_STEP_TOKENS = 144
"""A prompt, and a token of each of the 16 answers that are running when one is begun every step."""
_TINY_TIMES = 8.0, 4.0, 8.0
"""As `Plan.horizon`, `settled` and `measured`: answers of the small model take a second or two under load."""
_LOADED = 3
"""Adapters that are loaded and unloaded to time that."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        adapters: numbers of adapters served by an npu-weave engine of its own.
        loads: (share of what the base model alone answers a second when many ask at once, alpha) of open arrivals.
            Small shares: on few cores client and server stumble over streams of tokens long before the engine is busy,
            and either has a good or a bad run then.
        merged_loads: the same beside merged engines, of what npu-weave answers.
        horizon: seconds in which requests arrive, where an engine keeps up with them.
        settled, measured: where more comes than can be done: seconds that pass first, and those of which throughput is
            measured then.
        quick: leave out start-up times, and what only explains a result: the small model beside merged checkpoints, and
            these with all threads each.
        repeats: of arrivals, each with a seed of its own.
        lengths, prefill_repeats: of prompts.
        batches, prompt, steps, decode_repeats: of decode; `prompt` in tokens.
        crowds: of requests at once, to find how many a system answers a second.
        again: repeats beside merged engines that are measured once more if the host took cores away (`compare`).
    """

    adapters: tuple[int, ...]
    loads: tuple[tuple[float, float], ...]
    merged_loads: tuple[tuple[float, float], ...]
    horizon: float
    settled: float
    measured: float
    quick: bool
    repeats: int
    lengths: tuple[int, ...]
    prefill_repeats: int
    batches: tuple[int, ...]
    prompt: int
    steps: int
    decode_repeats: int
    crowds: int
    again: int


FULL = Plan(
    adapters=(1, 5, 10, 20),
    loads=((0.05, 1.0), (0.12, 0.3)),
    merged_loads=((0.5, 0.3), (1.5, 1.0), (1.5, 0.3)),
    horizon=8.0,
    settled=12.0,
    measured=28.0,
    quick=False,
    repeats=3,
    lengths=(128, 256, 512, 1024, 2048),
    prefill_repeats=12,
    batches=(1, 8, 32, 128, 256),
    prompt=256,
    steps=64,
    decode_repeats=3,
    crowds=3,
    again=3,
)
QUICK = Plan(
    adapters=(10,),
    loads=((0.1, 0.3),),
    merged_loads=((1.5, 0.3),),
    horizon=4.0,
    settled=10.0,
    measured=14.0,
    quick=True,
    repeats=2,
    lengths=(128, 2048),
    prefill_repeats=4,
    batches=(1, 32),
    prompt=128,
    steps=32,
    decode_repeats=2,
    crowds=1,
    again=0,
)


@dataclass
class _Session:
    """What the measurements of one run share, and what they add to."""

    plan: Plan
    base: Path
    adapters: list[Adapter]
    scratch: Path
    console: Console
    texts: Prompts = field(default_factory=Prompts)
    taken: list[Row] = field(default_factory=list)
    settings: dict[str, object] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @contextmanager
    def running(self, specs: Sequence[Spec], *, beside: bool) -> Iterator[dict[str, Engine]]:
        with engines(specs, self.scratch / "logs", self.console, beside=beside) as found:
            yield found


def measure(*, quick: bool, ttft: float = 5.0, tpot: float = 2.0) -> Part:
    """Start servers, measure, stop them. Takes the machine's cores for minutes.

    Args:
        quick: fewer systems, rates and repeats.
        ttft: bound on the time to first token for goodput, as a multiple of the base model's unloaded median.
        tpot: bound on the mean time of each further token, likewise.

    Raises:
        RuntimeError: a server did not start, or answered nothing.
    """
    begun = time.monotonic()
    plan = QUICK if quick else FULL
    models = locate()
    with tempfile.TemporaryDirectory(prefix="npu-weave-serve-") as directory:
        scratch = Path(directory)
        adapters = make_adapters(models, max(plan.adapters) + _LOADED, scratch)
        session = _Session(plan, models / "base", adapters, scratch, Console())
        _note_settings(session)
        arrivals, prefill, decode = _beside_base(session, (ttft, tpot))
        merged = merged_table(_beside_merged(session, (ttft, tpot)))
        if quick:
            session.left_out.append("vLLM's own LoRA on MoE experts is tried in full runs only")
        else:
            logs = scratch / "logs"
            session.left_out.append(try_lora(session.base, _threads(), _KV_BYTES, logs, session.console))
    tables = [arrivals, merged, prefill, decode, footprint_table(session.taken)]
    return Part("serve", time.monotonic() - begun, quick, session.settings, tables, session.left_out)


def _beside_base(session: _Session, bounds: tuple[float, float]) -> list[Table]:
    """The base model alone beside npu-weave: open arrivals, prefill, decode."""
    plan, texts, threads, traffic = session.plan, session.texts, _threads(), Traffic(session.texts)
    specs = [Spec(ALONE, session.base, None, threads, _KV_BYTES)]
    for count in plan.adapters:
        root = session.scratch / "adapters" if count == min(plan.adapters) else None
        specs.append(Spec(_title(count), session.base, session.adapters[:count], threads, _KV_BYTES, root))
    with session.running(specs, beside=plan.quick) as found:
        alone, weaves = found[ALONE], [found[_title(count)] for count in plan.adapters]
        shipped = session.adapters[: len(_domains(session))]
        for weave in weaves:  # each warm before anything is measured
            served = weave.spec.adapters or ()
            saturate(traffic, [weave.target(adapter) for adapter in served], served, 1)
        capacity = saturate(traffic, [alone.target(None)] * len(shipped), shipped, plan.crowds)
        typical = unloaded(traffic, alone, shipped)
        slo = _bounds(session, "weave-tiny, arrivals", typical, bounds)
        session.settings["base model alone, requests a second at once"] = round(capacity, 1)
        loads = [(round(share * capacity, 1), alpha) for share, alpha in plan.loads]
        asked, domains = targets(alone, weaves[-1]), _domains(session)
        tables = [
            arrivals_table(alone, weaves, loads, plan.horizon, plan.repeats, slo, traffic),
            prefill_table(asked, domains, plan.lengths, plan.prefill_repeats, texts),
            decode_table(asked, domains, plan.batches, plan.prompt, plan.steps, plan.decode_repeats, texts),
        ]
        timed = measure_loads(weaves[0], session.adapters[-_LOADED:])
        for name, engine in found.items():
            session.taken.append(footprint_row(name, [engine], timed if engine is weaves[0] else None))
    return tables


def _pairs(session: _Session) -> list[Pair]:
    """The models that are served merged: the wide one, and in a full run the small real one."""
    plan, texts = session.plan, session.texts
    island, record = session.adapters[2:4]  # of the shipped, those with the longest answers
    base, adapters = make_wide([island.domain, record.domain], session.scratch)
    wide = Traffic(texts, _WIDE_LENGTHS, 24)
    times = plan.horizon, plan.settled, plan.measured
    pairs = [Pair("wide", base, adapters, wide, plan.merged_loads, *times, _WIDE_STEP_TOKENS, not plan.quick)]
    if not plan.quick:
        tiny = [island, record]
        skewed = plan.merged_loads[-1:]  # it only explains the wide model's result
        pairs.append(Pair("weave-tiny", session.base, tiny, Traffic(texts), skewed, *_TINY_TIMES, STEP_TOKENS))
    return pairs


def _merged_systems(session: _Session, pair: Pair) -> dict[str, list[Spec]]:
    """System -> its engines: one for both adapters, or one for each, in their order."""
    threads = max(2, _cores())
    checkpoints = [merge(pair.base, adapter, session.scratch) for adapter in pair.adapters]

    def merged(title: str, count: int) -> list[Spec]:
        return [
            Spec(f"{title}: {adapter.name}", path, None, count, _KV_BYTES // 2, step_tokens=pair.step_tokens)
            for adapter, path in zip(pair.adapters, checkpoints, strict=True)
        ]

    weave = Spec(WEAVE, pair.base, pair.adapters, threads, _KV_BYTES, step_tokens=pair.step_tokens)
    systems = {MERGED: merged(MERGED, threads // 2), WEAVE: [weave]}
    if pair.variants:
        systems[MERGED_WHOLE] = merged(MERGED_WHOLE, threads)
    return systems


def _beside_merged(session: _Session, bounds: tuple[float, float]) -> list[Row]:
    """Two adapters in one engine beside two merged engines of the same threads and KV cache in all, model by model."""
    made: list[Row] = []
    for pair in _pairs(session):
        systems = _merged_systems(session, pair)
        with session.running([spec for specs in systems.values() for spec in specs], beside=True) as found:
            up = {name: [found[spec.name] for spec in specs] for name, specs in systems.items()}
            made += _pair_rows(session, pair, bounds, up)
            session.taken += [footprint_row(f"{pair.model}: {name}", each) for name, each in up.items()]
    return made


def _pair_rows(
    session: _Session, pair: Pair, bounds: tuple[float, float], up: Mapping[str, Sequence[Engine]]
) -> list[Row]:
    asked = {
        name: [each[0].target(adapter) for adapter in pair.adapters]
        if len(each) == 1
        else [e.target(None) for e in each]
        for name, each in up.items()
    }
    rates = {name: saturate(pair.traffic, who, pair.adapters, session.plan.crowds) for name, who in asked.items()}
    session.settings[f"{pair.model}: requests a second at once, two adapters in equal shares"] = {
        name: round(rate, 2) for name, rate in rates.items()
    }
    typical = unloaded(pair.traffic, up[MERGED][0], pair.adapters[:1])
    slo = _bounds(session, f"{pair.model}, merged", typical, bounds)
    return merged_rows(pair, asked, rates[WEAVE], session.plan.repeats, slo, again=session.plan.again)


def _bounds(session: _Session, title: str, typical: Slo, bounds: tuple[float, float]) -> Slo:
    """Bounds for goodput, as multiples of unloaded medians; notes them."""
    slo = Slo(bounds[0] * typical.ttft, bounds[1] * typical.tpot)
    session.settings[f"goodput bounds, {title}"] = (
        f"TTFT {slo.ttft * 1e3:.1f} ms, TPOT {slo.tpot * 1e3:.1f} ms: {bounds[0]:g} and {bounds[1]:g} times the "
        "unloaded medians of plain vLLM with this model"
    )
    return slo


def _note_settings(session: _Session) -> None:
    plan, domains = session.plan, _domains(session)
    tuned: Mapping[str, int] = {adapter.name: adapter.experts for adapter in session.adapters[: len(domains)]}
    session.settings.update(
        {
            "model": "weave-tiny: 4 layers, 32 experts of 64, top-4, hidden 128, bfloat16; a token is a byte",
            "engine": dict(OPTIONS),
            "tokens a step, at most": f"{STEP_TOKENS}; beside merged engines, wide: {_WIDE_STEP_TOKENS}",
            "threads an engine": _threads(),
            "KV cache an engine, bytes": _KV_BYTES,
            "adapters": "the four shipped; more are copies with every tuned expert changed by 1 %",
            "tuned experts, of 128": dict(tuned),
            "prompts, tokens (least / mean / most)": session.texts.lengths(domains),
            "answers": "as many tokens as the right answer has, whatever the model would say",
            "wide model": f"random weights: {WIDE.layers} layers, {WIDE.experts} experts of {WIDE.expert_width}, "
            f"top-{WIDE.top_k}, hidden {WIDE.hidden}, bfloat16; two adapters of 7 experts a layer; prompts of "
            f"{_WIDE_LENGTHS[0]} and answers of {_WIDE_LENGTHS[1]} tokens",
            "horizon of arrivals, seconds": f"{plan.horizon:g}; above load 1 {plan.settled + plan.measured:g}, of "
            f"which throughput leaves out {plan.settled:g}",
            "repeats": plan.repeats,
            "shares": "adapter i of n: ((i + 1) / n) ** alpha - (i / n) ** alpha",
            "scaling: prefill": f"prompts of {plan.lengths} at batch 1; the paper: 128 to 2048",
            "scaling: decode": f"batches {plan.batches} at prompt {plan.prompt}, {plan.steps} steps; the paper: 1 to "
            "256 at prompt 1024, 128 steps",
            "scaling: arrivals": "rates are shares of what the base model alone answers a second at once; the paper: "
            "1 to 5 requests a second over 100 s on 8 NPUs",
        }
    )
    for name, value in session.settings.items():
        if name.startswith("scaling"):
            session.console.print(f"{name}: {value}")
    session.left_out.append(
        "torch.compile for the base model alone: vLLM compiles nothing on a CPU once adapters are enabled, so all "
        "engines run eagerly; what compiling would gain the base model alone is not in the ratios"
    )


def _domains(session: _Session) -> list[str]:
    return list(dict.fromkeys(adapter.domain for adapter in session.adapters))


def _title(count: int) -> str:
    return f"npu-weave, {count} adapter{'s' if count > 1 else ''}"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _threads() -> int:
    """Of an engine's worker: one core is left for servers and client."""
    return max(1, _cores() - 1)
