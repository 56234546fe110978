"""Keeps batches ready on the device while the present one trains."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drqn_dist.fragment import WindowBatch
from drqn_dist.interfaces import WindowSource
from drqn_dist.network.q_network import NetworkInput
from learner.window_reader import WindowReader


class TensorBatch(NamedTuple):
    """A WindowBatch on the learner's device; shapes as there."""

    inputs: NetworkInput
    actions: Tensor
    rewards: Tensor
    steps_left: Tensor
    terminated: Tensor
    mask: Tensor
    burn_in_lengths: Tensor
    state: Tensor
    ids: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    population: int
    inserted_steps: int
    weight_versions: npt.NDArray[np.int64]


def to_device(batch: WindowBatch, device: torch.device) -> TensorBatch:
    """Copies a batch to the device; on the CPU it shares the batch's memory instead."""

    def move(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return TensorBatch(
        NetworkInput(move(batch.observations), move(batch.last_actions), move(batch.last_rewards)),
        move(batch.actions),
        move(batch.rewards),
        move(batch.steps_left),
        move(batch.terminated),
        move(batch.mask),
        move(batch.burn_in_lengths),
        move(batch.state),
        batch.ids.copy(),
        batch.probabilities.copy(),
        batch.population,
        batch.inserted_steps,
        batch.weight_versions.copy(),
    )


class BatchSource(Protocol):
    """Gives the next batch to train on; the one before may be overwritten then."""

    def next(self) -> TensorBatch: ...

    def close(self) -> None: ...


class DirectLoader:
    """Draws and decodes when asked: the serial mode's loader, in a fixed order."""

    def __init__(self, source: WindowSource, reader: WindowReader, windows: int, device: torch.device) -> None:
        self._source, self._reader, self._device = source, reader, device
        self._batch = reader.empty(windows)

    def next(self) -> TensorBatch:
        return to_device(self._reader.read(self._source.sample(), self._batch), self._device)

    def close(self) -> None:
        """Holds nothing."""


class WindowBatches(Protocol):
    """Gives decoded batches, one after the other."""

    def fill(self, out: WindowBatch) -> None:
        """Blocks until there is one, and writes it into `out`."""
        ...


class PrefetchLoader:
    """Threads that fetch batches and copy them to the device ahead of the learner, at most `prefetch`.

    ::

        WindowBatches.fill(a free buffer) → copy to the device → queue → next()
                                ^-----------------------------------------'  the buffer before is free again

    One thread for each of the `WindowBatches`, which decode elsewhere: here decoding would take the interpreter's lock
    from the training thread (which cost it 20 % on two cores). On the CPU the tensors are the buffers; hence the
    buffer of the batch in training is only reused after the next `next()`.
    """

    def __init__(
        self,
        batches: Sequence[WindowBatches],
        empty: Callable[[], WindowBatch],
        device: torch.device,
        prefetch: int,
    ) -> None:
        """
        Args:
            batches: where decoded batches come from.
            empty: makes a buffer for one.
            device: where tensors go.
            prefetch: batches that may wait for the learner.
        """
        self._device = device
        self._free: queue.SimpleQueue[WindowBatch | None] = queue.SimpleQueue()
        for _ in range(prefetch + 1):
            self._free.put(empty())
        self._ready: queue.SimpleQueue[tuple[WindowBatch, TensorBatch] | BaseException] = queue.SimpleQueue()
        self._in_use: WindowBatch | None = None
        self._next: tuple[WindowBatch, TensorBatch] | BaseException | None = None
        self._stopped = threading.Event()
        self._transfer_s = [0.0] * len(batches)
        self._threads = [
            threading.Thread(target=self._work, args=(i, source), name=f"batch-loader-{i}", daemon=True)
            for i, source in enumerate(batches)
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> TensorBatch:
        """Blocks until a batch is ready; raises what a loader thread raised."""
        if self._in_use is not None:
            self._free.put(self._in_use)
            self._in_use = None
        item, self._next = self._next or self._ready.get(), None
        if isinstance(item, BaseException):
            self._ready.put(item)  # every later call fails alike, and none hangs
            raise item
        self._in_use, batch = item
        if self._device.type == "cuda":
            # Its memory belongs to the loader's stream, which must not reuse it while the learner's still reads.
            stream = torch.cuda.current_stream(self._device)
            for tensor in (*batch.inputs, *batch):
                if isinstance(tensor, Tensor):
                    tensor.record_stream(stream)
        return batch

    def wait(self, timeout_s: float) -> bool:
        """Whether, after at most this long, `next` would answer at once. Called from the thread that calls `next`."""
        if self._next is None:
            with contextlib.suppress(queue.Empty):
                self._next = self._ready.get(timeout=timeout_s)
        return self._next is not None

    @property
    def ready(self) -> int:
        """Batches waiting, about."""
        return self._ready.qsize()

    @property
    def transfer_s(self) -> float:
        """Seconds spent copying to the device so far, of all threads together."""
        return sum(self._transfer_s)

    def close(self) -> None:
        """Stops the threads, after the batch that each waits for."""
        self._stopped.set()
        for _ in self._threads:
            self._free.put(None)
        for thread in self._threads:
            thread.join(timeout=10)

    def _work(self, index: int, source: WindowBatches) -> None:
        try:
            stream = None
            if self._device.type == "cuda":
                stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            while (buffer := self._free.get()) is not None and not self._stopped.is_set():
                source.fill(buffer)
                start = time.perf_counter()
                with torch.cuda.stream(stream):
                    batch = to_device(buffer, self._device)
                if stream is not None:
                    stream.synchronize()
                self._transfer_s[index] += time.perf_counter() - start
                self._ready.put((buffer, batch))
        except BaseException as error:
            self._ready.put(error)

    def __enter__(self) -> PrefetchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
