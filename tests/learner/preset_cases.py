"""Every preset's update on made-up episodes, on any device: what tests without a GPU and those with one share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from drqn_dist.codec import encode
from drqn_dist.config import TrainConfig
from drqn_dist.fragment import Fragment
from drqn_dist.interfaces import EnvSpec
from drqn_dist.presets import PRESETS
from learner.feed import Batch
from learner.frame_store import Gathered, state_shape
from learner.learner import Learner
from learner.loss import td_loss
from learner.weight_publisher import WeightPublisher
from learner.windows import read_windows, rows_of
from tests.fakes import FakePriorities
from tests.learner.batches import FixedDraws, Game, game_of
from tests.learner.reading import full_plan

NAMES = sorted(PRESETS)


@dataclass(frozen=True)
class Case:
    """A preset on an environment of the right shape, with a few episodes to learn from."""

    config: TrainConfig
    spec: EnvSpec
    game: Game


def real_case(name: str) -> Case:
    """A preset with its own shapes, in fp32; only the replay is small."""
    config = PRESETS[name].config
    env = config.env
    spec = EnvSpec((1, env.height_px, env.width_px), "uint8", num_actions=6, frames_per_step=4)
    if config.network.torso == "mlp":
        spec = EnvSpec((9,), "float32", num_actions=4, frames_per_step=1)
    small = {"capacity_steps": 8 * (config.window.total + config.window.fragment), "min_steps": 1}
    config = replace(
        config,
        actors=1,
        network=replace(config.network, precision="fp32"),
        replay=replace(config.replay, **small),
        actor=replace(config.actor, envs_per_actor=1),
    )
    return Case(config, spec, made_up_game(config, spec))


def scaled_case(name: str) -> Case:
    """The same with small pictures, few units, short and few windows; burn-in, n-step tail and stacks stay."""
    case = real_case(name)
    config, spec = case.config, case.spec
    learner = replace(
        config.learner,
        batch_windows=3,
        unroll_steps=min(4, config.learner.unroll_steps),
        burn_in_steps=min(3, config.learner.burn_in_steps),
        device="cpu",
    )
    units = {"torso_units": 16, "core_units": 8, "head_units": min(8, config.network.head_units)}
    config = replace(
        config,
        network=replace(config.network, **units),
        learner=learner,
        replay=replace(config.replay, window_stride_steps=2 if config.replay.window_stride_steps else None),
        actor=replace(config.actor, fragment_steps=4),
    )
    if spec.is_image:
        spec = replace(spec, observation_shape=(1, 36, 36))
    return Case(config, spec, made_up_game(config, spec))


def made_up_game(config: TrainConfig, spec: EnvSpec) -> Game:
    """Episodes of random numbers: a long one, some that end within a window, and one of a single step."""
    rng, shape = np.random.default_rng(0), config.window
    slots, units = state_shape(config, spec)
    payloads: list[bytes] = []
    reach = shape.total + shape.history
    for episode, length in enumerate((3 * reach, reach // 2 + 1, 1, reach + shape.stride)):
        for first in range(0, length, shape.fragment):
            count = min(shape.fragment, length - first)
            ends = first + count == length
            observations = rng.integers(0, 256, (count + 1, *spec.observation_shape))
            states = [s for s in range(count) if slots and shape.needs_state_at(first + s)]
            fragment = Fragment(
                observations=(observations / (1 if spec.is_image else 255)).astype(spec.observation_dtype),
                actions=rng.integers(0, spec.num_actions, count),
                rewards=rng.standard_normal(count).astype(np.float32),
                terminated=ends and episode % 2 == 0,
                truncated=ends and episode % 2 == 1,
                first_step=first,
                actor_id=0,
                env_id=0,
                episode_id=episode,
                sequence_no=len(payloads),
                weight_version=0,
                priorities=np.ones(-(-count // shape.stride), np.float32),
                states={s: rng.standard_normal((slots, units)).astype(np.float32) for s in states},
            )
            payloads.append(encode(fragment))
    return game_of(config, payloads)


def learner_on(
    case: Case,
    device: str,
    place: Literal["device", "host"] = "device",
    picks: Sequence[Sequence[int]] = (),
    threaded: bool = False,
) -> Learner:
    """With this case's game; learners of one case get the same batches and begin with the same weights."""
    config = replace(case.config, learner=replace(case.config.learner, device=device))
    source = FixedDraws(config, case.game, picks=picks)
    plan = full_plan(config, case.spec, place)
    return Learner(config, case.spec, source, FakePriorities(), WeightPublisher(), plan, threaded)


