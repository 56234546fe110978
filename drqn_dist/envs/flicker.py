"""Flicker: a fully observed game made partially observable (DRQN paper, section 5)."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from drqn_dist.envs.spaces import Observations
from drqn_dist.errors import EnvError
from drqn_dist.interfaces import BatchEnv, StepBatch
from drqn_dist.state import State, together


class Flicker:
    """Blanks each whole observation with probability p, independently per row and step.

    The first and the final observation of an episode can be blank too. `reset(seed)` restarts the coin, so the
    blanks depend on both seeds alone.

    Args:
        env: a batch of image environments.
        probability: p, in [0, 1]; the paper's is 0.5.
        seed: of the coin.

    Raises:
        EnvError: the observations are not images.
    """

    def __init__(self, env: BatchEnv, probability: float = 0.5, seed: int = 0) -> None:
        if not env.spec.is_image:
            raise EnvError(
                f"env.flicker_probability {probability} needs image observations [C, H, W], but this environment "
                f"gives vectors {list(env.spec.observation_shape)}; set it to 0"
            )
        self.env = env
        self.spec = env.spec
        self.num_envs = env.num_envs
        self._probability = probability
        self._seed = seed
        self._coin = np.random.default_rng(seed)

    def reset(self, seed: int) -> Observations:
        self._coin = np.random.default_rng([self._seed, seed])
        return self._blank(self.env.reset(seed))

    def step(self, actions: npt.NDArray[np.int64]) -> StepBatch:
        batch = self.env.step(actions)
        return replace(batch, observations=self._blank(batch.observations))

    def render(self) -> npt.NDArray[np.uint8]:
        """The picture behind the observation, not flickered, of an environment that can be watched."""
        picture: npt.NDArray[np.uint8] = cast(Any, self.env).render()
        return picture

    def get_state(self) -> State:
        return together(env=self.env.get_state(), coin=State(values=dict(self._coin.bit_generator.state)))

    def set_state(self, state: State) -> None:
        self.env.set_state(state.part("env"))
        self._coin.bit_generator.state = state.part("coin").values

    def close(self) -> None:
        self.env.close()

    def _blank(self, observations: Observations) -> Observations:
        out = observations.copy()
        out[self._coin.random(self.num_envs) < self._probability] = 0
        return out
