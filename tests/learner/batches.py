"""Draws for the learner's tests, from a played game."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec, FragmentInbox, Fresh, Held, WindowDraws
from replay_server.replay import Replay
from tests.fakes import Script
from tests.learner.reading import Read, Reader, fill, full_plan, make_shards
from tests.play import play
from tests.tiny import VECTOR, make_network

SCRIPTS = [[Script(13), Script(6, "truncated"), Script(2)], [Script(9, "truncated"), Script(3, "life"), Script(7)]]
LOG = 1


@dataclass(frozen=True)
class Game:
    """A short game's fragments, and each of its windows once: whole ones, short ones, terminated and truncated ones."""

    payloads: tuple[bytes, ...]
    windows: WindowDraws


def some_game(config: TrainConfig, spec: EnvSpec = VECTOR, steps: int = 40) -> Game:
    network = make_network(config, spec, seed=9)
    payloads = tuple(play(config, spec, SCRIPTS, steps, network).sink.payloads)
    return game_of(config, payloads)


def game_of(config: TrainConfig, payloads: Sequence[bytes]) -> Game:
    """All windows of these fragments."""
    (replay,) = make_shards(replace(config, replay=replace(config.replay, shards=1, prioritized=False)))
    fill([replay], payloads)
    return Game(tuple(payloads), _every_window(replay))


def _every_window(replay: Replay) -> WindowDraws:
    found = {}
    while len(found) < replay.stats().windows:
        draws = replay.sample([64], Held(), 0).draws
        assert draws is not None
        found |= {int(number): (draws.starts[i], draws.chains[i]) for i, number in enumerate(draws.ids)}
    ids = sorted(found)
    return WindowDraws(
        ids=np.array(ids),
        probabilities=np.full(len(ids), 1 / len(ids)),
        starts=np.array([found[number][0] for number in ids]),
        chains=np.array([found[number][1] for number in ids]),
        population=len(ids),
        inserted_steps=replay.stats().inserted_steps,
        unheld=np.zeros(0, np.int64),
        unheld_fragments=(),
    )


class FixedDraws:
    """A `WindowSource` whose batch number k is always the same, drawn with unequal probabilities; after `count` of them
    they come again. All fragments come with the first answer."""

    def __init__(
        self, config: TrainConfig, game: Game, count: int = 3, first: int = 0, picks: Sequence[Sequence[int]] = ()
    ) -> None:
        """
        Args:
            picks: which of the game's windows make up each of the batches; chosen at random otherwise.
        """
        self._config, self._game, self._count = config, game, len(picks) or count
        self._picks = picks
        self.taken = first

    def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws:
        known = inbox.held(0)
        if known.log != LOG:
            inbox.receive(Fresh(LOG, 0, self._game.payloads), 0)
        drawn = [self._draw((self.taken + k) % self._count) for k in range(batches)]
        self.taken += batches
        arrays = {
            name: np.concatenate([getattr(draws, name) for draws in drawn])
            for name in ("ids", "probabilities", "starts", "chains")
        }
        return replace(self._game.windows, **arrays)

    def _draw(self, number: int) -> WindowDraws:
        pool, windows = self._game.windows, self._config.learner.batch_windows
        rng = np.random.default_rng(number)
        rows = rng.choice(len(pool.ids), windows, replace=windows > len(pool.ids))
        if self._picks:
            rows = np.array(self._picks[number])
        return replace(
            pool,
            ids=pool.ids[rows],
            probabilities=rng.uniform(0.01, 0.2, windows),
            starts=pool.starts[rows],
            chains=pool.chains[rows],
        )


def some_batches(config: TrainConfig, count: int = 3, spec: EnvSpec = VECTOR, game: Game | None = None) -> list[Read]:
    """The batches that `FixedDraws` gives, read."""
    source = FixedDraws(config, game or some_game(config, spec), count)
    reader = Reader(config, spec, source, full_plan(config, spec))
    return [reader.next() for _ in range(count)]
