"""A partially observable GridWorld, registered as `drqn_dist/GridWorld-v0`."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from drqn_dist.envs.mazes import MOVES, Place, make_maze
from drqn_dist.errors import EnvError

_CELL_PX = 16
_COLOURS = {"#": (50, 54, 66), ".": (236, 236, 230), "S": (236, 236, 230), "G": (96, 176, 96), "X": (200, 96, 88)}
_AGENT_COLOUR = (48, 104, 200)
_UNSEEN_SHADE = 0.6
"""Brightness of what lies outside the agent's 3x3 view."""


class GridWorld(gymnasium.Env[npt.NDArray[np.float32], int]):
    """A walled maze of which the agent sees the 9 cells around it, walls or not, and must remember the rest.

    Actions: 0 up, 1 right, 2 down, 3 left; a step into a wall stays in place. Observations: float32 [9], 1 = wall,
    row by row. Reward: 1 on reaching the goal, which ends the episode; 0 otherwise. A wrong exit ends it as well.
    Neither looks different from floor. The time limit truncates.

    Args:
        maze: tmaze (remember a sign), cheese (find out where you are) or crossings (count); see `mazes`.
        size: length of corridors, or number of crossings; 0 = the maze's default.
        time_limit_steps: steps until truncation; 0 = ten times the longest way.
        render_mode: None or rgb_array.

    Raises:
        EnvError: no such maze, size, limit or render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 8}  # type: ignore[misc]

    def __init__(
        self, maze: str = "tmaze", size: int = 0, time_limit_steps: int = 0, render_mode: str | None = None
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise EnvError(f"render_mode is {render_mode!r}; choose one of {self.metadata['render_modes']} or None")
        self._maze, self._time_limit_steps = make_maze(maze, size, time_limit_steps)
        self._starts = self._maze.starts()
        self._place: Place = self._starts[0]
        self._steps = 0
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(MOVES))  # type: ignore[assignment]
        self.observation_space = spaces.Box(0.0, 1.0, (9,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._place = self._starts[int(self.np_random.integers(len(self._starts)))]
        self._steps = 0
        return self._maze.view(self._place), {}

    def step(self, action: int) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._place, reward, terminated = self._maze.move(self._place, int(action))
        self._steps += 1
        truncated = not terminated and self._steps >= self._time_limit_steps
        return self._maze.view(self._place), reward, terminated, truncated, {}

    def render(self) -> Any:
        """uint8 [16 · rows, 16 · columns, 3] for rgb_array, None without a render mode."""
        if self.render_mode is None:
            return None
        which, (row, column) = self._place
        cells = np.array([[_COLOURS[glyph] for glyph in line] for line in self._maze.layouts[which]], np.float64)
        shade = np.full(cells.shape[:2], _UNSEEN_SHADE)
        shade[row - 1 : row + 2, column - 1 : column + 2] = 1.0
        cells *= shade[:, :, None]
        cells[row, column] = _AGENT_COLOUR
        return np.kron(cells, np.ones((_CELL_PX, _CELL_PX, 1))).astype(np.uint8)
