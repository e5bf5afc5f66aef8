"""Training in small: losses fall, ESFT touches the chosen experts only, an adapter beats its base."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch

from weave_lab import artifacts
from weave_lab.batches import Batch, as_batch, encode_example, packed_batches
from weave_lab.checkpoint import expert_key, save_base
from weave_lab.esft import freeze_all_but, train_adapter
from weave_lab.fit import Schedule, balance_loss, fit, next_token_loss, teacher_forced_matches
from weave_lab.model import ModelShape, MoELanguageModel, Routing
from weave_lab.optimizer import orthogonalize
from weave_lab.relevance import measure, select
from weave_lab.tasks import by_name, generate
from weave_lab.tasks.protocol import LineTask
from weave_lab.tokenizer import BOS, EOS, PAD

SHAPE = ModelShape(hidden=64, layers=2, experts=8, top_k=2, expert_width=32, heads=2, kv_heads=1)


def parity(rng: random.Random) -> tuple[str, str]:
    number = rng.randrange(1000)
    return str(number), ("even", "odd")[number % 2]


PARITY = LineTask("parity", parity)


def test_loss_falls_and_an_adapter_beats_its_base(tmp_path):
    torch.manual_seed(0)
    base = MoELanguageModel(SHAPE)
    losses = fit(
        base, packed_batches([by_name("digits")], 0, 8, 64), Schedule(steps=60, rows=8, length=64, balance=0.01), "base"
    )
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    save_base(base, tmp_path)

    evaluation = as_batch([encode_example(example) for example in generate(PARITY, 60)], 32)
    choice = select(measure(base, generate(PARITY, 10, 0, "train")).token, 0.6)
    tuned = copy.deepcopy(base)
    adapter_losses = train_adapter(tuned, PARITY, choice, Schedule(steps=400, rows=8, length=64), seed=0)
    assert sum(adapter_losses[-10:]) < 0.5 * sum(adapter_losses[:10])
    assert teacher_forced_matches(base, evaluation) < 0.1
    assert teacher_forced_matches(tuned, evaluation) > 0.6, (
        "half could be guessed; how many more depends on the processor"
    )

    chosen = {expert_key(layer, expert, matrix) for layer, experts in choice.items() for expert in experts
              for matrix in ("gate_proj", "up_proj", "down_proj")}  # fmt: skip
    assert 0 < len(chosen) < 2 * 8 * 3
    after = tuned.state_dict()
    for name, before in base.state_dict().items():
        assert torch.equal(before, after[name]) == (name not in chosen), name


def test_freezing_leaves_exactly_the_chosen_matrices_trainable():
    model = MoELanguageModel(SHAPE)
    count = freeze_all_but(model, {0: [2], 1: [0, 7]})
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 9 and expert_key(1, 7, "up_proj") in trainable
    assert count == 3 * 3 * 64 * 32
    with pytest.raises(KeyError):
        freeze_all_but(model, {0: [8]})


def test_esft_refuses_to_train_the_router():
    with pytest.raises(ValueError, match="balance"):
        train_adapter(MoELanguageModel(SHAPE), PARITY, {0: [0]}, Schedule(steps=1, balance=0.1), seed=0)


def test_same_seed_same_weights():
    ends = []
    for _ in range(2):
        torch.manual_seed(3)
        model = MoELanguageModel(SHAPE)
        fit(model, packed_batches([PARITY], 3, 4, 32), Schedule(steps=3), "twice")
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_packed_rows_hold_whole_lines():
    batch = next(packed_batches([by_name("copy"), PARITY], 0, 6, 64))
    assert batch.inputs.shape == batch.targets.shape == batch.weights.shape == (6, 64)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    for row, weights in zip(batch.targets.tolist(), batch.weights.tolist(), strict=True):
        end = row.index(EOS)
        assert row[end - 1] == ord("\n") and set(row[end + 1 :]) <= {PAD}
        assert weights[end - 1] == 1.0 and not any(weights[end + 1 :])
    assert (batch.inputs[:, 0] == BOS).all()


def test_losses_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))
    batch = Batch(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.5]]))
    expected = (-torch.log(torch.tensor(0.5)) - 0.5 * torch.log(torch.tensor(0.8))) / 1.5
    torch.testing.assert_close(next_token_loss(logits, batch), expected)
    nothing = Batch(batch.inputs, batch.targets, torch.zeros(1, 2))
    assert next_token_loss(logits, nothing).item() == 0.0
    even = Routing(torch.full((4, 2), 0.5), torch.tensor([[0], [1], [0], [1]]), torch.ones(4, 1))
    lopsided = Routing(torch.tensor([[0.9, 0.1]] * 4), torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1))
    assert balance_loss([even]).item() == pytest.approx(1.0)
    assert balance_loss([lopsided]).item() == pytest.approx(1.8)


@pytest.mark.parametrize("shape", [(5, 48, 16), (5, 16, 48)])
def test_orthogonalize_evens_out_singular_values(shape):
    stack = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    before, after = torch.linalg.svdvals(stack), torch.linalg.svdvals(orthogonalize(stack))
    assert (before.amax(1) / before.amin(1)).min() > 2.5
    assert after.min() > 0.5 and after.max() < 1.4


def test_schedule_rises_and_falls():
    schedule = Schedule(steps=100, warmup=0.1)
    scales = [schedule.scale(step) for step in range(100)]
    assert scales[0] == pytest.approx(0.1) and scales[9:51] == [1.0] * 42
    assert scales[-1] == pytest.approx(0.02) and scales[50:] == sorted(scales[50:], reverse=True)


def test_locate_prefers_shipped_then_cached_then_makes(tmp_path, monkeypatch):
    def complete(directory):
        (directory / "base").mkdir(parents=True)
        (directory / "base" / "config.json").write_text("{}")
        (directory / "report.json").write_text(json.dumps({}))
        return directory

    made = []
    monkeypatch.setattr(artifacts, "shipped", lambda: tmp_path / "shipped")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(artifacts, "make", lambda target: made.append(target) or complete(target))
    cached = tmp_path / "cache" / "npu-weave" / "weave-tiny"
    assert artifacts.locate() == cached and made == [cached]
    assert artifacts.locate() == cached and made == [cached]
    complete(tmp_path / "shipped")
    assert artifacts.locate() == tmp_path / "shipped"


def test_make_leaves_nothing_behind_when_training_fails(tmp_path, monkeypatch):
    def fails(recipe, out, seed):
        (out / "base").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("weave_lab.train.train_all", fails)
    with pytest.raises(KeyboardInterrupt):
        artifacts.make(tmp_path / "weave-tiny")
    assert not list(tmp_path.iterdir())
