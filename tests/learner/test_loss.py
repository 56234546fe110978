"""The loss: literal numbers worked out by hand, and what must not happen; see also test_whole_path.py."""

from __future__ import annotations

from contextlib import nullcontext
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drqn_dist.config import TrainConfig
from drqn_dist.network.q_network import NetworkInput
from drqn_dist.qlearning.priority import mixed_priority
from learner.loss import TdLoss, td_loss
from learner.windows import WindowTensors
from tests.learner.batches import some_batches
from tests.oracles import step_once, unroll
from tests.tiny import IMAGE, VECTOR, make_network, tiny_config


class Table(nn.Module):
    """A network without memory whose Q values are written down: observation k has the values of row k."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.tensor(rows))

    def autocast(self, device: torch.device) -> Any:
        return nullcontext()

    def prepare(self, folded: Tensor) -> Tensor:
        return folded

    def features(self, inputs: NetworkInput) -> Tensor:
        return inputs.observations

    def recur(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.q[features.squeeze(-1).long()], state

    def burn_in(self, features: Tensor, skipped: Tensor, stride: int, state: Tensor) -> Tensor:
        return state


# Two episodes of two actions each, n = 2, gamma = 0.5, unroll 3, no burn-in; n-step tails repeat the last observation.
#
#   A  s0 -a1-> s1 -a0-> s2 -a1-> s3, terminated      B  s4 -a0-> s5 -a0-> s6, truncated
#
FRAMES = [[0, 1, 2, 3, 3], [4, 5, 6, 6, 6]]
ACTIONS = [[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
MASK = [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]
ONLINE = [[1.0, 2.0], [3.0, 1.0], [0.5, 2.5], [4.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 3.0]]
Q_TAKEN = [[2.0, 3.0, 2.5], [0.0, 2.0]]
NEVER = 99.0
"""Target values that no return of these episodes may contain."""


def windows_of(rewards: list[list[float]]) -> WindowTensors:
    return WindowTensors(
        frames=torch.tensor(FRAMES).T[..., None].float(),
        last_actions=torch.full((2, 5), -1),
        last_rewards=torch.zeros(2, 5),
        actions=torch.tensor(ACTIONS),
        rewards=torch.tensor(rewards),
        steps_left=torch.tensor([[3, 2, 1, 0, -1], [2, 1, 0, -1, -2]]),
        terminated=torch.tensor([True, False]),
        mask=torch.tensor(MASK),
        skipped=torch.zeros(2, dtype=torch.int64),
        state=torch.zeros(0, 2, 0),
    )


def table_loss(
    target: list[list[float]], rewards: list[list[float]], online: Table | None = None, **learner: Any
) -> TdLoss:
    settings = {"unroll_steps": 3, "n_step": 2, "gamma": 0.5, "clip_rewards": False}
    config = tiny_config(learner=settings | learner, actor={"fragment_steps": 3})
    network: Any = online or Table(ONLINE)
    weights = torch.tensor([1.0, 0.5])
    return td_loss(network, Table(target), windows_of(rewards), config.learner, config.window, 1, weights)


def errors_of(result: TdLoss) -> list[list[float]]:
    return [result.td_errors[0].tolist(), result.td_errors[1, :2].tolist()]


def target_table(s2: list[float], s6: list[float]) -> list[list[float]]:
    rows = [[NEVER, NEVER] for _ in range(7)]
    rows[2], rows[6] = s2, s6
    return rows


def check(found: list[list[float]], expected: list[list[float]]) -> None:
    for mine, given in zip(found, expected, strict=True):
        assert mine == pytest.approx(given, abs=1e-5)


PLAIN_TARGET = target_table([1.5, -2.0], [0.4, 0.8])
PLAIN_REWARDS = [[1.0, 2.0, -4.0, 0.0, 0.0], [0.5, 1.0, 0.0, 0.0, 0.0]]
# Online, s2 prefers action 1 and s6 action 1: so the target's -2 and 0.8 count.
PLAIN_ERRORS = [
    [
        1 + 0.5 * 2 + 0.25 * -2.0 - 2.0,  # s0: looks two steps ahead, to s2:      1.5 - 2   = -0.5
        2 + 0.5 * -4 - 3.0,  #              s1: two steps end the episode:         0   - 3   = -3
        -4 - 2.5,  #                        s2: one step ends it:                 -4   - 2.5 = -6.5
    ],
    [
        0.5 + 0.5 * 1 + 0.25 * 0.8 - 0.0,  # s4: two steps, to the final s6:       1.2 - 0   = 1.2
        1 + 0.5 * 0.8 - 2.0,  #              s5: one step is left, to s6:          1.4 - 2   = -0.6
    ],
]


def test_errors_by_hand_with_double_q() -> None:
    check(PLAIN_ERRORS, [[-0.5, -3.0, -6.5], [1.2, -0.6]])
    result = table_loss(PLAIN_TARGET, PLAIN_REWARDS)
    check(errors_of(result), PLAIN_ERRORS)
    check([result.q_taken[0].tolist(), result.q_taken[1, :2].tolist()], Q_TAKEN)


def test_errors_by_hand_without_double_q_take_the_targets_own_maximum() -> None:
    result = table_loss(PLAIN_TARGET, PLAIN_REWARDS, double_q=False)
    # Only s2's value changes: max(1.5, -2) = 1.5 instead of -2; s6 has max(0.4, 0.8) = 0.8 as before.
    check(errors_of(result), [[1 + 0.5 * 2 + 0.25 * 1.5 - 2.0, -3.0, -6.5], [1.2, -0.6]])


def test_errors_by_hand_with_clipped_rewards() -> None:
    result = table_loss(PLAIN_TARGET, PLAIN_REWARDS, clip_rewards=True)
    # Rewards 1, 2, -4 become 1, 1, -1; rewards 0.5, 1 stay.
    expected = [[1 + 0.5 * 1 + 0.25 * -2.0 - 2.0, 1 + 0.5 * -1 - 3.0, -1 - 2.5], [1.2, -0.6]]
    check(expected, [[-1.0, -2.5, -3.5], [1.2, -0.6]])
    check(errors_of(result), expected)


def test_errors_by_hand_with_scaled_rewards_which_are_clipped_after_that() -> None:
    # Rewards 1, 2, -4 and 0.5, 1 become 0.5, 1, -2 and 0.25, 0.5; clipped, -2 is -1.
    expected = [
        [0.5 + 0.5 * 1 + 0.25 * -2.0 - 2.0, 1 + 0.5 * -2 - 3.0, -2 - 2.5],
        [0.25 + 0.5 * 0.5 + 0.2, 0.5 + 0.4 - 2.0],
    ]
    check(errors_of(table_loss(PLAIN_TARGET, PLAIN_REWARDS, reward_scale=0.5)), expected)
    expected[0][1:] = [1 + 0.5 * -1 - 3.0, -1 - 2.5]
    check(errors_of(table_loss(PLAIN_TARGET, PLAIN_REWARDS, reward_scale=0.5, clip_rewards=True)), expected)


def test_errors_by_hand_with_rescaled_values() -> None:
    # h(x) = sign(x)(sqrt(|x| + 1) - 1) + 0.001 x:
    #   h(3) = 2 - 1 + 0.003 = 1.003   h(8) = 3 - 1 + 0.008 = 2.008   h(15) = 4 - 1 + 0.015 = 3.015
    # so the target network's 2.008 means a value of 8, and its 1.003 one of 3.
    result = table_loss(
        target_table([1.5, 2.008], [9.0, 1.003]),
        [[3.75, 4.5, -15.0, 0.0, 0.0], [13.5, 1.5, 0.0, 0.0, 0.0]],
        rescale_values=True,
    )
    expected = [
        [
            2.008 - 2.0,  #   s0: h(3.75 + 0.5 · 4.5 + 0.25 · 8) = h(8)
            -1.003 - 3.0,  #  s1: h(4.5 + 0.5 · -15) = h(-3)
            -3.015 - 2.5,  #  s2: h(-15)
        ],
        [
            3.015 - 0.0,  #   s4: h(13.5 + 0.5 · 1.5 + 0.25 · 3) = h(15)
            1.003 - 2.0,  #   s5: h(1.5 + 0.5 · 3) = h(3)
        ],
    ]
    check(errors_of(result), expected)


def test_a_discount_of_nine_tenths_by_hand() -> None:
    result = table_loss(PLAIN_TARGET, PLAIN_REWARDS, gamma=0.9)
    expected = [
        [1 + 0.9 * 2 + 0.81 * -2.0 - 2.0, 2 + 0.9 * -4 - 3.0, -4 - 2.5],
        [0.5 + 0.9 * 1 + 0.81 * 0.8 - 0.0, 1 + 0.9 * 0.8 - 2.0],
    ]
    check(expected, [[-0.82, -4.6, -6.5], [2.048, -0.28]])
    check(errors_of(result), expected)


SQUARED = [0.5 * 0.5**2 + 0.5 * 3.0**2 + 0.5 * 6.5**2, 0.5 * 1.2**2 + 0.5 * 0.6**2]  # 25.75, 0.9
HUBER = [0.5 * 0.5**2 + (3.0 - 0.5) + (6.5 - 0.5), (1.2 - 0.5) + 0.5 * 0.6**2]  # 8.625, 0.88


@pytest.mark.parametrize(("loss", "parts"), [("squared", SQUARED), ("huber", HUBER)])
def test_the_loss_by_hand(loss: str, parts: list[float]) -> None:
    # Importance weights 1 and 0.5; five trained steps; two windows.
    weighted = 1.0 * parts[0] + 0.5 * parts[1]
    assert weighted == pytest.approx({"squared": 26.2, "huber": 9.065}[loss])
    mean = table_loss(PLAIN_TARGET, PLAIN_REWARDS, loss=loss)
    assert mean.loss.item() == pytest.approx(weighted / 5)
    summed = table_loss(PLAIN_TARGET, PLAIN_REWARDS, loss=loss, loss_over_time="sum")
    assert summed.loss.item() == pytest.approx(weighted / 2)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_the_gradient_by_hand(loss: str) -> None:
    online = Table(ONLINE)
    result = table_loss(PLAIN_TARGET, PLAIN_REWARDS, online, loss=loss)
    result.loss.backward()  # type: ignore[no-untyped-call]
    # d loss / d q = -weight · δ / 5, where Huber's |δ| ends at 1; only the actions taken have one.
    bound = 1.0 if loss == "huber" else 10.0
    expected = torch.zeros(7, 2)
    expected[0, 1] = 1.0 * 0.5 / 5
    expected[1, 0] = 1.0 * min(3.0, bound) / 5
    expected[2, 1] = 1.0 * min(6.5, bound) / 5
    expected[4, 0] = 0.5 * -min(1.2, bound) / 5
    expected[5, 0] = 0.5 * 0.6 / 5
    assert online.q.grad is not None
    torch.testing.assert_close(online.q.grad, expected)


def test_priorities_by_hand() -> None:
    result = table_loss(PLAIN_TARGET, PLAIN_REWARDS)
    priorities = mixed_priority(result.td_errors, torch.tensor(MASK), 0.9)
    # η max|δ| + (1 - η) mean|δ| + 0.001
    expected = [
        0.9 * 6.5 + 0.1 * (0.5 + 3.0 + 6.5) / 3 + 0.001,  # 6.18433…
        0.9 * 1.2 + 0.1 * (1.2 + 0.6) / 2 + 0.001,  # 1.171
    ]
    assert priorities.tolist() == pytest.approx(expected)


def test_the_rescaling_by_hand_is_the_papers() -> None:
    for x, y in ((3.0, 1.003), (8.0, 2.008), (15.0, 3.015)):
        assert sqrt(abs(x) + 1) - 1 + 1e-3 * x == pytest.approx(y)


LEARNER = {"unroll_steps": 4, "burn_in_steps": 3, "n_step": 2, "clip_rewards": False, "batch_windows": 8}
MADE = tuple[TrainConfig, Any, Any, WindowTensors, Tensor]


def made(core: str = "gru", **learner: Any) -> MADE:
    config = tiny_config(network={"core": core, "last_action_and_reward": True}, learner=LEARNER | learner)
    windows = some_batches(config, 1)[0].windows
    assert set(windows.skipped.tolist()) == {0, 3}
    assert 0 < windows.mask.mean() < 1
    return config, make_network(config, VECTOR, 0), make_network(config, VECTOR, 1), windows, torch.ones(8)


def loss_of(config: TrainConfig, network: Any, target: Any, windows: WindowTensors, weights: Tensor) -> TdLoss:
    return td_loss(network, target, windows, config.learner, config.window, 1, weights)


def inputs_of(config: TrainConfig, windows: WindowTensors) -> NetworkInput:
    """Of the columns from burn-in on, as the network takes them; one frame each."""
    frames = windows.frames[config.window.history :].transpose(0, 1)
    return NetworkInput(frames, windows.last_actions, windows.last_rewards)


def after_burn_in(config: TrainConfig, network: Any, windows: WindowTensors) -> Tensor:
    """The state at the unroll's start, each row stepped through its own burn-in."""
    inputs, states = inputs_of(config, windows), []
    for row, skipped in enumerate(windows.skipped.tolist()):
        state = windows.state[:, row : row + 1]
        for column in range(skipped, 3):
            _, state = step_once(network, NetworkInput(*(x[row : row + 1, column] for x in inputs)), state)
        states.append(state)
    return torch.cat(states, 1)


