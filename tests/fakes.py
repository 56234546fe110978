"""Fakes of the Protocols in `drqn_dist.interfaces`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from drqn_dist.codec import decode
from drqn_dist.fragment import Fragment
from drqn_dist.interfaces import EnvSpec, StepBatch, WeightSnapshot
from drqn_dist.network.q_network import QNetwork
from drqn_dist.state import State, together
from tests.oracles import PlainEpisode


@dataclass(frozen=True)
class Script:
    """How an episode goes: its length, and whether it ends by termination, by truncation or by a lost life."""

    steps: int
    end: Literal["terminated", "truncated", "life"] = "terminated"


class FakeEnv:
    """A `BatchEnv` whose rows play their scripts over and over, with random pictures and rewards.

    `episodes[row]` records what happened, the episode under way last. The array of observations is reused, as the
    contract allows: whoever keeps it without a copy will see it change.
    """

    def __init__(self, spec: EnvSpec, scripts: Sequence[Sequence[Script]]) -> None:
        self.spec, self.num_envs = spec, len(scripts)
        self.episodes: list[list[PlainEpisode]] = []
        self.seeds: list[int] = []
        self.closed = False
        self._scripts = scripts
        self._shown = np.zeros((self.num_envs, *spec.observation_shape), spec.observation_dtype)
        self._idle = np.zeros(self.num_envs, np.bool_)

    def reset(self, seed: int) -> npt.NDArray[Any]:
        self.seeds.append(seed)
        self._rng = np.random.default_rng(seed)
        self._idle[:] = False
        self.episodes = [[] for _ in self._scripts]
        for row in range(self.num_envs):
            self._begin(row, self._observation())
        return self._shown

    def step(self, actions: npt.NDArray[np.int64]) -> StepBatch:
        assert actions.shape == (self.num_envs,)
        assert actions.dtype == np.int64
        assert ((actions >= 0) & (actions < self.spec.num_actions)).all()
        rewards = np.zeros(self.num_envs, np.float32)
        terminated, truncated, pending = (np.zeros(self.num_envs, np.bool_) for _ in range(3))
        for row, action in enumerate(actions.tolist()):
            if self._idle[row]:
                self._idle[row] = False
                self._begin(row, self._observation())
                continue
            episode = self.episodes[row][-1]
            script = self._scripts[row][(len(self.episodes[row]) - 1) % len(self._scripts[row])]
            self._shown[row] = self._observation()
            rewards[row] = self._rng.integers(-2, 3) * 0.75
            episode.actions.append(action)
            episode.rewards.append(float(rewards[row]))
            episode.observations.append(self._shown[row].copy())
            if episode.num_steps < script.steps:
                continue
            episode.terminated, episode.truncated = script.end != "truncated", script.end == "truncated"
            terminated[row], truncated[row] = episode.terminated, episode.truncated
            pending[row] = self._idle[row] = script.end != "life"
            if script.end == "life":
                self._begin(row, self._shown[row])
        return StepBatch(self._shown, rewards, terminated, truncated, pending)

    def get_state(self) -> State:
        rows = [[len(episodes), episodes[-1].num_steps] for episodes in self.episodes]
        shown = State({"shown": self._shown.copy(), "idle": self._idle.copy()})
        return together(now=shown, rows=State(values={"rows": rows, "rng": self._rng.bit_generator.state}))

    def set_state(self, state: State) -> None:
        """What happened in the episode under way is not known any more, only how much."""
        state.part("now").fill("shown", self._shown)
        state.part("now").fill("idle", self._idle)
        values = state.part("rows").values
        self._rng.bit_generator.state = values["rng"]
        self.episodes = [[PlainEpisode([]) for _ in range(episodes)] for episodes, _ in values["rows"]]
        for mine, (_, steps) in zip(self.episodes, values["rows"], strict=True):
            mine[-1].actions += [0] * steps

    def close(self) -> None:
        self.closed = True

    def _begin(self, row: int, observation: npt.NDArray[Any]) -> None:
        self._shown[row] = observation
        self.episodes[row].append(PlainEpisode([np.array(observation)]))

    def _observation(self) -> npt.NDArray[Any]:
        if self.spec.observation_dtype == "uint8":
            return self._rng.integers(0, 256, self.spec.observation_shape, np.uint8)
        return self._rng.standard_normal(self.spec.observation_shape).astype(np.float32)


class FakeSink:
    """A `FragmentSink` that keeps what it is given."""

    def __init__(self) -> None:
        self.pushes: list[list[bytes]] = []

    def push(self, payloads: Sequence[bytes]) -> None:
        self.pushes.append(list(payloads))

    @property
    def payloads(self) -> list[bytes]:
        return [payload for push in self.pushes for payload in push]

    @property
    def fragments(self) -> list[Fragment]:
        return [decode(payload, max_bytes=2**24) for payload in self.payloads]


class FakeWeights:
    """A `WeightSource` with one snapshot; `known` lists the versions that it was asked with."""

    pending = False

    def __init__(self, network: QNetwork | None = None, version: int = 0) -> None:
        self.known: list[int] = []
        self.snapshot: WeightSnapshot | None = None
        if network is not None:
            self.offer(network, version)

    def offer(self, network: QNetwork, version: int) -> None:
        self.snapshot = WeightSnapshot(version, network.to_vector())

    def latest(self, known_version: int) -> WeightSnapshot | None:
        self.known.append(known_version)
        if self.snapshot is None or self.snapshot.version <= known_version:
            return None
        return self.snapshot


class FakePriorities:
    """A `PrioritySink` that keeps what it is given."""

    def __init__(self) -> None:
        self.updates: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        self.updates.append((ids, priorities))
