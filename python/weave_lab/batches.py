"""Examples packed into fixed-length training batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from weave_lab.tasks.protocol import ANSWER_END, Example, Task, stream
from weave_lab.tokenizer import BOS, EOS, PAD, encode_bytes

PROMPT_WEIGHT = 0.1
"""Weight of a prompt byte in the base model's loss; answer bytes weigh 1. Prompts are mostly noise."""


@dataclass(frozen=True)
class Batch:
    """Next-token training data.

    Attributes:
        inputs: int64 `[B, T]`, each row starting with ``<bos>``, padded on the right.
        targets: int64 `[B, T]`, the token after each input.
        weights: float32 `[B, T]`, weight of each target in the loss; 0 on padding.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def encode_example(example: Example, prompt_weight: float = PROMPT_WEIGHT) -> tuple[list[int], list[float]]:
    """Token ids of one line (prompt, answer, newline) and the loss weight of each."""
    prompt, answer = encode_bytes(example.prompt), encode_bytes(example.answer + ANSWER_END)
    return prompt + answer, [prompt_weight] * len(prompt) + [1.0] * len(answer)


def as_batch(rows: Sequence[tuple[list[int], list[float]]], length: int) -> Batch:
    """Rows of (ids, weights) without ``<bos>`` as one batch of `length` positions. Longer rows are cut."""
    tokens = torch.full((len(rows), length + 1), PAD)
    weights = torch.zeros(len(rows), length)
    for index, (ids, row_weights) in enumerate(rows):
        kept = min(len(ids), length)
        tokens[index, 0] = BOS
        tokens[index, 1 : kept + 1] = torch.tensor(ids[:kept])
        weights[index, :kept] = torch.tensor(row_weights[:kept])
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights)


def packed_batches(
    tasks: Sequence[Task], seed: int | str, rows: int, length: int, prompt_weight: float = PROMPT_WEIGHT
) -> Iterator[Batch]:
    """Batches without end: each row holds as many whole lines, of tasks drawn at random, as fit, then ``<eos>``.

    A task that occurs twice in `tasks` is drawn twice as often.

    The first line of a row sees nothing before it but ``<bos>``, as a served prompt does; the later ones also teach
    the model to work after other text.
    """
    rng = random.Random(f"batches/{seed}")
    streams = [stream(task, f"{seed}/{index}", "train") for index, task in enumerate(tasks)]
    while True:
        yield as_batch([_pack_row(rng, streams, length, prompt_weight) for _ in range(rows)], length)


def _pack_row(
    rng: random.Random, streams: Sequence[Iterator[Example]], length: int, prompt_weight: float
) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    while True:
        line, line_weights = encode_example(next(rng.choice(streams)), prompt_weight)
        if ids and len(ids) + len(line) >= length:
            return [*ids, EOS], [*weights, prompt_weight]
        ids += line
        weights += line_weights