def gradient_of(function: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(function, tensors, allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(tensors, gradients, strict=True))


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_no_gradient_flows_into_burn_in_or_the_stored_state(core: str) -> None:
    config, network, target, windows, weights = made(core)
    last_rewards = windows.last_rewards.clone().requires_grad_()
    state = windows.state.clone().requires_grad_()
    windows = windows._replace(state=state, last_rewards=last_rewards)
    into_inputs, into_state = gradient_of(loss_of(config, network, target, windows, weights).loss, last_rewards, state)
    assert not into_inputs[:, :3].any()
    assert into_inputs[:, 3].any()  # into every row's first trained step
    assert not into_inputs[:, 7:].any()  # the tail only chooses actions
    assert not into_state[:, windows.skipped == 0].any()


def test_the_gradient_is_that_of_an_unroll_from_the_state_after_burn_in() -> None:
    config, network, target, windows, weights = made()
    loss_of(config, network, target, windows, weights).loss.backward()  # type: ignore[no-untyped-call]
    mine = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    with torch.no_grad():
        state = after_burn_in(config, network, windows)
    q_values, _ = unroll(network, NetworkInput(*(x[:, 3:7] for x in inputs_of(config, windows))), state)
    q_taken = q_values.gather(-1, windows.actions[:, :4, None]).squeeze(-1)
    result = loss_of(config, network, target, windows, weights)
    y = result.td_errors + result.q_taken
    loss = torch.nn.functional.smooth_l1_loss(q_taken, y, reduction="none")
    ((loss * windows.mask).sum() / windows.mask.sum()).backward()
    for one, two in zip(mine, network.parameters(), strict=True):
        torch.testing.assert_close(one, two.grad)


def test_burn_in_changes_the_state_of_both_networks_each_by_its_own_weights() -> None:
    config, network, target, windows, weights = made(double_q=False)
    main = NetworkInput(*(x[:, 3:] for x in inputs_of(config, windows)))
    with torch.no_grad():
        own = after_burn_in(config, target, windows)
        borrowed = after_burn_in(config, network, windows)
        values, wrong = (unroll(target, main, state)[0].amax(-1) for state in (own, borrowed))
        result = loss_of(config, network, target, windows, weights)
    y = result.td_errors + result.q_taken
    whole = (windows.skipped == 0) & (windows.steps_left[:, 0] > 2)
    assert whole.any()
    rewards, gamma = windows.rewards, config.learner.gamma
    expected = rewards[:, 0] + gamma * rewards[:, 1] + gamma**2 * values[:, 2]
    torch.testing.assert_close(y[whole, 0], expected[whole])
    assert ((values - wrong)[whole, 2].abs() > 1e-4).all()


def test_what_lies_outside_an_episode_changes_neither_the_loss_nor_any_gradient() -> None:
    config, network, target, windows, weights = made()
    columns = torch.arange(9)
    padding = columns < windows.skipped[:, None]
    padding |= columns > 3 + windows.steps_left[:, :1]  # behind the final observation
    assert padding.any(1).sum() > 4
    history = torch.zeros(8, config.window.history, dtype=torch.bool)
    outside = torch.cat([history, padding], 1).T[..., None]
    noisy = windows._replace(
        frames=torch.where(outside, torch.randn_like(windows.frames), windows.frames),
        last_actions=torch.where(padding, 2, windows.last_actions),
        last_rewards=torch.where(padding, 0.7, windows.last_rewards),
        actions=torch.where(windows.steps_left <= 0, 3, windows.actions),
    )
    parameters = list(network.parameters())
    results = []
    for given in (windows, noisy):
        loss = loss_of(config, network, target, given, weights).loss
        results.append((loss, gradient_of(loss, *parameters)))
    assert results[0][0].item() == pytest.approx(results[1][0].item(), abs=1e-7)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-7)


