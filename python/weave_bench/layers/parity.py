"""Table ``parity``: where npu-weave should cost nothing, it is timed beside what it should equal."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tqdm import tqdm

from npu_weave.adapters.fresh_memory import fresh_tensor
from weave_bench.layers.batch import Shape, Step, decode, prefill
from weave_bench.layers.bench import Bench, check_equal
from weave_bench.layers.pairing import Way, time_pair
from weave_bench.results import Label, Row, Table, ratios, spread

COLUMNS = {
    "npu-weave": "ms, with npu-weave and virtual weight tensors",
    "other": "ms, what it is compared with",
    "ratio": "npu-weave over other, in pairs; 1 is the aim",
}
SHOWS = (
    "The same tokens in turn through npu-weave and through what should take the same time, with caches emptied before "
    "each run. Base tokens: plain vLLM, no plugin in the layer, ordinary tensors of the base experts. One adapter: "
    "plain vLLM over the adapter's merged weights. Padded: one layer whose weights lie once in the virtual tensor, "
    "with memory under rows in use, and once in an ordinary tensor of as many rows, all of them with memory, in huge "
    "pages where the system has them, as those of the virtual tensor are. Before "
    "anything is timed the answers of both sides are compared, and they agree to the bit. A quartile range that holds "
    "1 means that no difference was resolved, not that there is none: its width is the noise of this machine."
)

Sides = Callable[[Bench, Step], tuple[Way, Way]]


def parity(bench: Bench) -> Table:
    """Measure all three comparisons. Overwrites the weights of `bench.plain` by merged ones."""
    layers = bench.plain.count
    largest = [prefill(tokens) for tokens in bench.scale.prefill[:1]]
    shapes = [*map(decode, sorted({min(bench.scale.decode), max(bench.scale.decode)})), *largest]
    with tqdm(total=3 * len(shapes) * (bench.scale.pairs + 1), desc="parity") as bar:
        rows = _compare(bench, "base tokens, beside plain vLLM", shapes, layers, _base_sides, 1, bar)
        _merge(bench)
        rows += _compare(bench, "one adapter, beside its merged model", shapes, layers, _merged_sides, 1, bar)
        virtual, everyone = bench.woven.weights(0), len(bench.traffic.tenants)
        rows += _compare(bench, "virtual beside padded tensors", shapes, 1, _padded_sides(bench), everyone, bar)
        bench.woven.use_weights(0, virtual)
    title = "Steps that should cost the same with npu-weave as without"
    return Table("parity", title, COLUMNS, rows, SHOWS)


def _compare(
    bench: Bench, name: str, shapes: list[Shape], layers: int, sides: Sides, adapters: int, bar: tqdm[None]
) -> list[Row]:
    rows = []
    for shape in shapes:
        ours, others = [], []
        for turn in range(bench.scale.pairs + 1):
            step = bench.step(shape, adapters, turn)
            ways = sides(bench, step)
            if turn == 0:  # warms up as well
                check_equal(_answers(ways[0]), _answers(ways[1]), f"{name}, {shape.kind} of {shape.tokens} tokens")
            else:
                one, other = time_pair(*ways, swap=turn % 2 == 1, between=bench.cold)
                ours.append(one)
                others.append(other)
            bar.update()
        labels: dict[str, Label] = {"comparison": name, "step": shape.kind, "tokens": shape.tokens, "layers": layers}
        values = {"npu-weave": spread(ours), "other": spread(others), "ratio": ratios(ours, others)}
        rows.append(Row(labels, values))
    return rows


def _answers(way: Way) -> list[torch.Tensor]:
    way.prepare()
    found = way.run()
    assert isinstance(found, list), "what the layers return"
    return found


def _base_sides(bench: Bench, step: Step) -> tuple[Way, Way]:
    return bench.of_base(step), bench.without_us(step)


def _merged_sides(bench: Bench, step: Step) -> tuple[Way, Way]:
    """A step of one adapter, the first: its merged weights are in `bench.plain`."""
    return bench.with_adapters(step), bench.without_us(step)


def _merge(bench: Bench) -> None:
    """Put the first adapter's experts into the ordinary tensors of plain vLLM's layers, in the base experts' place."""
    for index, layer in bench.woven.manager.store.bank.layers.items():
        slot = bench.woven.manager.store.slot_of(1)
        for expert, row in layer.map.rows_of(slot).items():
            for name, weight in bench.plain.weights(index).items():
                weight[expert].copy_(layer.tensors[name].row_view(row))


def _padded_sides(bench: Bench) -> Sides:
    """The first layer over its virtual tensors, and over ordinary ones with the same rows."""
    virtual = bench.woven.weights(0)
    tensors = bench.woven.manager.store.bank.layers[0].tensors
    padded = {}
    for name, weight in virtual.items():
        # in huge pages, as virtual tensors are; written, so that rows without an adapter have memory too
        padded[name] = fresh_tensor(weight.shape, weight.dtype).zero_()
        for row in tensors[name].mapped_rows:
            padded[name][row].copy_(weight[row])

    def sides(bench: Bench, step: Step) -> tuple[Way, Way]:
        woven = bench.with_adapters(step, 1)

        def over_padded() -> None:
            woven.prepare()
            bench.woven.use_weights(0, padded)

        def over_virtual() -> None:
            woven.prepare()
            bench.woven.use_weights(0, virtual)

        return Way(over_virtual, woven.run), Way(over_padded, woven.run)

    return sides
