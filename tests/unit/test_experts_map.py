"""The expert map and the token slots: what the rerouting operator reads, at addresses that never change."""

from __future__ import annotations

import pytest
import torch
from fixtures.token_slots import fill

from npu_weave.errors import IntegrityError
from npu_weave.experts.expert_map import ExpertMap
from npu_weave.experts.token_slots import TokenSlots

CPU = torch.device("cpu")
IDENTITY = [0, 1, 2, 3, 4]


def test_a_new_map_is_the_base_model_in_every_slot() -> None:
    experts = ExpertMap(3, torch.tensor(IDENTITY, dtype=torch.int32), CPU)
    assert experts.table.dtype == torch.int32
    assert experts.table.tolist() == [IDENTITY] * 4
    assert [experts.rows_of(slot) for slot in range(4)] == [{}] * 4


def test_publish_and_withdraw_touch_one_slot() -> None:
    experts = ExpertMap(2, torch.tensor(IDENTITY, dtype=torch.int32), CPU)
    address = experts.table.data_ptr()
    experts.publish(1, {4: 9, 0: 5})
    experts.publish(2, {1: 7})
    assert experts.table.tolist() == [IDENTITY, [5, 1, 2, 3, 9], [0, 7, 2, 3, 4]]
    assert experts.rows_of(1) == {0: 5, 4: 9}
    experts.publish(1, {2: 6})
    assert experts.table.tolist() == [IDENTITY, [0, 1, 6, 3, 4], [0, 7, 2, 3, 4]], "what was published before is gone"
    experts.withdraw(1)
    assert experts.table.tolist() == [IDENTITY, IDENTITY, [0, 7, 2, 3, 4]]
    assert experts.table.data_ptr() == address


def test_every_token_gets_its_requests_slot() -> None:
    tokens = TokenSlots(8, CPU)
    address = tokens.buffer.data_ptr()
    fill(tokens, [2, 0, 1], [3, 1, 2])
    assert tokens.buffer.tolist() == [2, 2, 2, 0, 1, 1, 0, 0]
    assert tokens.used == 6
    assert tokens.buffer.dtype == torch.int32 and tokens.buffer.data_ptr() == address


def test_rows_past_the_steps_tokens_are_the_base_models() -> None:
    tokens = TokenSlots(8, CPU)
    fill(tokens, [3], [8])
    fill(tokens, [1], [2])
    assert tokens.buffer.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    fill(tokens, [2, 1, 2])
    assert tokens.buffer.tolist() == [2, 1, 2, 0, 0, 0, 0, 0]
    tokens.clear()
    assert tokens.buffer.tolist() == [0] * 8 and tokens.used == 0


def test_more_tokens_than_the_engine_announced() -> None:
    tokens = TokenSlots(4, CPU)
    fill(tokens, [1], [2])
    with pytest.raises(IntegrityError) as error:
        fill(tokens, [2, 2], [3, 2])
    assert error.value.code == "TOKENS_BEYOND_BUFFER"
    assert tokens.buffer.tolist() == [1, 1, 0, 0]
