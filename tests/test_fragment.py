from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drqn_dist.errors import FragmentError
from tests.replay_server.fragments import make_fragment


def test_a_valid_fragment_passes_with_images_vectors_and_states() -> None:
    make_fragment().validate()
    make_fragment(1, windows=0).validate()
    states = {0: np.zeros((2, 8), np.float32), 3: np.zeros((2, 8), np.float32)}
    make_fragment(observations=np.zeros((5, 6), np.float32), states=states, truncated=True).validate()


def test_knows_its_length_and_whether_it_ends_an_episode() -> None:
    assert make_fragment(4).num_steps == 4
    assert not make_fragment().ends_episode
    assert make_fragment(terminated=True).ends_episode
    assert make_fragment(truncated=True).ends_episode


def images_with(value: float, dtype: type) -> np.ndarray[Any, Any]:
    observations = np.zeros((5, 3), dtype)
    observations[2, 1] = value
    return observations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.zeros((), np.int64)}, r"int64 \[L >= 1\]"),
        ({"actions": np.zeros(0, np.int64)}, r"int64 \[L >= 1\]"),
        ({"actions": np.zeros((4, 1), np.int64)}, r"int64 \[L >= 1\]"),
        ({"actions": np.zeros(4, np.int32)}, "int32"),
        ({"actions": np.array([0, 1, -3, 0])}, "negative, got -3"),
        ({"rewards": np.zeros(5, np.float32)}, r"float32 \[4\]"),
        ({"rewards": np.zeros(4)}, "float64"),
        ({"rewards": np.array([0, 0, np.nan, 0], np.float32), "first_step": 100, "env_id": 9}, "step 102 .* 9 is not"),
        ({"rewards": np.array([0, np.inf, 0, 0], np.float32)}, "step 1 "),
        ({"observations": np.zeros((4, 3), np.uint8)}, "5 entries for 4 steps"),
        ({"observations": np.zeros(5, np.uint8)}, "5 entries"),
        ({"observations": np.zeros((5, 3))}, "float64"),
        ({"observations": images_with(np.nan, np.float32)}, "observation of environment 0 is not finite"),
        ({"observations": images_with(-np.inf, np.float32)}, "not finite"),
        ({"priorities": np.ones(1)}, "float64"),
        ({"priorities": np.ones((1, 1), np.float32)}, r"float32 \[W\]"),
        ({"priorities": np.array([np.nan], np.float32)}, "diverged"),
        ({"priorities": np.array([-1], np.float32)}, "not negative"),
        ({"states": {4: np.zeros((1, 2), np.float32)}}, "state at step 4"),
        ({"states": {-1: np.zeros((1, 2), np.float32)}}, "state at step -1"),
        ({"states": {0: np.zeros(2, np.float32)}}, "state at step 0"),
        ({"states": {0: np.zeros((1, 2))}}, "state at step 0"),
        *(
            ({name: -1}, rf"{name} must lie in \[0, 2\^63\), got -1")
            for name in ("first_step", "actor_id", "env_id", "episode_id", "sequence_no", "weight_version")
        ),
    ],
)
def test_refuses_what_is_wrong_and_names_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FragmentError, match=message):
        make_fragment(4, **changes).validate()
