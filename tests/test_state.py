from __future__ import annotations

import numpy as np
import pytest

from drqn_dist.errors import CheckpointError
from drqn_dist.state import State, joined, split, together
from tests.restoring import assert_same, through_a_file


def test_states_put_together_come_apart_again_also_after_a_file() -> None:
    inner = together(left=State({"x": np.arange(3)}, {"seed": 2**100}), right=State({"x": np.zeros((0, 2))}))
    whole = through_a_file(together(one=inner, one_more=State({"flag": np.array([True])}, {"score": 0.1})))
    assert_same(whole.part("one"), inner)
    assert_same(whole.part("one").part("left"), State({"x": np.arange(3)}, {"seed": 2**100}))
    assert_same(whole.part("one_more"), State({"flag": np.array([True])}, {"score": 0.1}))


@pytest.mark.parametrize("pieces", [[], [[]], [[1, 2], [], [3]]])
def test_sequences_are_joined_and_split_again(pieces: list[list[int]]) -> None:
    state = through_a_file(State(joined(pieces, "int32")))
    assert [piece.tolist() for piece in split(state)] == pieces
    assert state.arrays["items"].dtype == np.int32


@pytest.mark.parametrize(
    ("saved", "found"),
    [
        ({}, "missing"),
        ({"rewards": np.zeros(3, np.float64)}, r"float64 \[3\]"),
        ({"rewards": np.zeros(1, np.float32)}, r"float32 \[1\]"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_with_both_shapes(saved: dict[str, np.ndarray], found: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'rewards' is {found}, but float32 \[3\] is needed"):
        State(saved).fill("rewards", np.zeros(3, np.float32))


@pytest.mark.parametrize("value", [None, True, 1.0, "1", 2**62, -(2**62), pytest.param(10**5_000, id="huge")])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    assert State(values={"made": 2**62 - 1}).number("made") == 2**62 - 1
    with pytest.raises(CheckpointError, match=r"'made' is .*, but must be a whole number"):
        State(values={"made": value}).number("made")
