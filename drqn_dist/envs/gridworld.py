"""A partially observable GridWorld, registered as `drqn_dist/GridWorld-v0`."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from drqn_dist.errors import EnvError

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""(row, column) of the actions up, right, down, left."""
SIZES = (2, 100)

Place = tuple[int, tuple[int, int]]
"""Which of the two layouts, and the cell (row, column) in it."""

_CELL_PX = 16
_COLOURS = {"#": (50, 54, 66), ".": (236, 236, 230), "S": (236, 236, 230), "G": (96, 176, 96), "X": (200, 96, 88)}
_AGENT_COLOUR = (48, 104, 200)
_UNSEEN_SHADE = 0.6
"""Brightness of what lies outside the agent's 3x3 view."""


class TMaze:
    """A corridor of `size` cells that ends in a junction. A niche beside the start is on the side of the goal.

    ::

        #######     size 2; the other layout is its mirror image in niche and goal
        #G...X#
        ###.###     At the junction both layouts look the same and want different actions, and the niche is out of
        ###.###     sight: no policy without memory, not even a random one, reaches the goal in more than half of
        ##.S###     the episodes. One with memory always does, in size + 3 steps.
        #######

    # wall   . floor   S start   G goal   X wrong exit
    """

    def __init__(self, size: int) -> None:
        left = ("#######", "#G...X#", "###.###", *("###.###",) * (size - 1), "##.S###", "#######")
        self.layouts = (left, tuple(line[::-1] for line in left))

    def starts(self) -> list[Place]:
        """Where an episode may start; both equally likely."""
        return [(which, (len(layout) - 2, 3)) for which, layout in enumerate(self.layouts)]

    def move(self, place: Place, action: int) -> tuple[Place, float, bool]:
        """Where an action leads, its reward (1 on reaching the goal, else 0), and whether that ends the episode.

        A step into a wall stays in place.
        """
        which, (row, column) = place
        row, column = row + MOVES[action][0], column + MOVES[action][1]
        glyph = self.layouts[which][row][column]
        return (place, 0.0, False) if glyph == "#" else ((which, (row, column)), float(glyph == "G"), glyph in "GX")

    def view(self, place: Place) -> npt.NDArray[np.float32]:
        """float32 [9]: 1 where a cell around the place is a wall, row by row. Goal and wrong exit look like floor."""
        which, (row, column) = place
        rows = self.layouts[which][row - 1 : row + 2]
        return np.array([cell == "#" for line in rows for cell in line[column - 1 : column + 2]], np.float32)


class GridWorld(gymnasium.Env[npt.NDArray[np.float32], int]):
    """A T-maze (`TMaze`) of which the agent sees the 9 cells around it, walls or not, and must remember the rest.

    Actions: 0 up, 1 right, 2 down, 3 left; a step into a wall stays in place. Observations: float32 [9], 1 = wall,
    row by row. Reward: 1 on reaching the goal, which ends the episode; 0 otherwise. The wrong exit ends it as well.
    The time limit truncates. The best return is 1, without memory 0.5.

    Args:
        size: length of the corridor.
        time_limit_steps: steps until truncation; 0 = about ten times the way to the goal.
        render_mode: None, ansi (text, the agent is @) or rgb_array.

    Raises:
        EnvError: no such size, limit or render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}  # type: ignore[misc]

    def __init__(self, size: int = 6, time_limit_steps: int = 0, render_mode: str | None = None) -> None:
        if not SIZES[0] <= size <= SIZES[1]:
            raise EnvError(f"size of the maze is {size}, but must lie in {list(SIZES)}")
        if time_limit_steps < 0:
            raise EnvError(f"time_limit_steps is {time_limit_steps}, but must not be negative (0 = automatic)")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise EnvError(f"render_mode is {render_mode!r}; choose one of {self.metadata['render_modes']} or None")
        self._maze, self._time_limit_steps = TMaze(size), time_limit_steps or 10 * (size + 2)
        self._starts = self._maze.starts()
        self._place = self._starts[0]
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
        """str for ansi, uint8 [16 · rows, 16 · columns, 3] for rgb_array, None without a render mode."""
        if self.render_mode == "ansi":
            return self._as_text()
        return self._as_picture() if self.render_mode == "rgb_array" else None

    def _as_text(self) -> str:
        which, (row, column) = self._place
        lines = [line.replace("S", ".") for line in self._maze.layouts[which]]
        lines[row] = lines[row][:column] + "@" + lines[row][column + 1 :]
        return "\n".join(lines) + "\n"

    def _as_picture(self) -> npt.NDArray[np.uint8]:
        which, (row, column) = self._place
        cells = np.array([[_COLOURS[glyph] for glyph in line] for line in self._maze.layouts[which]], np.float64)
        shade = np.full(cells.shape[:2], _UNSEEN_SHADE)
        shade[row - 1 : row + 2, column - 1 : column + 2] = 1.0
        cells *= shade[:, :, None]
        cells[row, column] = _AGENT_COLOUR
        return np.kron(cells, np.ones((_CELL_PX, _CELL_PX, 1))).astype(np.uint8)
