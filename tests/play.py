"""Plays scripted episodes through the actor, and reads back every window that the replay can draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.actor import Actor
from drqn_dist.codec import decode_header
from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec, WindowRef, WindowSample
from drqn_dist.network.q_network import QNetwork
from replay_server.replay import Replay
from tests.fakes import FakeEnv, FakeSink, FakeWeights, Script
from tests.oracles import PlainEpisode


@dataclass(frozen=True)
class Played:
    """What an actor did, and what its environments say of it."""

    env: FakeEnv
    sink: FakeSink
    actor: Actor

    def episode(self, env_id: int, episode_id: int) -> PlainEpisode:
        return self.env.episodes[env_id][episode_id]


def play(
    config: TrainConfig, spec: EnvSpec, scripts: Sequence[Sequence[Script]], steps: int, network: QNetwork
) -> Played:
    """`steps` batched steps of one actor with the given, fixed network."""
    config = replace(config, actor=replace(config.actor, envs_per_actor=len(scripts)))
    env, sink = FakeEnv(spec, scripts), FakeSink()
    actor = Actor(config, 0, sink, FakeWeights(network), env=env)
    for _ in range(steps):
        actor.step()
    return Played(env, sink, actor)


@dataclass(frozen=True)
class Place:
    """Where a window begins."""

    env_id: int
    episode_id: int
    start: int


def all_windows(config: TrainConfig, payloads: Sequence[bytes]) -> tuple[WindowSample, list[Place]]:
    """Every window that a replay with these fragments can draw, once each, as one sample."""
    replay = Replay(config.replay, config.window, 64, 10**9, seed=0)
    for payload in payloads:
        assert replay.push(payload)
    found: dict[int, tuple[WindowRef, WindowSample]] = {}
    while len(found) < replay.stats().windows:
        drawn = replay.sample()
        found |= {int(i): (window, drawn) for i, window in zip(drawn.ids, drawn.windows, strict=True)}
    fragments: list[bytes] = []
    windows, places = [], []
    for _, (window, drawn) in sorted(found.items()):
        spans = []
        for span in window.spans:
            payload = drawn.fragments[span.fragment]
            if payload not in fragments:
                fragments.append(payload)
            spans.append(replace(span, fragment=fragments.index(payload)))
        header = decode_header(fragments[spans[0].fragment], 2**24)
        windows.append(replace(window, spans=tuple(spans)))
        places.append(Place(header.env_id, header.episode_id, window.unroll_start))
    ids = np.array(sorted(found), np.int64)
    sample = WindowSample(
        ids, np.full(len(ids), 1 / len(ids)), len(ids), replay.stats().inserted_steps, tuple(windows), tuple(fragments)
    )
    return sample, places
