"""What the GridWorld must show: memory is needed, and enough."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pytest

from drqn_dist.envs.mazes import FAMILIES, MOVES, Maze, Place, make_maze
from drqn_dist.errors import EnvError
from tests.envs.optimal import optimal_return

UP, RIGHT, DOWN, LEFT = range(4)


def best_without_memory(maze: Maze, time_limit_steps: int) -> float:
    """The best return of any map from views to actions, by trying all that matter.

    Policies are completed lazily: all actions are tried for a view only when a rollout meets it.
    """
    starts = maze.starts()

    def search(policy: dict[bytes, int]) -> float:
        total = 0.0
        for place in starts:
            for _ in range(time_limit_steps):
                view = maze.view(place).tobytes()
                if view not in policy:
                    return max(search({**policy, view: action}) for action in range(len(MOVES)))
                after, reward, ended = maze.move(place, policy[view])
                total += reward
                if ended or after == place:  # a policy that stays once stays for ever
                    break
                place = after
        return total / len(starts)

    return search({})


def return_of_random_policy(maze: Maze, time_limit_steps: int, rng: np.random.Generator) -> float:
    """Exact expected return of a policy that draws its actions, with probabilities drawn for each view."""
    policy: dict[bytes, npt.NDArray[np.float64]] = defaultdict(lambda: rng.dirichlet(np.full(len(MOVES), 0.3)))
    chances: dict[Place, float] = {start: 1 / len(maze.starts()) for start in maze.starts()}
    total = 0.0
    for _ in range(time_limit_steps):
        after: dict[Place, float] = defaultdict(float)
        for place, chance in chances.items():
            for action, probability in enumerate(policy[maze.view(place).tobytes()]):
                target, reward, ended = maze.move(place, action)
                total += chance * probability * reward
                if not ended:
                    after[target] += chance * probability
        chances = after
    return total


def best_with_memory(maze: Maze, places: list[Place], steps_left: int) -> float:
    """Exhaustive search over histories; `places` are those consistent with one history. Exponential."""
    if steps_left == 0 or not places:
        return 0.0
    best = 0.0
    for action in range(len(MOVES)):
        value, groups = 0.0, defaultdict(list)
        for place in places:
            target, reward, ended = maze.move(place, action)
            value += reward
            if not ended:
                groups[tuple(maze.view(target))].append(target)
        value += sum(best_with_memory(maze, group, steps_left - 1) for group in groups.values())
        best = max(best, value)
    return best


def test_default_maze_needs_memory_and_memory_is_enough() -> None:
    maze, time_limit_steps = make_maze("tmaze")
    optimal = optimal_return(maze, time_limit_steps)
    assert optimal == 1
    assert best_without_memory(maze, time_limit_steps) == 1 / 2
    assert best_without_memory(maze, time_limit_steps) <= 0.6 * optimal


def test_chance_does_not_replace_memory_in_the_default_maze() -> None:
    rng = np.random.default_rng(0)
    maze, time_limit_steps = make_maze("tmaze")
    returns = [return_of_random_policy(maze, time_limit_steps, rng) for _ in range(30)]
    assert max(returns) <= 1 / 2
    assert max(returns) > 0.1


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_tmaze_of_every_size_halves_the_return_without_memory(size: int) -> None:
    maze, time_limit_steps = make_maze("tmaze", size)
    assert optimal_return(maze, time_limit_steps) == 1
    assert best_without_memory(maze, time_limit_steps) == 1 / 2


def test_junction_looks_the_same_and_wants_different_actions() -> None:
    maze, _ = make_maze("tmaze", size=2)
    goal_left, goal_right = (0, (1, 3)), (1, (1, 3))
    np.testing.assert_array_equal(maze.view(goal_left), maze.view(goal_right))
    assert maze.view(goal_left).tolist() == [1, 1, 1, 0, 0, 0, 1, 0, 1]
    for junction, good, bad in ((goal_left, LEFT, RIGHT), (goal_right, RIGHT, LEFT)):
        arm, _, _ = maze.move(junction, good)
        assert maze.move(arm, good)[1:] == (1.0, True)
        arm, _, _ = maze.move(junction, bad)
        assert maze.move(arm, bad)[1:] == (0.0, True)


def test_sign_is_seen_at_the_start_and_out_of_sight_at_the_junction() -> None:
    maze, _ = make_maze("tmaze", size=2)
    left, right = maze.starts()
    assert maze.view(left).tolist() == [1, 0, 1, 0, 0, 1, 1, 1, 1]
    assert maze.view(right).tolist() == [1, 0, 1, 1, 0, 0, 1, 1, 1]


def test_crossings_cannot_be_told_apart_without_counting() -> None:
    for size in (2, 3):
        maze, time_limit_steps = make_maze("crossings", size)
        assert optimal_return(maze, time_limit_steps) == 1
        assert best_without_memory(maze, time_limit_steps) == 0


def test_legs_of_the_cheese_maze_look_the_same_and_want_different_actions() -> None:
    maze, time_limit_steps = make_maze("cheese")
    side_leg, middle_leg = (0, (3, 1)), (0, (3, 3))
    np.testing.assert_array_equal(maze.view(side_leg), maze.view(middle_leg))
    assert maze.move(middle_leg, DOWN)[1:] == (1.0, True)
    assert optimal_return(maze, time_limit_steps) == 1
    below, _, _ = maze.move(side_leg, DOWN)
    dead_end = [maze.move(below, action)[0] for action in (RIGHT, DOWN, LEFT)]
    assert dead_end == [below] * 3


def test_optimal_return_is_what_visible_arithmetic_says() -> None:
    tmaze, _ = make_maze("tmaze", size=2)
    # Three steps up and two aside.
    assert [optimal_return(tmaze, steps) for steps in (4, 5, 6)] == [0, 1, 1]
    cheese, _ = make_maze("cheese", size=3)
    # In one step only the cell above the goal gets there, in two steps also the cell above that; of 13 starts.
    assert optimal_return(cheese, 1) == pytest.approx(1 / 13)
    assert optimal_return(cheese, 2) == pytest.approx(2 / 13)


@pytest.mark.parametrize(("name", "size"), [("tmaze", 2), ("cheese", 3), ("crossings", 2)])
def test_optimal_return_equals_exhaustive_search(name: str, size: int) -> None:
    maze, _ = make_maze(name, size)
    by_view = defaultdict(list)
    for start in maze.starts():
        by_view[tuple(maze.view(start))].append(start)
    for steps in range(6):
        expected = sum(best_with_memory(maze, group, steps) for group in by_view.values()) / len(maze.starts())
        assert optimal_return(maze, steps) == pytest.approx(expected)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [0, 3, 7])
def test_mazes_are_walled_all_round(name: str, size: int) -> None:
    maze, _ = make_maze(name, size)
    for layout in maze.layouts:
        cells = np.array([list(line) for line in layout])
        for edge in (cells[0], cells[-1], cells[:, 0], cells[:, -1]):
            assert set(edge) == {"#"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("labyrinth",), "unknown maze 'labyrinth'; choose one of tmaze, cheese, crossings"),
        (("tmaze", 1), r"size of the maze tmaze is 1, but must lie in \[2, 100\]"),
        (("tmaze", -3), "is -3, but"),
        (("cheese", 10**9), "is 1000000000, but"),
        (("tmaze", 2, -1), "time_limit_steps is -1, but must not be negative"),
    ],
)
def test_impossible_mazes_are_refused(arguments: tuple[str, int, int], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_maze(*arguments)
