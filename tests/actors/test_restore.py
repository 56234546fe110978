"""An actor that is restored goes on as the one that was saved, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.envs.fakes  # noqa: F401  registers drqn_test/*
from actors.actor import Actor
from drqn_dist.config import TrainConfig
from drqn_dist.errors import CheckpointError, EnvNotRestoredError
from drqn_dist.interfaces import BatchEnv
from drqn_dist.state import State
from tests.fakes import FakeEnv, FakeSink, FakeWeights, Script
from tests.restoring import assert_same, through_a_file
from tests.tiny import VECTOR, make_network, tiny_config

OVERLAPPING = {
    "learner": {"unroll_steps": 4, "n_step": 3, "burn_in_steps": 3},
    "replay": {"window_stride_steps": 2},
    "actor": {"envs_per_actor": 3, "fragment_steps": 6, "push_period_steps": 5, "weight_pull_period_steps": 4},
}
GAMES = {"height_px": 36, "width_px": 36}


@dataclass
class Playing:
    """An actor with what it is connected to; every third step newer weights are offered."""

    config: TrainConfig
    actor: Actor
    sink: FakeSink
    weights: FakeWeights
    trace: list[list[Any]]

    def step(self, t: int) -> None:
        if t % 3 == 0:
            # Times 3: the best action then hangs on what is remembered.
            network = make_network(self.config, self.actor._env.spec, seed=t, gain=3.0)
            self.weights.offer(network, version=t)
        self.actor.step()
        actor = self.actor
        shown = [actor._observations, actor._rewards, actor._begins, actor._idle, actor.policy._last_actions]
        self.trace.append([array.tobytes() for array in shown] + [len(self.sink.pushes)])


def playing(config: TrainConfig, env: BatchEnv | None = None, **other: int) -> Playing:
    config, sink, weights = replace(config, actors=2), FakeSink(), FakeWeights()
    actor = Actor(config, 1, sink, weights, env=env, **other)
    return Playing(config, actor, sink, weights, [])


def kinds_of(actor: Actor, state: State) -> set[str]:
    """What makes the present moment awkward."""
    games, buffer = state.part("actor").arrays, state.part("buffer")
    rows, unpushed = buffer.part("rows").arrays, len(buffer.part("fragments").arrays["lengths"])
    kinds = {
        "any": True,
        "idle": games["idle"].any(),
        "begins": games["begins"].any(),
        "life": (rows["terminated"] & ~games["idle"]).any(),
        "mid-fragment": (rows["length"] > 0).all(),
        "unpushed": unpushed > 0,
        "before a push": unpushed > 0 and (actor._batched_steps + 1) % actor._push_period == 0,
        "old weights": actor._version < actor._weights.snapshot.version,  # type: ignore[attr-defined]
    }
    return {kind for kind, here in kinds.items() if here}


def check_goes_on(
    config: TrainConfig, steps: int, first: int, wanted: set[str], make: Callable[[], BatchEnv | None] = lambda: None
) -> None:
    """Plays; saves at the first step of each kind from `first` on; compares what came after with restored actors."""
    played = playing(config, make())
    saved: dict[int, State] = {}
    missing, known = set(wanted), {}
    for t in range(steps):
        played.step(t)
        if t >= first and missing:
            state = played.actor.get_state()
            if found := kinds_of(played.actor, state) & missing:
                saved[t], missing = through_a_file(state), missing - found
                known[t] = played.weights.snapshot, len(played.sink.pushes)
    assert not missing
    end = played.actor.get_state()
    assert played.actor.take_stats().episodes
    for t, state in saved.items():
        again = playing(config, make(), agent_steps_before=77, incarnation=5)
        for s in range(t % 3):
            again.step(s)
        again.sink.pushes.clear(), again.trace.clear()
        again.actor.set_state(state)
        assert_same(again.actor.get_state(), state)
        again.weights.snapshot, pushes = known[t]
        for s in range(t + 1, steps):
            again.step(s)
        assert again.sink.pushes == played.sink.pushes[pushes:]
        expected = [[*shown, count - pushes] for *shown, count in played.trace[t + 1 :]]
        assert again.trace == expected
        assert_same(again.actor.get_state(), end)
        again.actor.close()
    played.actor.close()


ALWAYS = {"idle", "begins", "mid-fragment", "unpushed", "before a push", "old weights"}


@pytest.mark.parametrize(
    ("env", "network"),
    [
        ({"id": "drqn_dist/GridWorld-v0", "kwargs": {"size": 2, "time_limit_steps": 13}}, {"core": "lstm"}),
        ({"id": "drqn_dist/PositionOnlyCartPole-v0", "stack_frames": 3}, {"core": "gru"}),
        ({"id": "CartPole-v1"}, {"core": "lstm", "precision": "bf16", "last_action_and_reward": True}),
        ({"id": "drqn_test/Seeded-v0", "kwargs": {"observation": "dict"}}, {"core": "none", "core_norm": False}),
    ],
    ids=["gridworld", "masked-cartpole", "threads-bf16", "dict"],
)
def test_an_actor_goes_on_from_awkward_moments(env: dict[str, Any], network: dict[str, Any]) -> None:
    tables = OVERLAPPING | {"env": env, "network": network}
    if env["id"] == "CartPole-v1":
        tables["actor"] = OVERLAPPING["actor"] | {"env_threads": 2}
    check_goes_on(tiny_config(**tables), 130, 40, ALWAYS - ({"mid-fragment"} if "dict" in str(env) else set()))


@pytest.mark.parametrize(
    ("env", "core", "steps"),
    [
        ({"id": "ALE/Pong-v5", "stack_frames": 2}, "lstm", 1150),
        ({"id": "ALE/Breakout-v5", "stack_frames": 3, "life_loss_ends_episode": True}, "gru", 420),
        ({"id": "ALE/Breakout-v5", "flicker_probability": 0.5, "sticky_action_probability": 0.25}, "none", 420),
    ],
    ids=["pong", "breakout-lives", "flicker-sticky"],
)
def test_an_actor_that_plays_atari_goes_on_from_awkward_moments(env: dict[str, Any], core: str, steps: int) -> None:
    network = {"torso": "small", "core": core, "last_action_and_reward": True}
    config = tiny_config(**OVERLAPPING | {"env": env | GAMES, "network": network})
    wanted = {"idle", "begins", "unpushed"} | ({"life"} if env.get("life_loss_ends_episode") else set())
    check_goes_on(config, steps, steps // 2, wanted)


SCRIPTS = [[Script(5), Script(16, "truncated"), Script(1)], [Script(9, "life"), Script(8, "life"), Script(3)]]


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    core=st.sampled_from(["gru", "lstm", "none"]),
    unroll=st.integers(1, 5),
    overlap=st.integers(0, 4),
    n_step=st.integers(1, 5),
    multiple=st.integers(1, 3),
    stored=st.booleans(),
    period=st.integers(1, 9),
    moment=st.integers(0, 50),
)
def test_any_cut_goes_on_from_any_step(
    core: str, unroll: int, overlap: int, n_step: int, multiple: int, stored: bool, period: int, moment: int
) -> None:
    stride = max(1, unroll - overlap)
    config = tiny_config(
        network={"core": core},
        learner={"unroll_steps": unroll, "n_step": n_step, "burn_in_steps": 2, "stored_state": stored},
        replay={"window_stride_steps": stride},
        actor={
            "fragment_steps": stride * multiple,
            "push_period_steps": min(period, stride * multiple),
            "epsilon_decay": "linear",
        },
    )
    check_goes_on(config, 80, moment, {"any"}, lambda: FakeEnv(VECTOR, SCRIPTS))


def test_statistics_that_nobody_asked_for_yet_are_kept() -> None:
    config = tiny_config()
    one, two = (playing(config, FakeEnv(VECTOR, SCRIPTS)) for _ in range(2))
    for t in range(30):
        one.step(t)
    two.actor.set_state(through_a_file(one.actor.get_state()))
    mine, kept = one.actor.take_stats(), two.actor.take_stats()
    assert (kept.agent_steps, kept.fragments) == (mine.agent_steps, mine.fragments)
    assert kept.agent_steps > 0
    assert kept.episodes == mine.episodes != []
    assert (kept.weight_version, kept.epsilon) == (mine.weight_version, mine.epsilon)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_state_does_not_change_while_its_actor_plays_on(frames: int) -> None:
    played = playing(tiny_config(env={"stack_frames": frames}), FakeEnv(VECTOR, SCRIPTS))
    for t in range(20):
        played.step(t)
    state = played.actor.get_state()
    before = through_a_file(state)
    for t in range(20, 40):
        played.step(t)
    assert_same(state, before)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_restored_actor_does_not_write_into_the_state_it_came_from(frames: int) -> None:
    one, two = (playing(tiny_config(env={"stack_frames": frames}), FakeEnv(VECTOR, SCRIPTS)) for _ in range(2))
    for t in range(20):
        one.step(t)
    state = one.actor.get_state()
    before = through_a_file(state)
    two.actor.set_state(state)
    for t in range(20, 40):
        two.step(t)
    assert_same(state, before)


@pytest.mark.parametrize("change", [{"network": {"core_units": 9}}, {"actor": {"fragment_steps": 12}}])
def test_a_state_of_another_configuration_is_refused(change: dict[str, Any]) -> None:
    one, two = (playing(config, FakeEnv(VECTOR, SCRIPTS)) for config in (tiny_config(), tiny_config(**change)))
    with pytest.raises(CheckpointError, match="it belongs to other settings"):
        two.actor.set_state(one.actor.get_state())


def test_an_environment_that_does_not_come_back_stops_the_restoring() -> None:
    config = tiny_config(env={"id": "drqn_test/Unrepeatable-v0", "kwargs": {"kind": "shown", "since": 2}})
    one, two = playing(config), playing(config)
    one.step(0)
    with pytest.raises(EnvNotRestoredError, match=r"rows \[0, 1\] of 2 differ"):
        two.actor.set_state(one.actor.get_state())
    replacement = playing(config, incarnation=1)
    replacement.step(0)
