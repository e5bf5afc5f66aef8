"""Table ``own-work``: npu-weave's own work, timed directly: in each layer, and once a step."""

from __future__ import annotations

import time
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
    "reroute in place": "us a layer: the same call where it stands, while the layers run",
    "gating in place": "us a layer: vLLM's own choice of experts in the same place, without npu-weave, for a scale",
    "in router": "us a layer: what choosing experts takes longer than vLLM's own, in pairs",
    "router": "that, as a ratio of vLLM's own",
    "step": "us a step: slots of the requests, token slots, bookkeeping, as vLLM's model runner calls it",
    "step in place": "us a step: the same call right after the layers of the step before",
    "allocations": "tensors that a rerouting allocates; one is its result",
    "step allocations": "tensors that preparing a step allocates",
    "waits": "1 when the calls did not end while another thread held every lock of npu-weave, else 0",
}
SHOWS = (
    "Decode steps of 20 adapters; the aims at 32 requests are 20 us a layer and 50 us a step, with no tensor but the "
    "result and no lock waited for. Calls by themselves: each repeat is the median of many in a row, with code and "
    "data in caches. In place: each call of steps that run, between whose calls the weights of layers go through the "
    "caches, so that its code and data come from memory, as with everything around it. The clock's own share in place "
    "is 2 to 4 us. `in router` is a difference of two larger times and has their noise."
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

    layer_us, gating_us, step_us = _in_place(bench, step, prepare)
    longer = [one - other for one, other in zip(found["ours"], found["plain"], strict=True)]
    return Row(
        {"requests": batch, "adapters": adapters},
        {
            "reroute": spread(found["reroute"]),
            "reroute in place": spread(layer_us),
            "gating in place": spread(gating_us),
            "in router": spread(longer),
            "router": ratios(found["ours"], found["plain"]),
            "step": spread(found["step"]),
            "step in place": spread(step_us),
            "allocations": float(len(tensor_allocations(reroute))),
            "step allocations": float(len(tensor_allocations(prepare))),
            "waits": float(waits_for(locks, both)),
        },
    )


def _in_place(bench: Bench, step: Step, prepare: Action) -> tuple[list[float], list[float], list[float]]:
    """Microseconds of each rerouting while steps run, of each choice of experts while they run without npu-weave, and
    of each preparation of a step. The first step of either warms up."""
    layers, gatings, steps = list[float](), list[float](), list[float]()
    with ExitStack() as patched:
        patched.enter_context(_timed(LayerRouting, "reroute", layers))
        for runner in bench.plain.runners:
            patched.enter_context(_timed(runner.router, "select_experts", gatings))
        for _ in range(bench.scale.turns + 1):
            bench.plain.run(step)
            steps.append(microseconds(prepare, 1))
            bench.woven.run(step)
    return layers[bench.woven.count :], gatings[bench.plain.count :], steps[1:]


@contextmanager
def _timed(owner: object, name: str, found: list[float]) -> Iterator[None]:
    """Note the microseconds of every call of a function that is an attribute of `owner`."""
    own = name in vars(owner)
    original: Callable[..., object] = getattr(owner, name)

    def timed(*args: object, **kwargs: object) -> object:
        begun = time.perf_counter()
        result = original(*args, **kwargs)
        found.append((time.perf_counter() - begun) * 1e6)
        return result

    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
