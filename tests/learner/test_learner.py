from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from drqn_dist.config import TrainConfig
from drqn_dist.errors import ConfigError, DrqnError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.qlearning.priority import importance_weights, mixed_priority
from learner.batch_loader import TensorBatch
from learner.learner import CENTER_BATCHES, resolve_device
from learner.loss import td_loss
from tests.learner.batches import some_batches
from tests.learner.bench import PRIORITIZED, Bench, bench
from tests.tiny import IMAGE, VECTOR, tiny_config


def test_the_loss_falls_on_one_batch() -> None:
    trained = bench(1, learner={"learning_rate": 1e-2, "target_period_updates": 10_000})
    trained.update()
    first = trained.learner.take_stats().td_loss
    trained.update(100)
    trained.learner.take_stats()
    trained.update()
    assert trained.learner.take_stats().td_loss < 0.05 * first


@pytest.mark.parametrize("loss", ["huber", "squared"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize(("clip", "at"), [("norm", 0.05), ("norm", 1e6), ("value", 0.003), ("none", 0.001)])
@pytest.mark.parametrize(("torso", "spec"), [("mlp", VECTOR), ("small", IMAGE)])
def test_an_update_is_the_textbooks(loss: str, optimizer: str, clip: str, at: float, torso: str, spec: EnvSpec) -> None:
    settings = {"loss": loss, "optimizer": optimizer, "clip_gradient": clip, "clip_gradient_at": at}
    config = tiny_config(
        network={"torso": torso},
        learner=settings | {"learning_rate": 1e-2, "optimizer_epsilon": 1e-3, "rmsprop_alpha": 0.9},
        replay=PRIORITIZED,
    )
    trained = Bench(config, some_batches(config, 3, spec), spec=spec)
    network, target = deepcopy(trained.learner.state.network), trained.learner.state.target
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in network.parameters()]
    for number, batch in enumerate(trained.batches, start=1):
        weights = importance_weights(batch.probabilities, batch.population, 0.6)
        network.zero_grad()
        td_loss(network, target, batch, config.learner, torch.from_numpy(weights)).loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
        for p, g, (mean, square) in zip(network.parameters(), gradients, moments, strict=True):
            if clip == "norm" and norm > at:
                g = g * at / norm
            elif clip == "value":
                g = g.clamp(-at, at)
            if optimizer == "adam":
                mean.mul_(0.9).add_(g, alpha=0.1)
                square.mul_(0.999).add_(g.square(), alpha=0.001)
                step = (mean / (1 - 0.9**number)) / ((square / (1 - 0.999**number)).sqrt() + 1e-3)
            else:
                square.mul_(0.9).add_(g.square(), alpha=0.1)
                step = g / (square.sqrt() + 1e-3)
            p.data -= 1e-2 * step
        trained.update()
        assert trained.learner.take_stats().grad_norm == pytest.approx(norm, rel=1e-4)  # before clipping
        for mine, other in zip(trained.parameters, network.parameters(), strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-4, atol=1e-6)


def test_the_learning_rate_halves_over_the_updates_if_asked_for_also_after_a_resume() -> None:
    trained = bench(learner={"learning_rate": 1e-2, "learning_rate_halving_updates": 2})
    optimizer = trained.learner.state.optimizer
    rates = []
    for _ in range(5):
        trained.update()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2 * 0.5 ** (update / 2) for update in range(5)])
    resumed = bench(learner={"learning_rate": 1e-2, "learning_rate_halving_updates": 2})
    resumed.learner.load(*trained.learner.save())
    resumed.update()
    assert resumed.learner.state.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.5 ** (5 / 2))


def test_the_target_is_copied_every_period_and_stays_as_it_is_in_between() -> None:
    trained = bench(learner={"target_period_updates": 3, "learning_rate": 1e-2})
    state = trained.learner.state
    copies = []
    for update in range(1, 8):
        before = state.target.to_vector()
        trained.update()
        if update % 3 == 0:
            copies.append(update)
            assert (state.target.to_vector() == state.network.to_vector()).all()
        else:
            assert (state.target.to_vector() == before).all()
            assert (state.target.to_vector() != state.network.to_vector()).any()
    assert copies == [3, 6]


def test_weights_are_published_at_the_start_and_every_period() -> None:
    trained = bench(learner={"publish_period_updates": 3})
    first = trained.publisher.latest(-1)
    assert first is not None
    assert first.version == 0
    versions = []
    for _ in range(7):
        trained.update()
        snapshot = trained.publisher.latest(-1)
        assert snapshot is not None
        versions.append(snapshot.version)
        if snapshot.version == trained.learner.state.updates:
            assert (snapshot.vector == trained.learner.state.network.to_vector()).all()
    assert versions == [0, 0, 3, 3, 3, 6, 6]
    assert first.version == 0


def test_adopted_weights_are_in_both_networks_and_published() -> None:
    trained = bench(learner={"learning_rate": 1e-2, "publish_period_updates": 2})
    trained.update(2)
    kept = trained.publisher.latest(-1)
    assert kept is not None
    trained.update(3)
    assert (trained.learner.state.network.to_vector() != kept.vector).any()
    trained.learner.adopt(kept)
    published = trained.publisher.latest(-1)
    assert published is not None
    assert published.version == trained.learner.state.updates == 5
    for vector in (
        published.vector,
        trained.learner.state.network.to_vector(),
        trained.learner.state.target.to_vector(),
    ):
        assert (vector == kept.vector).all()


