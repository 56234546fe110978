"""Greedy episodes with a fixed network, beside training or after it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from actors.policy import RecurrentPolicy
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import make_batch_env
from drqn_dist.interfaces import BatchEnv, WeightSnapshot
from drqn_dist.network.q_network import QNetwork
from drqn_dist.seeding import derive_seed


@dataclass(frozen=True)
class Evaluation:
    """Scores of whole games."""

    version: int
    """Learner updates behind the weights."""
    scores: tuple[float, ...]
    """Unclipped sum of rewards of each episode."""
    weights: WeightSnapshot | None = field(default=None, repr=False, compare=False)
    """The weights that played."""
    cut_short: int = 0
    """Games that `eval.max_steps` ended, whose scores count as they stood, or did not let begin."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))

    @property
    def std(self) -> float:
        """Of the population."""
        return float(np.std(self.scores))


class Played(NamedTuple):
    """How far an evaluation is."""

    episodes: int
    """Games that have ended."""
    steps: int
    """Agent steps so far, of all games."""


class EvaluationStopped(Exception):
    """It was asked to stop before its last game had ended."""


class Evaluator:
    """Plays a fixed number of whole games with given weights.

    Each environment plays an equal share. Taking the first games to end instead would favour short ones, which are
    the lost ones in some games and the won ones in others.
    """

    def __init__(self, config: TrainConfig, episodes: int, env: BatchEnv | None = None) -> None:
        """
        Args:
            episodes: whole games of one evaluation.
            env: environments to step instead of those that the configuration names.

        Raises:
            EnvError: the environment is unknown or not supported.
        """
        torch.set_num_threads(config.actor.torch_threads)
        self._config = config
        self._episodes = episodes
        self._num_envs = min(config.eval.envs or min(32, episodes), episodes)
        self._env = env or make_batch_env(
            config.env, self._num_envs, config.actor.env_threads, derive_seed(config.seed, "evaluation", 1)
        )
        self._network = QNetwork(config.network, self._env.spec, config.env.stack_frames)

    def evaluate(
        self,
        weights: WeightSnapshot,
        seed: int,
        progress: Callable[[Played], object] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Plays the episodes from `seed`, the same for the same seed and weights.

        An environment has `eval.max_steps` steps for each of its games; when they are used up, the game that it is in
        counts as it stands, and those that it has not begun are left out.

        Args:
            progress: called after every step.
            stopping: asked after every step.

        Raises:
            EvaluationStopped: `stopping()` came true.
        """
        config, n = self._config, self._num_envs
        self._network.load_vector(weights.vector)
        rng = np.random.default_rng(derive_seed(seed, "evaluation", 2))
        policy = RecurrentPolicy(self._network, self._env.spec, config.env.stack_frames, n, rng)
        share = np.full(n, self._episodes // n) + (np.arange(n) < self._episodes % n)
        games = share.copy()
        scores: list[list[float]] = [[] for _ in range(n)]
        score, cut = np.zeros(n), np.zeros(n, np.int64)
        epsilons = np.full(n, config.eval.epsilon)
        begins, idle, rewards = np.ones(n, np.bool_), np.zeros(n, np.bool_), np.zeros(n, np.float32)
        observations = self._env.reset(derive_seed(seed, "evaluation", 3))
        steps = 0
        steps_left = config.eval.max_steps * share
        while any(len(done) < wanted for done, wanted in zip(scores, share, strict=True)):
            decision = policy.act(observations, begins, rewards, epsilons)
            batch = self._env.step(decision.actions)
            active = ~idle
            score[active] += batch.rewards[active]
            steps_left -= active
            over = (batch.reset_pending | (steps_left == 0)) & (steps_left >= 0) & active
            for i in np.flatnonzero(over):
                scores[i].append(float(score[i]))
                score[i] = 0.0
                cut[i] += not batch.reset_pending[i] and len(scores[i]) <= games[i]
            ended = batch.terminated | batch.truncated
            begins = idle | (ended & ~batch.reset_pending & active)
            idle = over
            observations, rewards = batch.observations, batch.rewards
            if progress is not None:
                finished = sum(min(len(row), int(wanted)) for row, wanted in zip(scores, games, strict=True))
                steps += int(active.sum())
                progress(Played(finished, steps))
            share[steps_left == 0] = 0
            if stopping():
                raise EvaluationStopped
        counted = tuple(s for row, wanted in zip(scores, games, strict=True) for s in row[:wanted])
        return Evaluation(weights.version, counted, weights, self._episodes - len(counted) + int(cut.sum()))

    def close(self) -> None:
        self._env.close()
