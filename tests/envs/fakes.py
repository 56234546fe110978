"""Small environments with awkward spaces, registered on import."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

SPACES = {
    "hwc": spaces.Box(0, 255, (6, 5, 3), np.uint8),
    "chw": spaces.Box(0, 255, (3, 6, 5), np.uint8),
    "hw": spaces.Box(0, 255, (6, 5), np.uint8),
    "float_image": spaces.Box(0.0, 1.0, (6, 5, 3), np.float32),
    "int_vector": spaces.Box(0, 255, (4,), np.int32),
    "double_vector": spaces.Box(0.0, 255.0, (4,), np.float64),
    "discrete": spaces.Discrete(8, start=2),
    "multi_discrete": spaces.MultiDiscrete([3, 2], start=[1, 0]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"left": spaces.Discrete(2), "right": spaces.Discrete(2)}),
    "tuple": spaces.Tuple([spaces.Discrete(2)]),
    "camera": spaces.Dict({"camera": spaces.Box(0, 255, (6, 5, 3), np.uint8), "speed": spaces.Box(0.0, 1.0, (1,))}),
}


class Echo(gymnasium.Env[Any, Any]):
    """Observations from the space's own sampler; the reward is the action, and the fourth step ends the episode."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, observation: str = "int_vector", actions_start: int = 0, render_mode: str | None = None) -> None:
        self.observation_space = SPACES[observation]
        self.action_space = spaces.Discrete(3, start=actions_start)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self._steps += 1
        return self.observation_space.sample(), float(action), self._steps == 4, False, {}


class Pairs(Echo):
    """Two numbers for an action; the reward is ten times the first plus the second."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.action_space = spaces.MultiDiscrete([2, 3])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return self.observation_space.sample(), float(10 * action[0] + action[1]), False, False, {}


class Negated(gymnasium.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return -float(reward)


class Fragile(Echo):
    """Raises in its sixth step, or in its second reset."""

    def __init__(self, breaks_in: str = "step", render_mode: str | None = None) -> None:
        super().__init__()
        self._breaks_in, self._all_steps, self._resets = breaks_in, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._resets += 1
        if self._breaks_in == "reset" and self._resets == 2:
            raise KeyError("level 2")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._all_steps += 1
        if self._breaks_in == "step" and self._all_steps == 6:
            raise ValueError("the game broke")
        return super().step(action)


class NeedsPackage(Echo):
    def __init__(self, render_mode: str | None = None) -> None:
        raise gymnasium.error.DependencyNotInstalled("Box3D is not installed,\nrun `pip install box3d`")


gymnasium.register(id="drqn_test/Echo-v0", entry_point="tests.envs.fakes:Echo")
gymnasium.register(id="drqn_test/Pairs-v0", entry_point="tests.envs.fakes:Pairs")
gymnasium.register(id="drqn_test/Fragile-v0", entry_point="tests.envs.fakes:Fragile")
gymnasium.register(id="drqn_test/NeedsPackage-v0", entry_point="tests.envs.fakes:NeedsPackage")
