"""Table ``own-work``: npu-weave's own work, timed directly: in each layer, and once a step."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from tqdm import tqdm

from npu_weave.experts.routing import LayerRouting
from weave_bench.layers.allocations import tensor_allocations
from weave_bench.layers.batch import Step, decode
from weave_bench.layers.bench import Bench
from weave_bench.layers.locks import locks_of, waits_for
from weave_bench.layers.pairing import Action, microseconds
from weave_bench.layers.traffic import TOP_K
from weave_bench.results import Row, Table, ratios, spread

BATCHES = (1, 8, 32, 256)
COLUMNS = {
    "reroute": "us a layer: the rerouting call, its Python included",
    "reroute in place": "us a layer: the same call where it stands, while the layers run, less `empty in place`",
    "gating in place": "us a layer: vLLM's own choice of experts in the same place, without npu-weave, for a scale",
    "in router": "us a layer: what choosing experts takes longer than vLLM's own, in pairs",
    "router": "that, as a ratio of vLLM's own",
    "step": "us a step: slots of the requests, token slots, bookkeeping, as vLLM's model runner calls it",
    "step in place": "us a step: the same call right after the layers of the step before, less `empty call`",
    "empty in place": "us: the clock around a call that does nothing, in the place of the rerouting",
    "empty call": "us: the same in the place of the step's call",
    "allocations": "tensors that a rerouting allocates; one is its result",
    "step allocations": "tensors that preparing a step allocates",
    "waits": "1 when the calls did not end while another thread held every lock of npu-weave, else 0",
}
SHOWS = (
    "Decode steps of 20 adapters; the aims at 32 requests are 20 us a layer and 50 us a step, with no tensor but the "
    "result and no lock waited for. Calls by themselves: each repeat is the median of many in a row, with code and "
    "data in caches. In place: each call of steps that run, between whose calls the weights of layers go through the "
    "caches, so that its code and data come from memory, as with everything around it. The clock's code does, too: "
    "what a call that does nothing takes in the same place, in every other step, is taken off. `in router` is a "
    "difference of two larger times and has their noise."
)
_CALLS = 200


def own_work(bench: Bench) -> Table:
    """Measure with all adapters in every batch."""
    locks = locks_of("npu_weave")
    if not locks:
        raise RuntimeError("npu-weave has no lock that could be found, so none was held")
    rows = [_row(bench, batch, locks) for batch in tqdm(BATCHES, desc="own work")]
    return Table("own-work", "npu-weave's own work in a layer and in a step", COLUMNS, rows, SHOWS)


def _row(bench: Bench, batch: int, locks: list[object]) -> Row:
    adapters = len(bench.traffic.tenants)
    step = bench.step(decode(batch), adapters, 0)
    bench.woven.set_step(step.revisions, step.tokens)
    ids = step.logits[0].topk(TOP_K, dim=-1).indices.int()
    routing = LayerRouting(bench.woven.manager.store.bank.layers[0], bench.woven.manager.token_slots)
    reroute = partial(routing.reroute, ids)
    prepare = bench.woven.step_call(step.revisions, step.tokens)
    ours, plain = partial(bench.woven.select, 0, step), partial(bench.plain.select, 0, step)

    actions: dict[str, Action] = {"reroute": reroute, "step": prepare, "ours": ours, "plain": plain}
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(bench.scale.turns + 1):
        for name, action in actions.items():
            taken = microseconds(action, _CALLS)
            if turn:  # the first warms up
                found[name].append(taken)

    def both() -> None:
        with torch.inference_mode():
            prepare()
            reroute()

    placed = _in_place(bench, step, prepare)
    longer = [one - other for one, other in zip(found["ours"], found["plain"], strict=True)]
    return Row(
        {"requests": batch, "adapters": adapters},
        {
            "reroute": spread(found["reroute"]),
            "reroute in place": spread(placed.less_the_clock("reroute")),
            "gating in place": spread(placed.less_the_clock("gating")),
            "in router": spread(longer),
            "router": ratios(found["ours"], found["plain"]),
            "step": spread(found["step"]),
            "step in place": spread(placed.less_the_clock("step")),
            "empty in place": spread(placed.empty["reroute"]),
            "empty call": spread(placed.empty["step"]),
            "allocations": float(len(tensor_allocations(reroute))),
            "step allocations": float(len(tensor_allocations(prepare))),
            "waits": float(waits_for(locks, both)),
        },
    )


class Placed:
    """Microseconds of calls where they stand in steps that run, and in every other step of empty ones there.

    Attributes:
        calls, empty: name -> microseconds.
        is_empty: which of them is timed now.
    """

    def __init__(self) -> None:
        self.calls: defaultdict[str, list[float]] = defaultdict(list)
        self.empty: defaultdict[str, list[float]] = defaultdict(list)
        self.is_empty = False

    def less_the_clock(self, name: str) -> list[float]:
        """Of each call, less the median of the empty ones in its place."""
        clock = statistics.median(self.empty[name])
        return [taken - clock for taken in self.calls[name]]

    def time(self, name: str, action: Callable[..., object], *args: object, **kwargs: object) -> object:
        """Call `action`, and note how long it takes, or how long nothing takes."""
        timed = _nothing if self.is_empty else action
        begun = time.perf_counter()
        result = timed(*args, **kwargs)
        taken = (time.perf_counter() - begun) * 1e6
        (self.empty if self.is_empty else self.calls)[name].append(taken)
        return action(*args, **kwargs) if self.is_empty else result


def _nothing(*args: object, **kwargs: object) -> None:
    pass


def _in_place(bench: Bench, step: Step, prepare: Action) -> Placed:
    """Each rerouting while steps run, each choice of experts while they run without npu-weave, and each preparation of
    a step."""
    placed = Placed()
    with ExitStack() as patched:
        patched.enter_context(_timed(LayerRouting, "reroute", placed))
        for runner in bench.plain.runners:
            patched.enter_context(_timed(runner.router, "select_experts", placed, "gating"))
        for turn in range(2 * (bench.scale.turns + 1)):
            if turn == 2:  # the first two warm up
                placed.calls.clear()
                placed.empty.clear()
            placed.is_empty = turn % 2 == 1
            bench.plain.run(step)
            placed.time("step", prepare)
            bench.woven.run(step)
    return placed


@contextmanager
def _timed(owner: object, name: str, placed: Placed, called: str = "") -> Iterator[None]:
    """Time every call of a function that is an attribute of `owner`, as `called` or its own name."""
    own = name in vars(owner)
    original: Callable[..., object] = getattr(owner, name)

    def timed(*args: object, **kwargs: object) -> object:
        return placed.time(called or name, original, *args, **kwargs)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
