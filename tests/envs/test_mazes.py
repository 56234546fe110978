"""What the T-maze must show: memory is needed, and enough."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pytest

from drqn_dist.envs.gridworld import MOVES, Place, TMaze

_, RIGHT, _, LEFT = range(4)


def best_without_memory(maze: TMaze, time_limit_steps: int) -> float:
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


def return_of_random_policy(maze: TMaze, time_limit_steps: int, rng: np.random.Generator) -> float:
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


def best_with_memory(maze: TMaze, places: list[Place], steps_left: int) -> float:
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


@pytest.mark.parametrize("size", [2, 3, 6, 8])
def test_memory_is_needed_in_a_maze_of_every_size(size: int) -> None:
    assert best_without_memory(TMaze(size), time_limit_steps=10 * (size + 2)) == 1 / 2


def test_chance_does_not_replace_memory() -> None:
    rng = np.random.default_rng(0)
    returns = [return_of_random_policy(TMaze(6), 80, rng) for _ in range(30)]
    assert max(returns) <= 1 / 2
    assert max(returns) > 0.1


@pytest.mark.parametrize("size", [2, 3])
def test_memory_is_enough_and_needs_the_corridor_and_two_steps_aside(size: int) -> None:
    maze = TMaze(size)
    groups = defaultdict(list)
    for start in maze.starts():
        groups[tuple(maze.view(start))].append(start)
    for steps, expected in ((size + 2, 0), (size + 3, 1)):
        found = sum(best_with_memory(maze, group, steps) for group in groups.values())
        assert found / len(maze.starts()) == expected


def test_junction_looks_the_same_and_wants_different_actions() -> None:
    maze = TMaze(2)
    goal_left, goal_right = (0, (1, 3)), (1, (1, 3))
    np.testing.assert_array_equal(maze.view(goal_left), maze.view(goal_right))
    assert maze.view(goal_left).tolist() == [1, 1, 1, 0, 0, 0, 1, 0, 1]
    for junction, good, bad in ((goal_left, LEFT, RIGHT), (goal_right, RIGHT, LEFT)):
        arm, _, _ = maze.move(junction, good)
        assert maze.move(arm, good)[1:] == (1.0, True)
        arm, _, _ = maze.move(junction, bad)
        assert maze.move(arm, bad)[1:] == (0.0, True)


def test_sign_is_seen_at_the_start_and_out_of_sight_at_the_junction() -> None:
    maze = TMaze(2)
    left, right = maze.starts()
    assert maze.view(left).tolist() == [1, 0, 1, 0, 0, 1, 1, 1, 1]
    assert maze.view(right).tolist() == [1, 0, 1, 1, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("size", [2, 7])
def test_the_maze_is_walled_all_round(size: int) -> None:
    for layout in TMaze(size).layouts:
        cells = np.array([list(line) for line in layout])
        for edge in (cells[0], cells[-1], cells[:, 0], cells[:, -1]):
            assert set(edge) == {"#"}