def test_the_target_network_gets_no_gradient() -> None:
    config, network, target, windows, weights = made()
    loss_of(config, network, target, windows, weights).loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in target.parameters())
    assert all(p.grad is not None for p in network.parameters())


def test_a_window_counts_by_its_importance_weight() -> None:
    config, network, target, windows, _ = made()
    alone = []
    for row in range(8):
        weights = torch.zeros(8)
        weights[row] = 1
        alone.append(loss_of(config, network, target, windows, weights).loss.item())
    weights = torch.linspace(0.1, 1, 8)
    together = loss_of(config, network, target, windows, weights).loss.item()
    assert together == pytest.approx(sum(w * x for w, x in zip(weights.tolist(), alone, strict=True)), rel=1e-5)


@pytest.mark.parametrize("head", ["linear", "dueling"])
def test_heads_are_float32_inside_the_loss_where_torso_and_core_are_not(head: str) -> None:
    results = {}
    for precision in ("bf16", "fp32"):
        config = tiny_config(network={"head": head, "precision": precision}, learner=LEARNER)
        network, target = (make_network(config, VECTOR, seed) for seed in (0, 1))
        windows = some_batches(config, 1)[0].windows
        seen: list[Tensor] = []
        for module in (network.head, target.head):
            for layer in module.modules():
                layer.register_forward_hook(lambda _, inputs, output, seen=seen: seen.extend([*inputs, output]))
        results[precision] = loss_of(config, network, target, windows, torch.ones(8))
        assert len(seen) > 4
        assert {t.dtype for t in seen} == {torch.float32}
        # A product of bfloat16 has no digits beyond them; those of float32 do.
        assert not torch.equal(results[precision].q_taken, results[precision].q_taken.bfloat16().float())
    torch.testing.assert_close(results["bf16"].q_taken, results["fp32"].q_taken, rtol=0, atol=0.03)
    assert not torch.equal(results["bf16"].q_taken, results["fp32"].q_taken)  # the rest is in bfloat16


@pytest.mark.parametrize("core", ["gru", "lstm", "none"])
@pytest.mark.parametrize("double_q", [True, False])
def test_gradients_reach_every_parameter_although_autocast_keeps_what_it_cast(core: str, double_q: bool) -> None:
    gradients = {}
    for precision in ("bf16", "fp32"):
        config = tiny_config(
            network={"torso": "small", "core": core, "head": "dueling", "precision": precision, "head_units": 32},
            learner=LEARNER | {"double_q": double_q},
        )
        network, target = (make_network(config, IMAGE, seed) for seed in (0, 1))
        windows = some_batches(config, 1, IMAGE)[0].windows
        loss_of(config, network, target, windows, torch.ones(8)).loss.backward()  # type: ignore[no-untyped-call]
        gradients[precision] = [p.grad for p in network.parameters()]
    for (name, parameter), one, other in zip(network.named_parameters(), *gradients.values(), strict=True):
        assert one is not None, name
        assert one.dtype == parameter.dtype == torch.float32
        assert one.any(), name
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.9, name
