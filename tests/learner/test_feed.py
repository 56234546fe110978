"""The feed's thread: order, how far it looks ahead, errors, and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest

from drqn_dist.codec import decode
from drqn_dist.errors import FragmentError, ReplayStopped
from drqn_dist.interfaces import FragmentInbox, Fresh, WindowDraws, WindowSource
from drqn_dist.network.torso import make_torso
from learner.feed import WAITING_DRAWS, Feed
from learner.windows import rows_of
from tests.learner.batches import FixedDraws, some_game
from tests.learner.preset_cases import made_up_game
from tests.learner.reading import CPU, Reader, ShardsSource, full_plan, make_shards, same, small_plan
from tests.learner.test_fragment_table import SPEC, Game
from tests.oracles import folded
from tests.tiny import IMAGE, VECTOR, tiny_config

CONFIG = tiny_config()
GAME = some_game(CONFIG)
BATCHES = CONFIG.batches_per_draw


class Numbered:
    """A `WindowSource` whose batch number k has the id k, four times; it raises after `count` draws."""

    def __init__(self, count: int, pause: Callable[[], None] = lambda: None) -> None:
        self.taken = 0
        self._inner, self._count, self._pause = FixedDraws(CONFIG, GAME, count=7), count, pause

    def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws:
        self._pause()
        if self.taken == self._count:
            raise ReplayStopped("no more draws")
        draws = self._inner.sample(batches, inbox)
        draws.ids[:] = np.repeat(np.arange(batches) + batches * self.taken, 4)
        self.taken += 1
        return draws


def feed(source: WindowSource, threaded: bool = True, place: Any = "device") -> Feed:
    torso = make_torso(CONFIG.network, (3,))
    return Feed(CONFIG, VECTOR, source, torso, full_plan(CONFIG, VECTOR, place), CPU, threaded)


def numbers(given: Feed) -> Iterator[int]:
    while True:
        batch = given.next()
        assert (batch.ids == batch.ids[0]).all()
        yield int(batch.ids[0])


def feed_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "feed"]


@pytest.mark.parametrize("threaded", [False, True])
def test_batches_come_in_the_order_of_the_draws(threaded: bool) -> None:
    given = feed(Numbered(1000), threaded)
    assert list(islice(numbers(given), 50)) == list(range(50))
    given.close()


def test_without_a_thread_nothing_is_drawn_ahead() -> None:
    source = Numbered(10)
    given = feed(source, threaded=False)
    assert source.taken == 0
    for number in range(8):
        given.next()
        assert source.taken == number // BATCHES + 1
    assert feed_threads() == []


def test_the_thread_draws_ahead_but_no_further_than_one_draw_beside_the_one_in_its_hands() -> None:
    reached = threading.Semaphore(0)
    allowed = threading.Semaphore(0)

    def pause() -> None:
        reached.release()
        assert allowed.acquire(timeout=10)

    source = Numbered(1000, pause)
    given = feed(source)
    allowed.release(1000)
    for trained in range(1, 6):
        for _ in range(BATCHES):
            given.next()
        # In use, waiting in the queue, and prepared: the thread cannot begin another one before the queue has room.
        most = trained + WAITING_DRAWS + 1
        for _ in range(most if trained == 1 else 1):
            assert reached.acquire(timeout=10)
        assert source.taken <= most
        assert not reached.acquire(timeout=0.02)
    given.close()


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_batch_stays_right_while_later_draws_wait_and_a_small_ring_is_overwritten(place: Any) -> None:
    config = tiny_config(
        network={"core_units": 2},
        learner={"unroll_steps": 3, "burn_in_steps": 2},
        replay={"capacity_steps": 150},
        actor={"fragment_steps": 3, "envs_per_actor": 1},
    )
    rng = np.random.default_rng(3)
    game, shards = Game(config, rng), make_shards(config)
    inner = ShardsSource(shards, config)

    class Growing:
        """Fragments go on coming between two draws."""

        def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
            for _ in range(3):
                shards[0].push(game.next())
            return inner.sample(batches, inbox)

    plan = small_plan(config, SPEC, fresh_limit=4, place=place)
    torso = make_torso(config.network, (2,))
    given = Feed(config, SPEC, Growing(), torso, plan, CPU, threaded=True)
    history, total = config.window.history, config.window.total
    for _ in range(150):
        batch = given.next()
        gathered = batch.gathered or given.store.gather(*rows_of(batch.places))
        _, first_steps, _, _ = batch.places[-4:]
        episodes = gathered.frames[0, :, 0].long()
        lengths = np.array([game.lengths[e] for e in episodes.tolist()])
        steps = first_steps.numpy() + np.arange(-history, total)[:, None]
        assert same(gathered.frames[..., 0], np.broadcast_to(episodes, steps.shape))
        assert same(gathered.frames[..., 1], np.clip(steps, 0, lengths))
    given.close()


@pytest.mark.parametrize("threaded", [False, True])
def test_what_the_source_raises_reaches_next_after_the_batches_before_it(threaded: bool) -> None:
    given = feed(Numbered(3), threaded)
    assert list(islice(numbers(given), 3 * BATCHES)) == list(range(3 * BATCHES))
    for _ in range(3):
        with pytest.raises(ReplayStopped, match="no more draws"):
            given.next()
    given.close()


def test_a_fragment_that_is_refused_in_the_thread_reaches_next() -> None:
    class Corrupt:
        def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
            inbox.receive(Fresh(1, 0, (b"no fragment",)), 0)
            return None

    given = feed(Corrupt())
    with pytest.raises(FragmentError):
        given.next()
    given.close()


def test_close_joins_a_thread_that_waits_or_failed_or_has_work() -> None:
    for count in (1000, 0, 1):
        given = feed(Numbered(count))
        assert count < 1000 or feed_threads() == ["feed"]
        given.close()
        assert feed_threads() == []
        given.close()  # once more changes nothing


def test_close_lets_the_thread_finish_a_call_that_is_then_stopped() -> None:
    stopped, waiting = threading.Event(), threading.Event()

    class Blocked:
        def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
            waiting.set()
            assert stopped.wait(10)
            raise ReplayStopped("stopped")

    given = feed(Blocked())
    assert waiting.wait(10)
    stopped.set()
    given.close()
    assert feed_threads() == []


def test_wait_tells_whether_next_would_answer_at_once() -> None:
    allowed = threading.Semaphore(0)

    def pause() -> None:
        assert allowed.acquire(timeout=10)

    given = feed(Numbered(2, pause))
    assert not given.wait(0.01)
    allowed.release(3)
    for number in range(2 * BATCHES):
        assert given.wait(10)
        assert given.wait(0)
        began = time.perf_counter()
        assert int(given.next().ids[0]) == number
        assert time.perf_counter() - began < 1
    for _ in range(2):
        with pytest.raises(ReplayStopped):
            given.wait(10)
    given.close()


def test_what_came_while_nothing_could_be_drawn_is_there_for_the_next_draw() -> None:
    pieces = [GAME.payloads[first : first + 3] for first in range(0, len(GAME.payloads), 3)]

    class Slow:
        """The rate limiter does not allow a draw before everything has come."""

        def __init__(self) -> None:
            self._sent = 0
            self._inner = FixedDraws(CONFIG, GAME)

        def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
            if self._sent == len(pieces):
                return self._inner.sample(batches, inbox)
            inbox.receive(Fresh(1, 3 * self._sent, pieces[self._sent]), 0)
            self._sent += 1
            return None

    given, plain = feed(Slow()), feed(FixedDraws(CONFIG, GAME))
    for _ in range(4):
        read = [f.store.gather(*rows_of(f.next().places)) for f in (given, plain)]
        for mine, theirs in zip(*read, strict=True):
            assert same(mine, theirs)
    given.close()
    plain.close()


def test_facts_of_the_draw_come_along() -> None:
    reader = Reader(CONFIG, VECTOR, FixedDraws(CONFIG, GAME), full_plan(CONFIG, VECTOR))
    read = reader.next()
    (draws,) = reader.source.draws
    assert draws is not None
    assert read.batch.ids.tolist() == draws.ids[:4].tolist()
    assert read.batch.inserted_steps == GAME.windows.inserted_steps > 0
    assert reader.next().batch.ids.tolist() == draws.ids[4:].tolist()


def test_the_version_of_a_window_is_that_of_the_fragment_in_which_it_begins() -> None:
    config = tiny_config(
        network={"core_units": 2}, learner={"unroll_steps": 3, "burn_in_steps": 2}, actor={"fragment_steps": 3}
    )
    game, shards = Game(config, np.random.default_rng(0)), make_shards(config)
    for _ in range(30):
        shards[0].push(game.next())
    reader = Reader(config, SPEC, ShardsSource(shards, config), full_plan(config, SPEC))
    for _ in range(10):
        read = reader.next()
        for place, version in zip(read.places, read.batch.weight_versions.tolist(), strict=True):
            began = max(0, place.start - 2)
            assert version == 1000 * place.episode_id + began - began % 3


def test_mean_and_deviation_count_every_frame_once_that_came() -> None:
    config = tiny_config(network={"torso": "small", "center_pixels": True}, replay={"capacity_steps": 200})
    game = made_up_game(config, IMAGE)
    reader = Reader(config, IMAGE, FixedDraws(config, game), full_plan(config, IMAGE))
    reader.next()
    pictures = [folded(frame) for p in game.payloads for frame in decode(p, 2**24).observations]
    mean, deviation = reader.feed.intake.measured()
    np.testing.assert_allclose(mean.numpy(), np.mean(pictures, 0), rtol=1e-5)
    np.testing.assert_allclose(deviation.numpy(), np.std(pictures, 0), rtol=1e-4, atol=1e-4)
