"""Routing and expert configurations of published ESFT adapters, from a directory that ``WEAVE_ESFT`` names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from weave_bench.layers.traffic import EXPERTS, Logits, Tenant, spread_layers

GATE_SHARE = 0.1
"""A gate-score adapter tunes the fewest experts whose average gate weights add up to this (ESFT)."""

_NEVER = -30.0


class RecordedTraffic:
    """Adapters by their real configurations and tokens by their recorded routing.

    The directory holds, for each task, ``routing_<task>.npz`` (``expert_ids`` and ``gate_weights``
    ``[tokens, layers, top_k]``), ``expert_cfg_token_<task>.json`` and ``expert_scores_<task>.json``, keyed by model
    layer, which is one more than the place in the trace. Each task gives two adapters, by token and by gate score;
    beyond these they are repeated, with weights of their own.

    Raises:
        FileNotFoundError: a file is missing, or there is no trace at all.
    """

    def __init__(self, directory: Path, layers: int, *, adapters: int) -> None:
        tasks = sorted(path.stem.removeprefix("routing_") for path in directory.glob("routing_*.npz"))
        if not tasks:
            raise FileNotFoundError(f"WEAVE_ESFT: no routing_*.npz in {directory}")
        self._ids, self._weights = {}, {}
        for task in tasks:
            with np.load(directory / f"routing_{task}.npz") as trace:
                self._ids[task], self._weights[task] = trace["expert_ids"], trace["gate_weights"]
        at = self._layers = spread_layers(layers, next(iter(self._ids.values())).shape[1])
        kinds = [
            (kind, task, read(directory, task)) for kind, read in (("token", _by_token), ("gate", _by_gate))
            for task in tasks
        ]  # fmt: skip
        tenants, self._task = [], list[str]()
        for number in range(adapters):
            kind, task, experts = kinds[number % len(kinds)]
            again = number // len(kinds)
            name = f"{kind}-{task}" + (f" {again + 1}" if again else "")
            tenants.append(Tenant(name, [tuple(sorted(experts[layer + 1])) for layer in at]))
            self._task.append(task)
        self.tenants: Sequence[Tenant] = tenants
        self.source = (
            f"recorded routing and published configurations of {len(tasks)} ESFT tasks "
            f"({', '.join(tasks)}), {len(kinds)} adapters, repeated"
        )

    def logits(self, tenant: int, tokens: int, draw: np.random.Generator) -> list[Logits]:
        """See `Traffic.logits`: consecutive tokens of the trace. Softmax and top-k give its experts and weights."""
        ids, weights = self._ids[self._task[tenant]], self._weights[self._task[tenant]]
        first = int(draw.integers(len(ids) - tokens + 1))
        found = []
        for layer in self._layers:
            logits = np.full((tokens, EXPERTS), _NEVER, dtype=np.float32)
            chosen = ids[first : first + tokens, layer].astype(np.int64)
            gate = weights[first : first + tokens, layer].astype(np.float32)
            np.put_along_axis(logits, chosen, np.log(np.maximum(gate, 1e-4)), axis=1)
            found.append(logits)
        return found


def _by_token(directory: Path, task: str) -> Mapping[int, Sequence[int]]:
    experts = json.loads((directory / f"expert_cfg_token_{task}.json").read_text())["experts"]
    return {int(layer): ids for layer, ids in experts.items()}


def _by_gate(directory: Path, task: str) -> Mapping[int, Sequence[int]]:
    scores = json.loads((directory / f"expert_scores_{task}.json").read_text())["gate_scores"]
    return {int(layer): fewest(found, GATE_SHARE) for layer, found in scores.items()}


def fewest(scores: Mapping[str, float], share: float) -> list[int]:
    """The fewest experts whose scores add up to `share`, highest first; all of them if they do not."""
    ranked = sorted(scores, key=lambda expert: -scores[expert])
    sums = list(accumulate(scores[expert] for expert in ranked))
    count = next((position + 1 for position, reached in enumerate(sums) if reached >= share), len(ranked))
    return [int(expert) for expert in ranked[:count]]
