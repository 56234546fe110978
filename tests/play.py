"""Plays scripted episodes through the actor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.actor import Actor
from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import QNetwork
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
