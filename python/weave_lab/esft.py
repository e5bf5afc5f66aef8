"""Expert-specialised fine-tuning: only the chosen routed experts learn, everything else stays the base model's."""

from __future__ import annotations

from weave_lab.batches import packed_batches
from weave_lab.checkpoint import MATRICES, ExpertChoice, expert_key
from weave_lab.fit import Schedule, fit
from weave_lab.model import MoELanguageModel
from weave_lab.tasks import Task


def freeze_all_but(model: MoELanguageModel, choice: ExpertChoice) -> int:
    """Sets ``requires_grad`` on the matrices of the chosen experts and clears it everywhere else, in place.

    Returns:
        How many parameters remain trainable.

    Raises:
        KeyError: `choice` names a layer or expert the model does not have.
    """
    named = dict(model.named_parameters())
    trainable = [named[expert_key(layer, expert, matrix)]
                 for layer, experts in choice.items() for expert in experts for matrix in MATRICES]  # fmt: skip
    model.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)
    return sum(parameter.numel() for parameter in trainable)


def train_adapter(
    model: MoELanguageModel, task: Task, choice: ExpertChoice, schedule: Schedule, seed: int
) -> list[float]:
    """Trains the chosen experts of `model` on `task`, in place; every other tensor keeps its bits.

    Args:
        model: a fresh copy of the base model; mutated.
        task: what to learn.
        choice: experts to train, by layer.
        schedule: steps and rates; its balance loss must be 0, as the router is frozen.
        seed: seeds the examples.

    Returns:
        The loss of each step, in nats a token.
    """
    if schedule.balance:
        raise ValueError(f"the router is frozen: balance must be 0, got {schedule.balance}")
    freeze_all_but(model, choice)
    batches = packed_batches([task], f"{task.name}/{seed}", schedule.rows, schedule.length, prompt_weight=0.0)
    return fit(model, batches, schedule, f"adapter {task.name}")
