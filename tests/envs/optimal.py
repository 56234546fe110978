"""The best return that an agent with memory can reach in a maze."""

from __future__ import annotations

from collections import defaultdict

from drqn_dist.envs.mazes import MOVES, Maze, Place

Belief = tuple[Place, ...]


def optimal_return(maze: Maze, time_limit_steps: int) -> float:
    """Expected undiscounted return of the best agent with memory, exactly.

    Value iteration over beliefs: the places where the agent may be, after all that it did and saw. Moves are
    deterministic and all starts equally likely, so a belief is a multiset of places that weigh the same.
    """
    first_beliefs = _split_by_view(maze, maze.starts())
    outcomes: dict[Belief, list[tuple[float, list[Belief]]]] = {}
    frontier = list(first_beliefs)
    while frontier:
        belief = frontier.pop()
        if belief not in outcomes:
            outcomes[belief] = [_outcome(maze, belief, action) for action in range(len(MOVES))]
            frontier += [after for _, afters in outcomes[belief] for after in afters]
    values = dict.fromkeys(outcomes, 0.0)
    for _ in range(time_limit_steps):
        values = {
            belief: max(reward + sum(values[after] for after in afters) for reward, afters in actions)
            for belief, actions in outcomes.items()
        }
    return sum(values[belief] for belief in first_beliefs) / len(maze.starts())


def _outcome(maze: Maze, belief: Belief, action: int) -> tuple[float, list[Belief]]:
    """The reward summed over a belief's places, and the beliefs that the next view tells apart."""
    moved = [maze.move(place, action) for place in belief]
    going_on = [place for place, _, ended in moved if not ended]
    return sum(reward for _, reward, _ in moved), _split_by_view(maze, going_on)


def _split_by_view(maze: Maze, places: list[Place]) -> list[Belief]:
    groups: dict[bytes, list[Place]] = defaultdict(list)
    for place in places:
        groups[maze.view(place).tobytes()].append(place)
    return [tuple(sorted(group)) for group in groups.values()]
