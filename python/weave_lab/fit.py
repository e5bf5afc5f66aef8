"""The training loop that pretraining and adapter training share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from tqdm import tqdm

from weave_lab.batches import Batch
from weave_lab.model import MoELanguageModel, Routing
from weave_lab.optimizer import MatrixOptimizer


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimizer steps.
        rows: sequences a batch.
        length: tokens a sequence.
        matrix_rate: Muon's peak learning rate.
        other_rate: AdamW's peak learning rate.
        balance: weight of the load-balancing loss; 0 when the router is frozen.
        warmup: share of the steps in which the rate rises; over the last half it falls to zero.
    """

    steps: int
    rows: int = 32
    length: int = 128
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    balance: float = 0.0
    warmup: float = 0.03

    def scale(self, step: int) -> float:
        """Learning-rate factor of step `step`, in (0, 1]."""
        rise = (step + 1) / max(1.0, self.warmup * self.steps)
        fall = (self.steps - step) / (0.5 * self.steps)
        return min(1.0, rise, fall)


def next_token_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Weighted mean cross-entropy in nats of logits `[B, T, vocab]`; 0 when nothing in the batch has weight."""
    each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    weights = batch.weights.flatten()
    return (each * weights).sum() / weights.sum().clamp_min(1e-6)


def balance_loss(routings: list[Routing]) -> torch.Tensor:
    """Mean over layers of ``experts * sum_e share_e * probability_e``; 1 when all experts are used alike."""
    losses = []
    for routing in routings:
        experts = routing.probabilities.shape[1]
        share = torch.bincount(routing.experts.flatten(), minlength=experts) / routing.experts.numel()
        losses.append(experts * (share * routing.probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


def fit(
    model: MoELanguageModel,
    batches: Iterator[Batch],
    schedule: Schedule,
    label: str,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains the parameters of `model` that require gradients, in place, showing a progress bar.

    Args:
        model: the model; mutated.
        batches: at least ``schedule.steps`` batches.
        schedule: steps and rates.
        label: the progress bar's text.
        on_step: called with step and loss after each step.

    Returns:
        The loss of each step, in nats a token.
    """
    optimizer = MatrixOptimizer(model.named_parameters(), schedule.matrix_rate, schedule.other_rate)
    losses: list[float] = []
    with tqdm(total=schedule.steps, desc=label, unit="step", mininterval=1.0) as bar:
        for step, batch in enumerate(islice(batches, schedule.steps)):
            logits, routings = model(batch.inputs)
            loss = next_token_loss(logits, batch)
            total = loss + schedule.balance * balance_loss(routings) if schedule.balance else loss
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step(schedule.scale(step))
            losses.append(loss.item())
            bar.update()
            bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
            if on_step is not None:
                on_step(step, losses[-1])
    return losses


@torch.no_grad()
def teacher_forced_matches(model: MoELanguageModel, batch: Batch) -> float:
    """Share of rows whose every full-weight target is the model's first choice; equals greedy exact match."""
    logits, _ = model(batch.inputs)
    right = (logits.argmax(-1) == batch.targets) | (batch.weights < 1.0)
    return float(right.all(-1).float().mean())
