"""States on their way through a checkpoint, and the comparison of two."""

from __future__ import annotations

import json

import numpy as np
from safetensors import numpy as safetensors

from drqn_dist.state import State


def through_a_file(state: State) -> State:
    """What a checkpoint gives back: bytes of safetensors, and JSON."""
    arrays = safetensors.load(safetensors.save(state.arrays))
    return State(arrays, json.loads(json.dumps(state.values)))


def assert_same(one: State, two: State) -> None:
    """Equal bit for bit."""
    assert one.values == two.values
    assert one.arrays.keys() == two.arrays.keys()
    for name, array in one.arrays.items():
        other = two.arrays[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert np.array_equal(array.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)), name
