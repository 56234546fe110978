from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from drqn_dist.errors import ReplayStopped
from drqn_dist.fragment import WindowBatch
from drqn_dist.interfaces import WindowSample, WindowSource
from learner.batch_loader import DirectLoader, PrefetchLoader, TensorBatch
from learner.window_reader import WindowReader
from tests.learner.batches import some_windows
from tests.tiny import VECTOR, tiny_config

CPU = torch.device("cpu")
CONFIG = tiny_config()
READER = WindowReader(CONFIG, VECTOR)


class NumberedSamples:
    """A `WindowSource` whose sample number k holds the window k, twice, and the id k; it raises after `count`."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self._pool = some_windows(CONFIG)
        self._count = count
        self._lock = threading.Lock()

    @property
    def windows(self) -> int:
        return len(self._pool.ids)

    def sample(self) -> WindowSample:
        with self._lock:
            if self.taken == self._count:
                raise ReplayStopped("no more samples")
            number = self.taken
            self.taken += 1
        window = self._pool.windows[number % self.windows]
        return replace(
            self._pool, ids=np.array([number, number]), probabilities=np.full(2, 0.5), windows=(window, window)
        )


class Decoded:
    """`WindowBatches` that draw and decode in the calling thread."""

    def __init__(self, source: WindowSource) -> None:
        self._source = source

    def fill(self, out: WindowBatch) -> None:
        READER.read(self._source.sample(), out)


def prefetching(source: WindowSource, prefetch: int, threads: int) -> PrefetchLoader:
    return PrefetchLoader([Decoded(source)] * threads, lambda: READER.empty(2), CPU, prefetch)


def numbers(loader: PrefetchLoader | DirectLoader) -> Iterator[int]:
    while True:
        yield int(loader.next().ids[0])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def expected(number: int) -> TensorBatch:
    source = NumberedSamples(10**6)
    source.taken = number
    return DirectLoader(source, READER, 2, CPU).next()


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batch-loader")]


def test_the_direct_loader_gives_batches_in_the_order_of_the_samples_and_draws_none_ahead() -> None:
    source = NumberedSamples(10)
    loader = DirectLoader(source, READER, 2, CPU)
    assert source.taken == 0
    assert list(islice(numbers(loader), 4)) == [0, 1, 2, 3]
    assert source.taken == 4
    loader.close()


def test_one_thread_gives_batches_in_the_order_of_the_samples() -> None:
    with prefetching(NumberedSamples(50), prefetch=3, threads=1) as loader:
        assert list(islice(numbers(loader), 50)) == list(range(50))


def test_copies_to_the_device_are_timed_without_the_waiting_for_batches() -> None:
    with prefetching(NumberedSamples(50), prefetch=3, threads=2) as loader:
        began = time.perf_counter()
        assert len(list(islice(numbers(loader), 10))) == 10
        assert 0 < loader.transfer_s < time.perf_counter() - began


def test_several_threads_lose_no_batch_and_give_none_twice() -> None:
    with prefetching(NumberedSamples(10**6), prefetch=2, threads=3) as loader:
        seen: list[int] = []
        while not set(range(60)) <= set(seen):  # one may overtake another, but none is held back for ever
            seen.append(int(loader.next().ids[0]))
            assert len(seen) < 10_000
    assert len(set(seen)) == len(seen)


def test_draws_ahead_but_no_further_than_asked_for() -> None:
    source = NumberedSamples(1000)
    with prefetching(source, prefetch=2, threads=2) as loader:
        for trained in range(1, 6):
            loader.next()
            until(lambda: loader.ready == 2)
            assert source.taken == trained + 2


def test_a_batch_is_not_overwritten_before_the_next_is_asked_for() -> None:
    source = NumberedSamples(1000)
    with prefetching(source, prefetch=1, threads=2) as loader:
        for number in range(8):
            batch = loader.next()
            until(lambda: loader.ready == 1)  # every other buffer is full
            truth = expected(int(batch.ids[0]))
            assert torch.equal(batch.inputs.observations, truth.inputs.observations), number
            assert torch.equal(batch.actions, truth.actions)
            assert torch.equal(batch.state, truth.state)


def test_ids_and_probabilities_outlive_the_buffer() -> None:
    with prefetching(NumberedSamples(100), prefetch=1, threads=1) as loader:
        batches = [loader.next() for _ in range(20)]
    assert [int(batch.ids[0]) for batch in batches] == list(range(20))


def test_what_a_loader_thread_raises_reaches_next_after_the_batches_before_it() -> None:
    with prefetching(NumberedSamples(3), prefetch=2, threads=1) as loader:
        assert list(islice(numbers(loader), 3)) == [0, 1, 2]
        for _ in range(3):
            with pytest.raises(ReplayStopped, match="no more samples"):
                loader.next()


def test_close_joins_idle_threads_and_threads_that_failed() -> None:
    before = loader_threads()
    for count in (1000, 0, 1):
        loader = prefetching(NumberedSamples(count), prefetch=2, threads=3)
        assert len(loader_threads()) >= len(before)
        loader.close()
        assert loader_threads() == before


def test_close_lets_a_thread_finish_that_waits_for_a_sample_which_is_then_stopped() -> None:
    stopped, waiting = threading.Event(), threading.Event()

    class Blocked:
        def sample(self) -> WindowSample:
            waiting.set()
            assert stopped.wait(10)
            raise ReplayStopped("stopped")

    loader = prefetching(Blocked(), prefetch=1, threads=1)
    assert waiting.wait(10)
    stopped.set()
    loader.close()
    assert loader_threads() == []


def test_wait_tells_whether_next_would_answer_at_once_and_changes_nothing() -> None:
    allowed = threading.Semaphore(0)

    class Gated(NumberedSamples):
        def sample(self) -> WindowSample:
            assert allowed.acquire(timeout=10)
            return super().sample()

    loader = prefetching(Gated(3), prefetch=2, threads=1)
    assert not loader.wait(0.01)
    allowed.release(4)
    for number in range(3):
        assert loader.wait(10)
        assert loader.wait(0)
        assert int(loader.next().ids[0]) == number
    for _ in range(2):
        assert loader.wait(10)
        with pytest.raises(ReplayStopped):
            loader.next()
    loader.close()