def batch_on(learner: Learner, batch: Batch) -> Batch:
    """The batch's tensors on the learner's device."""
    device = next(learner.state.network.parameters()).device
    gathered = batch.gathered
    return batch._replace(
        places=batch.places.to(device),
        weights=batch.weights.to(device),
        gathered=None if gathered is None else Gathered(*(x.to(device) for x in gathered)),
    )


def loss_and_gradients(learner: Learner, case: Case, batch: Batch) -> tuple[float, list[Tensor]]:
    """Of the networks as they are now, computed apart from the update; nothing is changed."""
    batch, config, state = batch_on(learner, batch), case.config, learner.state
    gathered = batch.gathered
    if gathered is None:
        gathered = learner.feed.store.gather(*rows_of(batch.places))
    windows = read_windows(gathered, batch.places, config.window, config.network.last_action_and_reward)
    stack = config.env.stack_frames
    result = td_loss(state.network, state.target, windows, config.learner, config.window, stack, batch.weights)
    result.loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad.cpu() for p in state.network.parameters() if p.grad is not None]
    state.optimizer.zero_grad(set_to_none=True)
    return result.loss.item(), gradients


def eager(learner: Learner, batch: Batch) -> Tensor:
    """One update without a graph, on any device."""
    batch = batch_on(learner, batch)
    return learner.step._train(batch.places, batch.weights, batch.gathered)


Step = Callable[[Learner, Batch], Tensor]


def graphed(learner: Learner, batch: Batch) -> Tensor:
    """One update as the learner does it: on a GPU a graph."""
    return learner.step(batch)


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors, relative to each tensor's largest number; 0 beside 0."""
    worst = 0.0
    for mine, theirs in zip(one, other, strict=True):
        mine, theirs = mine.detach().cpu().double(), theirs.detach().cpu().double()
        assert mine.shape == theirs.shape
        worst = max(worst, float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)))
    return worst


def moments(learner: Learner) -> list[Tensor]:
    """What the optimizer has gathered of the gradients."""
    state = learner.state
    slot = "exp_avg" if case_optimizer(learner) == "adam" else "square_avg"
    return [state.optimizer.state[p][slot].detach().cpu().clone() for p in state.network.parameters()]


def case_optimizer(learner: Learner) -> str:
    return "adam" if isinstance(learner.state.optimizer, torch.optim.Adam) else "rmsprop"


def check_same_updates(
    case: Case, mine: Learner, step: Step, other: Learner, other_step: Step, loss: float, gradient: float
) -> None:
    """Three batches: the loss and gradients of two learners, and what their updates answer and leave behind, differ by
    no more than that, relative to the largest. After each, both go on from the same weights."""
    for number in range(3):
        batch, other_batch = mine.feed.next(), other.feed.next()
        assert batch.ids.tolist() == other_batch.ids.tolist()
        my_loss, my_gradients = loss_and_gradients(mine, case, batch)
        other_loss, other_gradients = loss_and_gradients(other, case, other_batch)
        assert len(my_gradients) == len(list(mine.state.network.parameters()))
        assert abs(my_loss - other_loss) <= loss * max(1.0, abs(other_loss)), number
        assert distance(my_gradients, other_gradients) <= gradient, number
        answer = step(mine, batch).detach().cpu().clone()
        other_answer = other_step(other, other_batch).detach().cpu().clone()
        assert answer.isfinite().all()
        assert abs(float(answer[-4]) - my_loss) <= loss * max(1.0, abs(my_loss)), number
        torch.testing.assert_close(answer, other_answer, rtol=gradient, atol=gradient)
        assert distance(moments(mine), moments(other)) <= 3 * gradient, number
        if number == 0:
            check_moments(mine, my_gradients, gradient)
        mine.state.load_tensors(other.state.to_tensors(), number + 1)


def check_moments(learner: Learner, gradients: Sequence[Tensor], tolerance: float) -> None:
    """After the first update they are 0.1 · g, or (1 - α) · g², of the clipped gradients."""
    config = learner._config.learner
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    if config.clip_gradient == "norm":
        gradients = [g * min(1.0, config.clip_gradient_at / norm) for g in gradients]
    elif config.clip_gradient == "value":
        gradients = [g.clamp(-config.clip_gradient_at, config.clip_gradient_at) for g in gradients]
    expected = [0.1 * g for g in gradients]
    if case_optimizer(learner) == "rmsprop":
        expected = [(1 - config.rmsprop_alpha) * g.square() for g in gradients]
    assert distance(moments(learner), expected) <= 3 * tolerance
