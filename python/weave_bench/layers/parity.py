"""Table ``parity``: where npu-weave should cost nothing, it is timed beside what it should equal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from tqdm import tqdm

from npu_weave.adapters.fresh_memory import fresh_tensor
from npu_weave.memory import HostDriver, PagePool
from npu_weave.memory.virtual_tensor import VirtualTensor
from weave_bench.layers.batch import Shape, Step, decode, prefill
from weave_bench.layers.bench import COMPARED, COPIES, Bench, check_equal
from weave_bench.layers.pairing import Way, time_round
from weave_bench.results import Label, Row, Table, ratios, spread

COLUMNS = {
    "npu-weave": f"ms, with npu-weave and virtual weight tensors, {COPIES} copies of them",
    "other": f"ms, what it is compared with, {COPIES} copies of it",
    "ratio": "each copy of npu-weave over each of the other, in rounds; 1 within the noise is the aim",
    "noise": "each copy over each other copy of the same, in rounds: what equal things differ by here",
}
SHOWS = (
    "The same tokens in turn through npu-weave and through what should take the same time, one MoE layer each, with "
    "caches emptied before each run. Base tokens: plain vLLM, no plugin in the layer, ordinary tensors of the base "
    "experts. One adapter: plain vLLM over the adapter's merged weights. Padded: the layer over virtual tensors, with "
    f"memory under rows in use, and over ordinary tensors of as many rows, for {COMPARED} adapters, in huge pages "
    "where the system has them, as those of virtual tensors are. Before anything is timed the answers of both sides "
    f"are compared, and they agree to the bit. Of both sides there are {COPIES} copies, made in turn, each in memory "
    "of its own, all timed in every round: two equal tensors differ by up to a tenth on this machine, by where in "
    "memory they happen to lie. The aim is met where npu-weave looks like one more copy: the median lies within the "
    "quarters of the noise. That means that no difference was resolved, not that there is none."
)

Weights = Mapping[str, torch.Tensor]
Side = Callable[[Step], Way]


class Compared(NamedTuple):
    """The ways of a step that should take the same time, over copies of npu-weave's weights and of the others'."""

    ours: Sequence[Side]
    others: Sequence[Side]


def parity(bench: Bench) -> Table:
    """Measure all three comparisons. Overwrites the weights of `bench.plain` by merged ones."""
    largest = [prefill(tokens) for tokens in bench.scale.prefill[:1]]
    shapes = [*map(decode, sorted({min(bench.scale.decode), max(bench.scale.decode)})), *largest]
    rows: list[Row] = []
    with tqdm(total=3 * len(shapes) * (bench.scale.pairs + 1), desc="parity") as bar:
        with _beside_plain(bench, bench.of_base) as sides:
            rows += _compare(bench, "base tokens, beside plain vLLM", shapes, sides, 1, bar)
        _merge(bench)
        with _beside_plain(bench, bench.with_adapters) as sides:  # of one adapter, the first
            rows += _compare(bench, "one adapter, beside its merged model", shapes, sides, 1, bar)
        with _beside_padded(bench) as sides:
            rows += _compare(bench, "virtual beside padded tensors", shapes, sides, COMPARED, bar)
    title = "Steps that should cost the same with npu-weave as without"
    return Table("parity", title, COLUMNS, rows, SHOWS)


def _compare(
    bench: Bench, name: str, shapes: list[Shape], sides: Compared, adapters: int, bar: tqdm[None]
) -> list[Row]:
    rows = []
    for shape in shapes:
        rounds = []
        for turn in range(bench.scale.pairs + 1):
            step = bench.step(shape, adapters, turn)
            ways = [side(step) for pair in zip(*sides, strict=True) for side in pair]
            if turn == 0:  # warms up as well
                first, *others = map(_answers, ways)
                for other in others:
                    check_equal(first, other, f"{name}, {shape.kind} of {shape.tokens} tokens")
            else:
                taken = time_round(ways, begin=turn % len(ways), between=bench.cold)
                rounds.append((taken[0::2], taken[1::2]))
            bar.update()
        labels: dict[str, Label] = {"comparison": name, "step": shape.kind, "tokens": shape.tokens}
        rows.append(compared(labels, rounds))
    return rows


def compared(labels: dict[str, Label], rounds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Row:
    """A row of rounds of milliseconds: of every copy of npu-weave, and of every copy of the other."""
    pairs = [pair for ours, others in rounds for pair in itertools.product(ours, others)]
    equals = [pair for sides in rounds for copies in sides for pair in itertools.permutations(copies, 2)]
    values = {
        "npu-weave": spread([one for ours, _ in rounds for one in ours]),
        "other": spread([other for _, others in rounds for other in others]),
        "ratio": ratios(*zip(*pairs, strict=True)),
        "noise": ratios(*zip(*equals, strict=True)),
    }
    return Row(labels, values)


def _answers(way: Way) -> list[torch.Tensor]:
    way.prepare()
    found = way.run()
    assert isinstance(found, list), "what the layers return"
    return found


@contextmanager
def _beside_plain(bench: Bench, ours: Callable[[Step, int], Way]) -> Iterator[Compared]:
    """The first layer of npu-weave and of plain vLLM, over copies of their weights."""
    with _virtual_copies(bench, 1) as copy:
        virtual: list[Weights] = [bench.woven.weights(0)]
        plain: list[Weights] = [bench.plain.weights(0)]
        for _ in range(COPIES - 1):
            virtual.append(copy())
            plain.append({name: weight.clone() for name, weight in plain[0].items()})
        yield Compared(
            [partial(_over, bench.woven.use_weights, weights, ours) for weights in virtual],
            [partial(_over, bench.plain.use_weights, weights, bench.without_us) for weights in plain],
        )
        bench.plain.use_weights(0, plain[0])


@contextmanager
def _beside_padded(bench: Bench) -> Iterator[Compared]:
    """The first layer over its virtual tensors and copies of them, and over ordinary ones with the same rows."""
    with _virtual_copies(bench, COMPARED) as copy:
        virtual: list[Weights] = [bench.woven.weights(0)]
        padded = [_padded(bench)]
        for _ in range(COPIES - 1):
            virtual.append(copy())
            padded.append(_padded(bench))
        sides = [
            [partial(_over, bench.woven.use_weights, weights, bench.with_adapters) for weights in copies]
            for copies in (virtual, padded)
        ]
        yield Compared(*sides)


def _over(
    use_weights: Callable[[int, Weights], None], weights: Weights, way_of: Callable[[Step, int], Way], step: Step
) -> Way:
    """A way through the first layer, over other weights."""
    way = way_of(step, 1)

    def prepare() -> None:
        way.prepare()
        use_weights(0, weights)

    return Way(prepare, way.run)


@contextmanager
def _virtual_copies(bench: Bench, adapters: int) -> Iterator[Callable[[], Weights]]:
    """What makes copies of the first layer's virtual tensors, with memory under the rows of the base model and of the
    first `adapters`. They are gone, and the layer has its own again, at the end."""
    original, rows, made = bench.woven.weights(0), _rows_of(bench, adapters), list[VirtualTensor]()

    def copy() -> Weights:
        pool, weights = PagePool(HostDriver()), {}
        for name, weight in original.items():
            shape = tuple(weight.shape[1:])
            made.append(VirtualTensor(pool, rows=len(weight), row_shape=shape, dtype=weight.dtype, name=name))
            made[-1].map_rows(rows)
            weights[name] = made[-1].tensor
            for row in rows:
                weights[name][row].copy_(weight[row])
        return weights

    try:
        yield copy
    finally:
        bench.woven.use_weights(0, original)
        for tensor in made:
            tensor.close()


def _rows_of(bench: Bench, adapters: int) -> Collection[int]:
    """Rows of the first layer that the base model or one of the first `adapters` use."""
    store = bench.woven.manager.store
    layer = store.bank.layers[0]
    slots = [store.slot_of(revision) for revision in range(1, adapters + 1)]
    return set(range(layer.base_experts)).union(*(layer.owned[slot] for slot in slots))


def _padded(bench: Bench) -> Weights:
    """Ordinary tensors of the first layer, in huge pages where there are any, as those of virtual tensors are.

    Rows that no step of the comparison reads are not written: memory under them would change no time.
    """
    padded = {}
    for name, weight in bench.woven.weights(0).items():
        padded[name] = fresh_tensor(weight.shape, weight.dtype)
        for row in _rows_of(bench, COMPARED):
            padded[name][row].copy_(weight[row])
    return padded


def _merge(bench: Bench) -> None:
    """Put the first adapter's experts into the ordinary tensors of plain vLLM's layers, in the base experts' place."""
    for index, layer in bench.woven.manager.store.bank.layers.items():
        slot = bench.woven.manager.store.slot_of(1)
        for expert, row in layer.map.rows_of(slot).items():
            for name, weight in bench.plain.weights(index).items():
                weight[expert].copy_(layer.tensors[name].row_view(row))
