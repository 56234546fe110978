from __future__ import annotations

import numpy as np
import pytest
import torch

from learner.outbox import Array, Outbox


def test_without_a_gpu_a_tensor_is_handed_on_at_once_in_order_and_as_a_copy() -> None:
    outbox = Outbox(2)
    taken: list[Array] = []
    tensor = torch.arange(3.0, requires_grad=True)
    for k in range(5):
        outbox.post(tensor * k, taken.append)
        assert len(taken) == k + 1
    plain = torch.zeros(2)
    outbox.post(plain, taken.append)
    plain += 1
    outbox.collect()
    outbox.flush()
    assert [array.tolist() for array in taken] == [[0, k, 2 * k] for k in range(5)] + [[0, 0]]
    assert all(isinstance(array, np.ndarray) and array.flags.owndata for array in taken)


def test_what_the_taker_raises_reaches_who_posted() -> None:
    def refuse(array: Array) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Outbox(2).post(torch.zeros(1), refuse)
