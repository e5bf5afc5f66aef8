"""fill_token_slots: a step's slots by the plain loop that it stands for, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weave_ops import fill_token_slots

Array = npt.NDArray[Any]


def int32(*values: int) -> Array:
    return np.array(values, dtype=np.int32)


def int64(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


@given(data=st.data())
def test_a_step_is_what_a_loop_over_requests_and_tokens_makes_of_it(data: st.DataObject) -> None:
    lookup = int32(*data.draw(st.permutations(range(6))))
    requests = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=8))
    kinds = st.sampled_from([np.int32, np.int64])
    revisions = np.array([revision for revision, _ in requests], dtype=data.draw(kinds))
    tokens = np.array([count for _, count in requests], dtype=data.draw(kinds))
    used = data.draw(st.integers(0, 40))
    out, last_used = np.full(40, 99, dtype=np.int32), int64(*range(6))
    meant = [int(lookup[revision]) for revision, count in requests for _ in range(count)]
    assert fill_token_slots(revisions, tokens, lookup, last_used, 77, out, used) == len(meant)
    zeros = max(used - len(meant), 0)
    assert out.tolist() == meant + [0] * zeros + [99] * (40 - len(meant) - zeros)
    in_use = {int(lookup[revision]) for revision, _ in requests}
    assert last_used.tolist() == [77 if slot in in_use else slot for slot in range(6)]


@pytest.mark.parametrize("revision", [1, 3], ids=["no slot", "unknown"])
def test_a_revision_without_a_slot_changes_nothing(revision: int) -> None:
    out, last_used = np.full(4, 9, dtype=np.int32), int64(5, 6)
    assert fill_token_slots(int64(0, revision), int32(1, 1), int32(0, -1, 1), last_used, 7, out, 4) == -1
    assert out.tolist() == [9] * 4 and last_used.tolist() == [5, 6]


def test_too_many_tokens_change_nothing() -> None:
    out, last_used = np.full(4, 9, dtype=np.int32), int64(5, 6)
    assert fill_token_slots(int64(0, 1), int32(2, 3), int32(0, 1), last_used, 7, out, 0) == 5
    assert out.tolist() == [9] * 4 and last_used.tolist() == [5, 6]


def arguments(**others: object) -> list[object]:
    given: dict[str, object] = {
        "revisions": int64(0, 1), "tokens": int32(1, 1), "slot_of_revision": int32(0, 1), "last_used": int64(0, 0),
        "step": 1, "out": np.zeros(4, dtype=np.int32), "used": 0,
    }  # fmt: skip
    return list({**given, **others}.values())


READ_ONLY = np.zeros(4, dtype=np.int32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"tokens": int32(1)}, ValueError, "tokens of 1 requests, revisions of 2"),
        ({"tokens": int32(1, -1)}, ValueError, "request 1 has revision 1 and -1 tokens"),
        ({"revisions": int64(-1, 1)}, ValueError, "request 0 has revision -1"),
        ({"slot_of_revision": int32(0, 2)}, ValueError, "revision 1 has slot 2 of 2"),
        ({"used": 5}, ValueError, "5 used of 4"),
        ({"used": -1}, ValueError, "-1 used of 4"),
        ({"revisions": np.array([0.0, 1.0])}, TypeError, "revisions must be one dimension of int32 or int64"),
        ({"revisions": np.array([[0, 1]])}, TypeError, "revisions must be one dimension"),
        ({"revisions": int64(0, 0, 1, 1)[::2]}, ValueError, "not C-contiguous"),
        ({"revisions": [0, 1]}, TypeError, "bytes-like"),
        ({"last_used": int32(0, 0)}, TypeError, "last_used must have 8 bytes each"),
        ({"out": int64(0, 0, 0, 0)}, TypeError, "out must have 4 bytes each"),
        ({"out": READ_ONLY}, ValueError, "read-only"),
        ({"step": "1"}, TypeError, "int"),
    ],
)
def test_what_is_not_a_step_is_refused(others: dict[str, object], error: type[Exception], message: str) -> None:
    call: Any = fill_token_slots
    with pytest.raises(error, match=message):
        call(*arguments(**others))


def test_the_number_of_arguments_is_checked() -> None:
    call: Any = fill_token_slots
    with pytest.raises(TypeError, match="takes 7 arguments, got 1"):
        call(int64(0))
