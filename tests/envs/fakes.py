"""Small environments with awkward spaces, registered on import."""

from __future__ import annotations

import threading
import time
from copy import deepcopy
from pathlib import Path
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


class Seeded(Echo):
    """The same, but a seed decides what is seen and how long an episode lasts: 1 to 9 steps."""

    def __init__(self, observation: str = "int_vector", render_mode: str | None = None) -> None:
        super().__init__()
        self.observation_space = deepcopy(SPACES[observation])  # its generator is not to be shared

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self._last = int(self.np_random.integers(1, 10))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self._steps += 1
        over, odd = self._steps == self._last, self._last % 2 == 1
        return self.observation_space.sample(), float(np.sum(action)), over and not odd, over and odd, {}


class SeededPairs(Seeded):
    """The action's two numbers are seen."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.action_space = spaces.MultiDiscrete([2, 3])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        observation[:2] += action
        return observation, float(10 * action[0] + action[1]), terminated, truncated, info


class Unrepeatable(gymnasium.Env[Any, Any]):
    """Shows how many steps it took; four end an episode. From its `since`-th game on an object is different: in what it
    shows, in how soon a game ends (`blind`: showing nothing at all), in that none ends, or in that it raises."""

    def __init__(self, kind: str, since: int, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0.0, 100.0, (1,))
        self.action_space = spaces.Discrete(2)
        self._kind, self._since, self._games, self._steps = kind, since, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._games, self._steps = self._games + 1, 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._differs("raises") and self._steps == 2:
            raise ValueError("this level is not known")
        over = self._steps == (2 if self._differs("shorter") or self._differs("blind") else 4)
        return self._shown(), 0.0, over and not self._differs("endless"), False, {}

    def _shown(self) -> Any:
        steps = 0 if self._kind == "blind" else self._steps
        return np.array([steps + 10 * self._differs("shown")], np.float32)

    def _differs(self, kind: str) -> bool:
        return kind == self._kind and self._games >= self._since


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


class Stuck(Echo):
    """Its step never returns once there is such a file, which it removes; each `slow`-th step takes `slow_s`."""

    def __init__(self, file: str, slow: int = 0, slow_s: float = 0.0, render_mode: str | None = None) -> None:
        super().__init__()
        self._file, self._slow, self._slow_s, self._all_steps = Path(file), slow, slow_s, 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._file.exists():
            self._file.unlink()
            threading.Event().wait()
        self._all_steps += 1
        if self._slow and self._all_steps % self._slow == 0:
            time.sleep(self._slow_s)
        return super().step(action)


class NeedsPackage(Echo):
    def __init__(self, render_mode: str | None = None) -> None:
        raise gymnasium.error.DependencyNotInstalled("Box3D is not installed,\nrun `pip install box3d`")


gymnasium.register(id="drqn_test/Echo-v0", entry_point="tests.envs.fakes:Echo")
gymnasium.register(id="drqn_test/Pairs-v0", entry_point="tests.envs.fakes:Pairs")
gymnasium.register(id="drqn_test/Fragile-v0", entry_point="tests.envs.fakes:Fragile")
gymnasium.register(id="drqn_test/NeedsPackage-v0", entry_point="tests.envs.fakes:NeedsPackage")
gymnasium.register(id="drqn_test/Seeded-v0", entry_point="tests.envs.fakes:Seeded")
gymnasium.register(id="drqn_test/SeededPairs-v0", entry_point="tests.envs.fakes:SeededPairs")
gymnasium.register(id="drqn_test/Unrepeatable-v0", entry_point="tests.envs.fakes:Unrepeatable")
gymnasium.register(id="drqn_test/Stuck-v0", entry_point="tests.envs.fakes:Stuck")
