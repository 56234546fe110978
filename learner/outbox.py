"""What leaves the learner's device, without ever waiting for it."""

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float32]


class Outbox:
    """Copies small tensors to the host and hands each on once it has arrived.

    On a GPU a copy goes to pinned memory on the learner's own stream, right behind what computed it and before what is
    enqueued next, and an event tells when it is there. Elsewhere it is there at once. Used from one thread.
    """

    def __init__(self, most: int) -> None:
        """
        Args:
            most: tensors under way at once; with more `post` waits for the oldest.
        """
        self._most = most
        self._under_way: deque[tuple[Tensor, torch.cuda.Event, Callable[[Array], None]]] = deque()
        self._free: list[Tensor] = []

    def __len__(self) -> int:
        """Tensors under way."""
        return len(self._under_way)

    def post(self, tensor: Tensor, take: Callable[[Array], None]) -> None:
        """Sends a float32 tensor; `take` is called with it, as an array that is its own to keep, in order."""
        if tensor.device.type != "cuda":
            take(tensor.detach().cpu().numpy().copy())
            return
        while len(self._under_way) >= self._most:
            self._deliver()
        fits = next((i for i, buffer in enumerate(self._free) if buffer.shape == tensor.shape), None)
        buffer = torch.empty(tensor.shape, pin_memory=True) if fits is None else self._free.pop(fits)
        buffer.copy_(tensor.detach(), non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # or waiting takes a core
        event.record(torch.cuda.current_stream(tensor.device))
        self._under_way.append((buffer, event, take))

    def collect(self) -> None:
        """Hands on what has arrived."""
        while self._under_way and self._under_way[0][1].query():  # type: ignore[no-untyped-call]
            self._deliver()

    def flush(self) -> None:
        """Waits for everything."""
        while self._under_way:
            self._deliver()

    def _deliver(self) -> None:
        buffer, event, take = self._under_way.popleft()
        event.synchronize()
        array = buffer.numpy().copy()
        self._free.append(buffer)
        take(array)
