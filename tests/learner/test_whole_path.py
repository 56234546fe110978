"""From environment steps to the learner's targets through every role, against oracles that only know the episodes.

FakeEnv → Actor → FragmentBuffer → codec → Replay → Feed, FragmentTable, FrameStore → read_windows → td_loss.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec
from learner.feed import PROBED_WINDOWS
from learner.loss import TdLoss, td_loss
from learner.probe import Probe
from learner.windows import WindowTensors, stack_frames
from replay_server.make import LocalSource
from tests.fakes import Script
from tests.learner.reading import (
    Place,
    Read,
    Reader,
    ShardsSource,
    drawable,
    fill,
    full_plan,
    make_shards,
    small_plan,
)
from tests.oracles import folded, read_window, stack_at, staleness, step_through_all, window_errors
from tests.play import Played, play
from tests.tiny import IMAGE, VECTOR, make_network, tiny_config


@dataclass(frozen=True)
class Memory:
    """Where the learner keeps fragments, and how they reach it."""

    place: Literal["device", "host"] = "device"
    complete: bool = True
    fresh_limit: int = 10_000
    """So many fragments come with one answer: a learner that starts late catches up piece by piece."""
    restarts: bool = False
    """The learner has seen another log before: a replay that died."""


def read_all(config: TrainConfig, spec: EnvSpec, played: Played, memory: Memory) -> list[Read]:
    """Batches until every window that can be drawn has come."""
    full = full_plan(config, spec, memory.place)
    plan = replace(full, fresh_limit=memory.fresh_limit)
    if not memory.complete:
        plan = small_plan(config, spec, min(memory.fresh_limit, full.fresh_limit), memory.place)
    payloads = played.sink.payloads
    shards = make_shards(config)
    fill(shards, payloads)
    if not drawable(shards):
        return []
    source: Any = ShardsSource(shards, config)
    if len(shards) == 1:
        source = LocalSource(shards[0], config.learner.batch_windows)
    reader = Reader(config, spec, source, plan)
    for shift in (1, 2) if memory.restarts else ():
        earlier = make_shards(config, seed=5)
        fill(earlier, payloads[shift:] + payloads[:shift])
        reader.source.source = ShardsSource(earlier, config)
        for _ in range(shift):
            reader.next()
    reader.source.source = source
    reads = reader.read_until(drawable(shards))
    while memory.complete and sum(reader.source.fresh) < len(payloads):
        reads.append(reader.next())
    return reads


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    unroll = draw(st.integers(1, 6))
    stride = draw(st.sampled_from([unroll, draw(st.integers(1, unroll))]))
    core = draw(st.sampled_from(["gru", "lstm", "none"]))
    head = draw(st.sampled_from(["linear", "dueling", "gru_q"] if core == "gru" else ["linear", "dueling"]))
    shards = draw(st.integers(1, 3))
    return tiny_config(
        actors=shards,
        env={"stack_frames": draw(st.integers(1, 3))},
        network={
            "core": core,
            "core_norm": head != "gru_q" and draw(st.booleans()),
            "head": head,
            "last_action_and_reward": draw(st.booleans()),
        },
        learner={
            "batch_windows": 8,
            "unroll_steps": unroll,
            "burn_in_steps": draw(st.integers(0, 5)),
            "stored_state": draw(st.booleans()),
            "n_step": draw(st.integers(1, 5)),
            "gamma": draw(st.sampled_from([0.0, 0.5, 0.97, 1.0])),
            "double_q": draw(st.booleans()),
            "rescale_values": draw(st.booleans()),
            "reward_scale": draw(st.sampled_from([1.0, 0.25, 3.0])),
            "clip_rewards": draw(st.booleans()),
        },
        replay={"window_stride_steps": stride, "shards": shards},
        actor={"fragment_steps": stride * draw(st.integers(1, 4))},
    )


SCRIPTS = st.lists(
    st.lists(
        st.builds(Script, st.integers(1, 14), st.sampled_from(["terminated", "truncated", "life"])),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=3,
)
MEMORIES = st.builds(
    Memory,
    place=st.sampled_from(["device", "host"]),
    complete=st.booleans(),
    fresh_limit=st.sampled_from([1, 2, 5, 10_000]),
    restarts=st.booleans(),
)
THOROUGH = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


@THOROUGH
@given(configs(), SCRIPTS, MEMORIES, st.integers(0, 10**6))
def test_trained_values_and_targets_equal_the_oracle_for_random_episodes_settings_and_memories(
    config: TrainConfig, scripts: list[list[Script]], memory: Memory, seed: int
) -> None:
    network, target = (make_network(config, VECTOR, seed + k, gain=3) for k in range(2))
    played = play(config, VECTOR, scripts, steps=25, network=network)
    known: dict[Place, tuple[list[float], list[float]]] = {}
    for read in read_all(config, VECTOR, played, memory):
        ones = torch.ones(len(read.places))
        stack = config.env.stack_frames
        result = td_loss(network, target, read.windows, config.learner, config.window, stack, ones)
        for row, place in enumerate(read.places):
            if place not in known:
                episode = played.episode(place.env_id, place.episode_id)
                known[place] = window_errors(config, network, target, episode, place.start)
            q_taken, errors = known[place]
            trained = len(q_taken)
            mask = [1.0] * trained + [0.0] * (config.learner.unroll_steps - trained)
            assert read.windows.mask[row].tolist() == mask
            assert result.q_taken[row, :trained].tolist() == pytest.approx(q_taken, rel=1e-5, abs=1e-5)
            assert result.td_errors[row, :trained].tolist() == pytest.approx(errors, rel=1e-4, abs=5e-5)


@THOROUGH
@given(configs(), SCRIPTS, MEMORIES, st.integers(0, 10**6))
def test_each_tensor_of_a_window_equals_the_plain_episode(
    config: TrainConfig, scripts: list[list[Script]], memory: Memory, seed: int
) -> None:
    network = make_network(config, VECTOR, seed)
    played = play(config, VECTOR, scripts, steps=25, network=network)
    for read in read_all(config, VECTOR, played, memory):
        for row, place in enumerate(read.places):
            check_window(config, read.windows, row, place, played, network)


def check_window(
    config: TrainConfig, windows: WindowTensors, row: int, place: Place, played: Played, network: Any
) -> None:
    shape = config.window
    episode = played.episode(place.env_id, place.episode_id)
    expected = read_window(config, episode, place.start)
    frames = expected.pop("frames")
    if frames.ndim == 4:
        frames = np.stack([folded(frame) for frame in frames])
    np.testing.assert_array_equal(windows.frames[:, row], frames)
    steps = range(place.start - shape.burn_in, place.start - shape.burn_in + shape.total)
    stacks = stack_frames(windows.frames, config.env.stack_frames, shape)
    for column, step in enumerate(steps):
        if 0 <= step <= episode.num_steps:
            stack = stack_at(episode, step, config.env.stack_frames)
            if stack.ndim == 3:
                stack = folded(stack)
            np.testing.assert_array_equal(stacks[column, row], stack)
    # What follows the final observation does not count.
    counting = min(shape.total, episode.num_steps - steps.start + 1)
    for name in ("last_actions", "last_rewards"):
        np.testing.assert_array_equal(
            getattr(windows, name)[row, :counting], expected.pop(name)[:counting], err_msg=name
        )
    # The step after the last observation is not part of the window, nor is an action after the end.
    inside = min(shape.unroll + shape.n_step - 1, episode.num_steps - place.start)
    np.testing.assert_array_equal(windows.actions[row, :inside], expected.pop("actions")[:inside])
    np.testing.assert_array_equal(windows.rewards[row, :-1], expected.pop("rewards")[:-1])
    assert sorted(expected) == ["mask", "skipped"]
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(windows, name)[row], values, err_msg=name)
    check_end(config, windows, row, place, played)
    check_state(config, windows, row, place, played, network)


def check_end(config: TrainConfig, windows: WindowTensors, row: int, place: Place, played: Played) -> None:
    episode, n = played.episode(place.env_id, place.episode_id), config.learner.n_step
    for k, left in enumerate(windows.steps_left[row, : config.learner.unroll_steps].tolist()):
        truth = episode.num_steps - (place.start + k)
        if episode.ended and truth <= n:  # the end shortens the return, or is where it bootstraps
            assert left == truth
            assert windows.terminated[row] == episode.terminated
        else:
            assert left > n or (left == n and not windows.terminated[row])


def check_state(
    config: TrainConfig, windows: WindowTensors, row: int, place: Place, played: Played, network: Any
) -> None:
    first = max(0, place.start - config.learner.burn_in_steps)
    state = network.initial_state(1)
    if config.learner.stored_state:
        episode = played.episode(place.env_id, place.episode_id)
        state = step_through_all(network, episode, config.env.stack_frames)[1][first]
    np.testing.assert_allclose(windows.state[:, row], state[:, 0].numpy(), atol=1e-5)


@THOROUGH
@given(configs(), SCRIPTS, MEMORIES, st.integers(0, 10**6))
def test_staleness_is_what_an_episode_played_again_from_its_start_would_have_told(
    config: TrainConfig, scripts: list[list[Script]], memory: Memory, seed: int
) -> None:
    config = replace(config, learner=replace(config.learner, probe_period_updates=1))
    acted, network = (make_network(config, VECTOR, seed + k, gain=3) for k in range(2))
    played = play(config, VECTOR, scripts, steps=25, network=acted)
    reads = read_all(config, VECTOR, played, memory)
    for read in reads:
        pasts = read.batch.pasts
        assert pasts is not None
        remembers = config.network.core != "none"
        burn_in = config.learner.burn_in_steps  # one that begins with the episode begins from its true state
        begun = {row for row, place in enumerate(read.places) if place.start > burn_in and remembers}
        # By the last one all has come; room for more than there is leaves no room to keep anything.
        if memory.complete and memory.fresh_limit < 10_000 and read is reads[-1]:
            assert len(pasts) == min(len(begun), PROBED_WINDOWS)
        assert {past.window for past in pasts} <= begun
        probe, windows, ones = Probe(config, network, NOTHING, piece=3), read.windows, torch.ones(len(read.places))
        looked_at, _ = probe._values(probe.windows_of(read.batch), config.window)
        taken = looked_at.gather(-1, windows.actions[:, : config.learner.unroll_steps, None]).squeeze(-1)
        trained = td_loss(network, network, windows, config.learner, config.window, config.env.stack_frames, ones)
        torch.testing.assert_close(taken * windows.mask, trained.q_taken * windows.mask, rtol=1e-4, atol=1e-5)
        batch, pieces = probe.windows_of(read.batch), set()
        for past in pasts:
            found = probe.staleness(read.batch._replace(pasts=[past]), batch)
            with patch.object(probe, "_values", wraps=probe._values) as unrolled:
                probe._true_values(past)
            pieces |= {call.args[0].frames.shape for call in unrolled.call_args_list}
            assert len(pieces) == 1, "a CPU's convolutions keep a program for each shape that they meet"
            place = read.places[past.window]
            episode = played.episode(place.env_id, place.episode_id)
            assert found == pytest.approx(staleness(config, acted, network, episode, place.start), rel=1e-3, abs=1e-5)


def test_probed_windows_stand_anywhere_in_their_batch() -> None:
    """Draws are stratified: the first ones of a batch are the oldest."""
    config = tiny_config(
        learner={"batch_windows": 16, "unroll_steps": 2, "probe_period_updates": 1}, actor={"fragment_steps": 2}
    )
    played = play(config, VECTOR, [[Script(60)]], steps=60, network=make_network(config, VECTOR))
    chosen: Counter[int] = Counter()
    for read in read_all(config, VECTOR, played, Memory(fresh_limit=5)):
        chosen.update(past.window for past in read.batch.pasts or ())
    assert chosen, "windows were probed"
    assert max(chosen) >= 12


@THOROUGH
@given(configs(), SCRIPTS, st.integers(0, 10**6))
def test_every_step_of_every_episode_is_trained_and_without_overlap_exactly_once(
    config: TrainConfig, scripts: list[list[Script]], seed: int
) -> None:
    played = play(config, VECTOR, scripts, steps=25, network=make_network(config, VECTOR, seed))
    pushed = {(f.env_id, f.episode_id) for f in played.sink.fragments if f.ends_episode}
    masks: dict[Place, list[int]] = {}
    for read in read_all(config, VECTOR, played, Memory()):
        for row, place in enumerate(read.places):
            masks[place] = np.flatnonzero(read.windows.mask[row]).tolist()
    trained: Counter[tuple[int, int, int]] = Counter()
    for place, steps in masks.items():
        trained.update((place.env_id, place.episode_id, place.start + k) for k in steps)
    for env_id, episode_id in pushed:
        for step in range(played.episode(env_id, episode_id).num_steps):
            times = trained[env_id, episode_id, step]
            assert times == 1 if config.window.stride == config.window.unroll else times >= 1
    for env_id, episodes in enumerate(played.env.episodes):
        finished = {(env_id, i) for i, e in enumerate(episodes) if e.ended}
        # Only an end that came with the very last step is still with the actor.
        assert len(finished - pushed) <= 1


NOTHING: Any = None
MEMORY_CASES = [
    Memory(),
    Memory("host"),
    Memory(complete=False, fresh_limit=2),
    Memory("host", complete=False, fresh_limit=1, restarts=True),
]


@pytest.mark.parametrize("memory", MEMORY_CASES)
def test_images_stacks_last_actions_and_rewards_are_right_across_fragments(memory: Memory) -> None:
    config = tiny_config(
        env={"stack_frames": 4},
        network={"torso": "small", "last_action_and_reward": True, "head": "dueling"},
        learner={"unroll_steps": 3, "burn_in_steps": 2, "n_step": 2},
        replay={"capacity_steps": 200},
        actor={"fragment_steps": 3},
    )
    network, target = make_network(config, IMAGE), make_network(config, IMAGE, 1)
    scripts = [[Script(11), Script(1), Script(5, "life"), Script(4)], [Script(7, "truncated")]]
    played = play(config, IMAGE, scripts, steps=26, network=network)
    starts = set()
    for read in read_all(config, IMAGE, played, memory):
        ones = torch.ones(len(read.places))
        result = td_loss(network, target, read.windows, config.learner, config.window, 4, ones)
        for row, place in enumerate(read.places):
            starts.add(place.start)
            check_window(config, read.windows, row, place, played, network)
            episode = played.episode(place.env_id, place.episode_id)
            q_taken, errors = window_errors(config, network, target, episode, place.start)
            assert result.q_taken[row, : len(q_taken)].tolist() == pytest.approx(q_taken, abs=1e-5)
            assert result.td_errors[row, : len(q_taken)].tolist() == pytest.approx(errors, abs=1e-5)
    assert starts == {0, 3, 6, 9}


def loss_of(config: TrainConfig, result: TdLoss, mask: torch.Tensor, weights: torch.Tensor) -> float:
    total, steps = 0.0, 0
    for row, errors in enumerate(result.td_errors.tolist()):
        for k, error in enumerate(errors):
            if mask[row, k]:
                huber = 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5
                total += weights[row].item() * (huber if config.learner.loss == "huber" else 0.5 * error**2)
                steps += 1
    return total / (len(weights) if config.learner.loss_over_time == "sum" else steps)


@pytest.mark.parametrize("loss", ["huber", "squared"])
@pytest.mark.parametrize("over_time", ["mean", "sum"])
def test_the_loss_is_the_weighted_mean_or_sum_over_trained_steps(loss: str, over_time: str) -> None:
    config = tiny_config(
        learner={"loss": loss, "loss_over_time": over_time, "clip_rewards": False, "n_step": 3, "batch_windows": 16}
    )
    network, target = make_network(config, VECTOR), make_network(config, VECTOR, 1)
    played = play(config, VECTOR, [[Script(7), Script(10, "truncated")]], steps=40, network=network)
    windows = read_all(config, VECTOR, played, Memory())[0].windows
    weights = torch.linspace(0.1, 1.0, 16)
    result = td_loss(network, target, windows, config.learner, config.window, 1, weights)
    assert 0 < windows.mask.mean() < 1
    assert result.td_errors.abs().max() > 1  # both branches of Huber
    assert result.loss.item() == pytest.approx(loss_of(config, result, windows.mask, weights), rel=1e-5)


@pytest.mark.parametrize(("core", "stored_state"), [("gru", True), ("gru", False), ("none", True)])
def test_a_learner_that_starts_late_catches_up_piece_by_piece_and_then_is_sent_nothing_twice(
    core: str, stored_state: bool
) -> None:
    config = tiny_config(
        network={"core": core},
        learner={"unroll_steps": 2, "stored_state": stored_state},
        actor={"fragment_steps": 2},
    )
    played = play(config, VECTOR, [[Script(9)]], steps=40, network=make_network(config, VECTOR))
    shards = make_shards(config)
    fill(shards, played.sink.payloads)
    count = len(played.sink.payloads)
    plan = replace(full_plan(config, VECTOR), fresh_limit=5)
    reader = Reader(config, VECTOR, ShardsSource(shards, config), plan)
    assert count == 20
    for _ in range(12):
        reader.next()
    # The first call only finds out what the shard holds; two batches come with each of the others.
    assert reader.source.fresh == [5, 5, 5, 5, 0, 0, 0]
    unheld = [len(draws.unheld) for draws in reader.source.draws if draws is not None]
    assert unheld[0] > 0
    assert unheld[3:] == [0, 0, 0]


def test_a_small_store_is_sent_its_old_windows_with_each_draw() -> None:
    config = tiny_config(learner={"unroll_steps": 2}, actor={"fragment_steps": 2})
    played = play(config, VECTOR, [[Script(9)]], steps=40, network=make_network(config, VECTOR))
    shards = make_shards(config)
    fill(shards, played.sink.payloads)
    reader = Reader(config, VECTOR, ShardsSource(shards, config), small_plan(config, VECTOR, fresh_limit=1))
    reader.read_until(drawable(shards))
    unheld = [len(draws.unheld) for draws in reader.source.draws if draws is not None]
    assert sum(unheld[-10:]) > 0
