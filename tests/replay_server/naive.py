"""A replay that does everything the slow obvious way: the oracle for the real one."""

from __future__ import annotations

from drqn_dist.config import WindowShape
from tests.replay_server.fragments import Piece

Window = tuple[tuple[int, int, int], int]
"""(actor, env, episode) and unroll start."""


def trained_steps(shape: WindowShape, start: int, episode_steps: int) -> set[int]:
    return {step for step in range(start, start + shape.unroll) if step < episode_steps}


def windows_of_episode(shape: WindowShape, episode_steps: int) -> list[int]:
    """Unroll starts of an episode of known length, one window after the other."""
    starts: list[int] = []
    for start in range(0, episode_steps, shape.stride):
        trained = trained_steps(shape, start, episode_steps)
        if not starts or trained - trained_steps(shape, starts[-1], episode_steps):
            starts.append(start)
    return starts


class NaiveReplay:
    """Fragments in a list; windows found by looking at every step."""

    def __init__(self, shape: WindowShape, capacity_steps: int, capacity_bytes: int) -> None:
        self.shape = shape
        self.capacity_steps = capacity_steps
        self.capacity_bytes = capacity_bytes
        self.stored: list[Piece] = []
        self.arrived = 0
        self.seen: set[bytes] = set()
        self.priorities: dict[Window, float] = {}

    def push(self, piece: Piece) -> bool:
        if piece.payload in self.seen:
            return False
        self.seen.add(piece.payload)
        self.stored.append(piece)
        self.arrived += 1
        for number, priority in enumerate(piece.priorities):
            self.priorities[piece.episode, piece.first_step + number * self.shape.stride] = priority
        while self.stored and (
            sum(p.num_steps for p in self.stored) > self.capacity_steps
            or sum(len(p.payload) for p in self.stored) > self.capacity_bytes
        ):
            self.stored.pop(0)
        return True

    def numbered(self) -> dict[int, Piece]:
        """What is stored by serial number."""
        return dict(enumerate(self.stored, self.arrived - len(self.stored)))

    def fresh(self, known: int, limit: int) -> list[tuple[int, bytes]]:
        """The next fragments of one who has had all before `known`."""
        return [(serial, piece.payload) for serial, piece in self.numbered().items() if serial >= known][:limit]

    def chain(self, window: Window) -> list[int]:
        """Serial numbers of the stored fragments in which a step lies that the window reads."""
        episode, start = window
        first = start - self.shape.burn_in - self.shape.history
        end = start + self.shape.unroll + self.shape.n_step - 1
        read = [
            (piece.first_step, serial)
            for serial, piece in self.numbered().items()
            if piece.episode == episode and piece.first_step < end and piece.first_step + piece.num_steps > first
        ]
        return [serial for _, serial in sorted(read)]

    def drawable(self) -> dict[Window, float]:
        """Priority of each window that can be drawn."""
        found: dict[Window, float] = {}
        for episode in {piece.episode for piece in self.stored}:
            pieces = [piece for piece in self.stored if piece.episode == episode]
            steps = {p.first_step + k for p in pieces for k in range(p.num_steps)}
            ends = [p.first_step + p.num_steps for p in pieces if p.ends_episode]
            episode_steps = ends[0] if ends else 10**6  # where it will end is not known yet
            for start in range(0, max(steps) + 1, self.shape.stride):
                before = self.shape.burn_in + self.shape.history
                after = self.shape.unroll + self.shape.n_step - 1
                needed = range(max(0, start - before), min(start + after, episode_steps))
                exists = not ends or start in windows_of_episode(self.shape, episode_steps)
                if start in steps and exists and steps.issuperset(needed):
                    found[episode, start] = self.priorities[episode, start]
        return found
