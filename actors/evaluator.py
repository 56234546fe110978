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
        games_left = np.full(n, self._episodes // n) + (np.arange(n) < self._episodes % n)
        steps_left = config.eval.max_steps * games_left
        scores: list[list[float]] = [[] for _ in range(n)]
        score, steps, cut = np.zeros(n), 0, 0
        epsilons = np.full(n, config.eval.epsilon)
        begins, idle, rewards = np.ones(n, np.bool_), np.zeros(n, np.bool_), np.zeros(n, np.float32)
        observations = self._env.reset(derive_seed(seed, "evaluation", 3))
        while games_left.any():
            decision = policy.act(observations, begins, rewards, epsilons)
            batch = self._env.step(decision.actions)
            active = ~idle & (games_left > 0)
            score[active] += batch.rewards[active]
            steps_left -= active
            over = active & (batch.reset_pending | (steps_left == 0))
            for i in np.flatnonzero(over):
                scores[i].append(float(score[i]))
                score[i] = 0.0
            cut += int((over & ~batch.reset_pending).sum())
            games_left -= over
            cut += int(games_left[steps_left == 0].sum())
            games_left[steps_left == 0] = 0
            ended = batch.terminated | batch.truncated
            begins = idle | (ended & ~batch.reset_pending & active)
            idle = over
            observations, rewards = batch.observations, batch.rewards
            if progress is not None:
                steps += int(active.sum())
                progress(Played(sum(map(len, scores)), steps))
            if stopping():
                raise EvaluationStopped
        return Evaluation(weights.version, tuple(s for row in scores for s in row), weights, cut)

    def close(self) -> None:
        self._env.close()
