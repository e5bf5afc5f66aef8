"""Table ``own-work``: npu-weave's own work, timed directly: in each layer, and once a step."""

from __future__ import annotations

from functools import partial

import torch
from tqdm import tqdm

from npu_weave.experts.routing import LayerRouting
from weave_bench.layers.allocations import tensor_allocations
from weave_bench.layers.batch import decode
from weave_bench.layers.bench import Bench
from weave_bench.layers.locks import locks_of, waits_for
from weave_bench.layers.pairing import Action, microseconds
from weave_bench.layers.traffic import TOP_K
from weave_bench.results import Row, Table, ratios, spread

BATCHES = (1, 8, 32, 256)
COLUMNS = {
    "reroute": "us a layer: the rerouting call, its Python included",
    "reroute cold": "the same, right after the caches were emptied",
    "in router": "us a layer: what choosing experts takes longer than vLLM's own, in pairs",
    "router": "that, as a ratio of vLLM's own",
    "step": "us a step: slots of the requests, token slots, bookkeeping, as vLLM's model runner calls it",
    "step cold": "the same, right after the caches were emptied",
    "allocations": "tensors that a rerouting allocates; one is its result",
    "step allocations": "tensors that preparing a step allocates",
    "waits": "1 when the calls did not end while another thread held every lock of npu-weave, else 0",
}
SHOWS = (
    "Decode steps of 20 adapters; the aims at 32 requests are 20 us a layer and 50 us a step, with no tensor but the "
    "result and no lock waited for. Each repeat is the median of many calls in a row, whose code and data are in "
    "caches; in a step the weights of a layer went through the caches before, so a call costs up to what is named "
    "cold, where each repeat is one call. `in router` is a difference of two larger times and has their noise."
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
    found: dict[str, list[float]] = {name: [] for name in [*actions, "reroute cold", "step cold"]}
    for turn in range(bench.scale.turns + 1):
        for name, action in actions.items():
            taken = microseconds(action, _CALLS)
            if turn:  # the first warms up
                found[name].append(taken)
        for name in ("reroute", "step"):
            bench.cold()
            found[f"{name} cold"].append(microseconds(actions[name], 1))

    def both() -> None:
        with torch.inference_mode():
            prepare()
            reroute()

    longer = [one - other for one, other in zip(found["ours"], found["plain"], strict=True)]
    return Row(
        {"requests": batch, "adapters": adapters},
        {
            "reroute": spread(found["reroute"]),
            "reroute cold": spread(found["reroute cold"]),
            "in router": spread(longer),
            "router": ratios(found["ours"], found["plain"]),
            "step": spread(found["step"]),
            "step cold": spread(found["step cold"]),
            "allocations": float(len(tensor_allocations(reroute))),
            "step allocations": float(len(tensor_allocations(prepare))),
            "waits": float(waits_for(locks, both)),
        },
    )