def test_priorities_go_back_to_the_windows_they_belong_to() -> None:
    trained = bench(replay=PRIORITIZED | {"priority_eta": 0.7})
    learner = trained.learner
    expected = []
    for batch in trained.batches:
        with torch.no_grad():
            errors = td_loss(
                learner.state.network, learner.state.target, batch, tiny_config().learner, torch.ones(4)
            ).td_errors
        expected.append((batch.ids.tolist(), mixed_priority(errors, batch.mask, 0.7).tolist()))
        trained.update()
    assert [ids.tolist() for ids, _ in trained.priorities.updates] == [ids for ids, _ in expected]
    for (_, mine), (_, other) in zip(trained.priorities.updates, expected, strict=True):
        assert mine.dtype == np.float64
        assert mine.tolist() == pytest.approx(other, rel=1e-5)


def test_uniform_replay_gets_no_priorities() -> None:
    trained = bench()
    trained.update(3)
    assert trained.priorities.updates == []


def test_statistics_are_means_since_they_were_last_asked_for() -> None:
    trained = bench(1, replay=PRIORITIZED)
    (batch,) = trained.batches
    batch.weight_versions[:] = [0, 0, 1, 3]
    learner = trained.learner
    losses, errors, values = [], [], []
    for _ in range(2):
        weights = torch.from_numpy(importance_weights(batch.probabilities, batch.population, 0.6))
        with torch.no_grad():
            result = td_loss(learner.state.network, learner.state.target, batch, tiny_config().learner, weights)
        trained_steps = batch.mask > 0
        losses.append(result.loss.item())
        errors.append(result.td_errors[trained_steps].abs().mean().item())
        values.append(result.q_taken[trained_steps].mean().item())
        trained.update()
    stats = learner.take_stats()
    assert (stats.updates, stats.new_updates, stats.inserted_steps) == (2, 2, batch.inserted_steps)
    assert stats.td_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert stats.td_error == pytest.approx(np.mean(errors), rel=1e-5)
    assert stats.q_value == pytest.approx(np.mean(values), rel=1e-5)
    assert stats.sample_age == pytest.approx(np.mean([0, (1 + 1 + 0 + 0) / 4]))
    again = learner.take_stats()
    assert (again.updates, again.new_updates) == (2, 0)
    assert np.isnan(again.td_loss)


def test_time_is_that_since_statistics_were_last_asked_for() -> None:
    trained = bench(1, learner={"publish_period_updates": 2})
    trained.learner.take_stats()
    for _ in range(3):
        trained.update()
    stats = trained.learner.take_stats()
    assert 0 < stats.publish_s < stats.train_s <= stats.wall_s
    assert stats.cpu_s > 0
    trained.update()
    trained.learner.take_stats()
    trained.update()
    assert trained.learner.take_stats().publish_s == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("replay", [{}, PRIORITIZED])
def test_a_loss_that_is_not_finite_stops_training_before_it_is_reported_or_saved(
    value: float, replay: dict[str, Any]
) -> None:
    trained = bench(2, replay=replay, learner={"clip_rewards": False})
    trained.update()
    trained.batches[1].rewards[:, 0] = value
    with pytest.raises(DrqnError, match=r"diverged") if replay else nullcontext():
        trained.update()
    with pytest.raises(DrqnError, match=r"diverged before update 2.*lower learner.learning_rate"):
        trained.learner.save()
    with pytest.raises(DrqnError, match="diverged before update 2"):
        trained.learner.take_stats()
    assert all(np.isfinite(values).all() for _, values in trained.priorities.updates)


def centred(burn_in_steps: int = 0, seed: int = 0) -> tuple[TrainConfig, list[TensorBatch]]:
    config = tiny_config(
        network={"torso": "small", "center_pixels": True}, learner={"burn_in_steps": burn_in_steps}, seed=seed
    )
    return config, some_batches(config, CENTER_BATCHES + 1, IMAGE)


def test_pixels_are_centred_once_by_the_trained_steps_of_the_first_batches() -> None:
    config, batches = centred(burn_in_steps=2)
    trained = Bench(config, batches, spec=IMAGE)
    trained.update(CENTER_BATCHES - 1)
    assert trained.learner.state.updates == 0  # each took one batch, as whoever paces the learner relies on
    trained.update(2)
    assert trained.learner.state.updates == 2
    first = batches[:CENTER_BATCHES]
    assert 0 < sum(batch.mask.sum() for batch in first) < sum(batch.mask.numel() for batch in first)
    pictures = [
        batch.inputs.observations[row, 2 + k].float() for batch in first for row, k in batch.mask.nonzero().tolist()
    ]
    expected = torch.stack(pictures).mean(0)
    for network in (trained.learner.state.network, trained.learner.state.target):
        torch.testing.assert_close(network.state_dict()["torso.convolutions.0.mean"], expected)
        assert network.state_dict()["torso.convolutions.0.scale"].item() == pytest.approx(1 / 40)


def test_the_centre_is_part_of_the_checkpoint_and_is_not_measured_again() -> None:
    config, batches = centred()
    trained = Bench(config, batches, spec=IMAGE)
    trained.update(CENTER_BATCHES)
    resumed = Bench(centred(seed=4)[0], batches, first=CENTER_BATCHES, spec=IMAGE)
    resumed.learner.load(*trained.learner.save())
    trained.update()
    resumed.update()
    assert resumed.learner.state.updates == 2
    assert (trained.learner.state.network.to_vector() == resumed.learner.state.network.to_vector()).all()


@pytest.mark.parametrize("name", ["gpu", "cuda:first", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"learner.device is '{name}'.*auto, cpu, cuda"):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_the_cpu() -> None:
    with pytest.raises(ConfigError, match=r"learner.device is 'cuda:0', but 0 GPUs are here"):
        resolve_device("cuda:0")
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")


def test_run_trains_for_about_the_time_it_is_given() -> None:
    stats = bench().learner.run(0.05)
    assert stats.new_updates == stats.updates > 0
    assert 0 <= stats.wait_s < stats.train_s
