"""CartPole of which only positions can be seen, registered as `drqn_dist/PositionOnlyCartPole-v0`."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class PositionOnlyCartPole(CartPoleEnv):
    """Gymnasium's CartPole without its velocities, which the agent must infer from what it saw before.

    Observations: float32 [2], the cart's position and the pole's angle, each as a fraction of the limit at which the
    episode ends. Actions, rewards (1 a step) and ends are CartPole's. As registered, an episode is truncated after 500
    steps, so that 500 is the best return.

    Source: POPGym's position-only CartPole (Morad et al. 2023, arXiv:2303.01859), there with another reward and limit.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        # The last observation lies beyond a limit; CartPole's own space leaves as much room.
        self.observation_space = spaces.Box(-2.0, 2.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        state, info = super().reset(seed=seed, options=options)
        return self._positions(state), info

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        state, reward, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        return self._positions(state), float(reward), terminated, truncated, info

    def _positions(self, state: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.array([state[0] / self.x_threshold, state[2] / self.theta_threshold_radians], np.float32)
