"""The state of an object as pure data, for a checkpoint: NumPy arrays, and values that JSON can hold.

An object that outlives its process has `get_state() -> State` and `set_state(state)`. Afterwards it goes on as the one
that was saved would have, bit for bit. Nothing in a state can execute code, and it shares no memory with the object.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from drqn_dist.errors import CheckpointError, shown


@dataclass(frozen=True)
class State:
    """Arrays of any shape and dtype, by name, and JSON-able values."""

    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> "State":
        """What `together` was given under this name."""
        prefix = f"{name}/"
        arrays = {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}
        return State(arrays, self.values[name])

    def number(self, name: str) -> int:
        """The whole number of this name.

        Raises:
            CheckpointError: it is missing, or none of at most 62 bits.
        """
        value = self.values.get(name)
        if type(value) is not int or abs(value) >= 2**62:
            raise CheckpointError(f"the saved state's {name!r} is {shown(value)}, but must be a whole number")
        return value

    def fill(self, name: str, target: npt.NDArray[Any]) -> None:
        """Writes the array of this name into `target`.

        Raises:
            CheckpointError: it is missing, or has another shape or dtype.
        """
        saved = self.arrays.get(name)
        if saved is None or saved.shape != target.shape or saved.dtype != target.dtype:
            found = "missing" if saved is None else f"{saved.dtype} {list(saved.shape)}"
            raise CheckpointError(
                f"the saved state's {name!r} is {found}, but {target.dtype} {list(target.shape)} is needed here; it "
                "belongs to other settings, or to another version of this program"
            )
        target[...] = saved


def together(**parts: State) -> State:
    """Several states as one; `State.part` takes it apart again."""
    arrays = {f"{name}/{key}": array for name, part in parts.items() for key, array in part.arrays.items()}
    return State(arrays, {name: part.values for name, part in parts.items()})


def joined(pieces: Sequence[Any], dtype: str) -> dict[str, npt.NDArray[Any]]:
    """Sequences of numbers of different lengths as two arrays: `items`, one behind the other, and int64 `lengths`."""
    arrays = [np.asarray(piece, dtype) for piece in pieces]
    return {
        "items": np.concatenate(arrays) if arrays else np.zeros(0, dtype),
        "lengths": np.array([len(array) for array in arrays], np.int64),
    }


def split(state: State) -> list[npt.NDArray[Any]]:
    """The inverse of `joined`."""
    items, lengths = state.arrays["items"], state.arrays["lengths"]
    return np.split(items, np.cumsum(lengths)[:-1]) if len(lengths) else []
