"""Mazes whose places look alike.

A maze is drawn in text:  # wall   . floor   S floor where an episode may start   G goal   X wrong exit
The agent sees which of the 3 × 3 cells around it are walls and nothing else: goal and wrong exits look like floor.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drqn_dist.errors import EnvError

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""(row, column) of the actions up, right, down, left."""

Cell = tuple[int, int]
Place = tuple[int, Cell]
"""Which of a maze's layouts, and where in it."""


@dataclass(frozen=True)
class Maze:
    """Equally likely layouts, one of which an episode draws, with one of its start cells."""

    layouts: tuple[tuple[str, ...], ...]

    def starts(self) -> list[Place]:
        """Every place where an episode may start; all equally likely."""
        return [
            (which, (row, column))
            for which, layout in enumerate(self.layouts)
            for row, line in enumerate(layout)
            for column, glyph in enumerate(line)
            if glyph == "S"
        ]

    def glyph(self, place: Place) -> str:
        which, (row, column) = place
        return self.layouts[which][row][column]

    def move(self, place: Place, action: int) -> tuple[Place, float, bool]:
        """Where an action leads, its reward (1 on reaching the goal, else 0), and whether that ends the episode.

        A step into a wall stays in place.
        """
        which, (row, column) = place
        target = (which, (row + MOVES[action][0], column + MOVES[action][1]))
        glyph = self.glyph(target)
        if glyph == "#":
            return place, 0.0, False
        return target, float(glyph == "G"), glyph in "GX"

    def view(self, place: Place) -> npt.NDArray[np.float32]:
        """float32 [9]: 1 where a cell around the place is a wall, row by row."""
        which, (row, column) = place
        rows = self.layouts[which][row - 1 : row + 2]
        return np.array([cell == "#" for line in rows for cell in line[column - 1 : column + 2]], np.float32)


def tmaze(size: int) -> Maze:
    """A corridor of `size` cells that ends in a junction. A niche beside the start is on the side of the goal.

    ::

        #######     size 2; the other layout is its mirror image in niche and goal
        #G...X#
        ###.###     At the junction both layouts look the same and want different actions, and the niche is out of
        ###.###     sight: no policy without memory, not even a random one, reaches the goal in more than half of
        ##.S###     the episodes.
        #######
    """
    arms, corridor = "#G...X#", ("###.###",) * (size - 1)
    left = ("#######", arms, "###.###", *corridor, "##.S###", "#######")
    return Maze((left, tuple(line[::-1] for line in left)))


def cheese(size: int) -> Maze:
    """Three legs of `size` cells, the goal at the foot of the middle one (after McCallum's cheese maze, 1993).

    ::

        #######     size 3; an episode starts anywhere
        #SSSSS#
        #S#S#S#     The cells inside the legs look the same in all legs, but want different actions.
        #S#S#S#
        #S#G#S#
        #######
    """
    return Maze((("#######", "#SSSSS#", *("#S#S#S#",) * (size - 1), "#S#G#S#", "#######"),))


def crossings(size: int) -> Maze:
    """A corridor with `size` side doors that look the same; only the last one is right, so the agent must count.

    ::

        ###########     size 3
        ####X#X#G##
        #S........#
        ###########
    """
    doors = "####" + "X#" * (size - 1) + "G##"
    width = len(doors)
    return Maze((("#" * width, doors, "#S" + "." * (width - 3) + "#", "#" * width),))


@dataclass(frozen=True)
class _Family:
    build: Callable[[int], Maze]
    default_size: int
    smallest_size: int
    longest_way_steps: Callable[[int], int]
    """Steps that an agent with memory needs at most, about; a time limit is derived from it."""


FAMILIES = {
    "tmaze": _Family(tmaze, default_size=6, smallest_size=2, longest_way_steps=lambda size: size + 2),
    "cheese": _Family(cheese, default_size=3, smallest_size=3, longest_way_steps=lambda size: 2 * size + 2),
    "crossings": _Family(crossings, default_size=2, smallest_size=2, longest_way_steps=lambda size: 2 * size + 2),
}
LARGEST_SIZE = 100


def make_maze(name: str, size: int = 0, time_limit_steps: int = 0) -> tuple[Maze, int]:
    """Builds a maze and its time limit; 0 stands for the maze's own default.

    Raises:
        EnvError: no such maze, or a size or limit that is out of range.
    """
    if name not in FAMILIES:
        raise EnvError(f"unknown maze {name!r}; choose one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    size = size or family.default_size
    if not family.smallest_size <= size <= LARGEST_SIZE:
        raise EnvError(f"size of the maze {name} is {size}, but must lie in [{family.smallest_size}, {LARGEST_SIZE}]")
    if time_limit_steps < 0:
        raise EnvError(f"time_limit_steps is {time_limit_steps}, but must not be negative (0 = automatic)")
    return family.build(size), time_limit_steps or 10 * family.longest_way_steps(size)
