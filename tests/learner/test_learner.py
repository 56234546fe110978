from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from drqn_dist.codec import decode
from drqn_dist.errors import ConfigError, DrqnError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.qlearning.priority import mixed_priority
from learner.learner import resolve_device
from learner.loss import TdLoss, td_loss
from learner.update import Update
from tests.learner.bench import PRIORITIZED, Bench, bench
from tests.learner.reading import Read
from tests.oracles import folded
from tests.tiny import IMAGE, VECTOR, tiny_config


def loss_of(trained: Bench, read: Read, network: Any = None) -> TdLoss:
    """Of the networks as they are now."""
    config, state = trained.config, trained.learner.state
    stack = config.env.stack_frames
    weights = read.batch.weights
    return td_loss(network or state.network, state.target, read.windows, config.learner, config.window, stack, weights)


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
        replay=PRIORITIZED | {"capacity_steps": 500},
    )
    trained = Bench(config, spec=spec)
    network = deepcopy(trained.learner.state.network)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in network.parameters()]
    for number, read in enumerate(trained.batches(), start=1):
        network.zero_grad()
        loss_of(trained, read, network).loss.backward()  # type: ignore[no-untyped-call]
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


def test_importance_weights_are_those_of_each_batch_of_a_draw() -> None:
    trained = bench(2, replay=PRIORITIZED)
    pool = trained.game.windows.population
    for number, read in enumerate(trained.batches()):
        rng = np.random.default_rng(number)
        rng.choice(pool, 4, replace=False)
        # (N P)^-0.6, and 1 for the largest of the batch.
        raw = [(pool * p) ** -0.6 for p in rng.uniform(0.01, 0.2, 4).tolist()]
        assert read.batch.weights.tolist() == pytest.approx([w / max(raw) for w in raw])


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_updates_in_turn_give_the_same_tensors_wherever_the_store_lies_and_whoever_calls(optimizer: str) -> None:
    sections: dict[str, Any] = {
        "learner": {"optimizer": optimizer, "learning_rate": 1e-2, "burn_in_steps": 3},
        "replay": PRIORITIZED,
    }
    config = tiny_config(**sections)
    device, host, alone = Bench(config), Bench(config, place="host"), Bench(config)
    step = Update(config, alone.learner.state, alone.learner.feed.store)
    for _ in range(5):
        device.update()
        host.update()
        batch = alone.learner.feed.next()
        outputs = step(batch)
        assert alone.learner.feed.store is not host.learner.feed.store
        ids, priorities = device.priorities.updates[-1]
        assert ids.tolist() == batch.ids.tolist()
        assert priorities.tolist() == outputs[:4].tolist()
    for other in (host, alone):
        for mine, theirs in zip(device.parameters, other.parameters, strict=True):
            assert torch.equal(mine, theirs)
    for (_, mine_), (_, theirs_) in zip(device.priorities.updates, host.priorities.updates, strict=True):
        assert mine_.tolist() == theirs_.tolist()


def test_no_gradient_is_left_over_for_the_next_update() -> None:
    trained = bench()
    trained.update()
    assert all(p.grad is None for p in trained.learner.state.network.parameters())


@pytest.mark.parametrize(("optimizer", "slots"), [("adam", 3), ("rmsprop", 2)])
def test_moments_exist_and_are_zero_before_the_first_update_and_weights_are_the_seeds(
    optimizer: str, slots: int
) -> None:
    trained = bench(learner={"optimizer": optimizer})
    state = trained.learner.state
    tensors = state.trained_tensors()
    parameters = list(state.network.parameters())
    assert len(tensors) == len(parameters) * (1 + slots)
    assert all(not moment.any() for moment in tensors[len(parameters) :])
    again = bench(learner={"optimizer": optimizer, "learning_rate": 1.0})
    assert (again.learner.state.network.to_vector() == state.network.to_vector()).all()


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


def test_priorities_go_back_to_the_windows_they_belong_to() -> None:
    trained = bench(replay=PRIORITIZED | {"priority_eta": 0.7})
    expected = []
    for read in trained.batches():
        with torch.no_grad():
            errors = loss_of(trained, read).td_errors
        expected.append((read.batch.ids.tolist(), mixed_priority(errors, read.windows.mask, 0.7).tolist()))
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
    (read,) = trained.batches()
    learner = trained.learner
    losses, errors, values = [], [], []
    for _ in range(2):
        with torch.no_grad():
            result = loss_of(trained, read)
        trained_steps = read.windows.mask > 0
        losses.append(result.loss.item())
        errors.append(result.td_errors[trained_steps].abs().mean().item())
        values.append(result.q_taken[trained_steps].mean().item())
        trained.update()
    stats = learner.take_stats()
    assert (stats.updates, stats.new_updates, stats.inserted_steps) == (2, 2, read.batch.inserted_steps)
    assert stats.inserted_steps > 0
    assert stats.td_loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert stats.td_error == pytest.approx(np.mean(errors), rel=1e-5)
    assert stats.q_value == pytest.approx(np.mean(values), rel=1e-5)
    again = learner.take_stats()
    assert (again.updates, again.new_updates) == (2, 0)
    assert np.isnan(again.td_loss)


def test_the_age_of_a_sample_is_counted_in_updates() -> None:
    trained = bench(1)
    (read,) = trained.batches()
    versions = read.batch.weight_versions
    assert versions.tolist() == [0, 0, 0, 0]  # the actor that played knew only version 0
    trained.update(3)
    # Before each update the policy was 0, 1 and 2 updates old.
    assert trained.learner.take_stats().sample_age == pytest.approx((0 + 1 + 2) / 3)


def test_times_are_those_since_statistics_were_last_asked_for() -> None:
    trained = bench(1)
    trained.learner.take_stats()
    trained.update(3)
    stats = trained.learner.take_stats()
    assert stats.wait_s > 0
    assert stats.train_s > 0
    assert stats.wait_s + stats.train_s <= stats.wall_s
    assert stats.cpu_s > 0
    idle = trained.learner.take_stats()
    assert (idle.wait_s, idle.train_s) == (0.0, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("replay", [{}, PRIORITIZED])
def test_a_loss_that_is_not_finite_stops_training_before_it_is_reported_or_saved(
    value: float, replay: dict[str, Any]
) -> None:
    trained = bench(2, replay=replay)
    trained.update()
    with torch.no_grad():
        for parameter in trained.learner.state.network.parameters():
            parameter.fill_(value)
    message = r"diverged at update 2: loss .*lower learner.learning_rate"
    with pytest.raises(DrqnError, match=message):
        trained.update()
    with pytest.raises(DrqnError, match=message):
        trained.learner.save()
    with pytest.raises(DrqnError, match=message):
        trained.learner.take_stats()
    assert all(np.isfinite(values).all() for _, values in trained.priorities.updates)


@pytest.mark.parametrize("threaded", [False, True])
def test_vectors_are_standardized_by_all_that_came_before_the_first_update(threaded: bool) -> None:
    config = tiny_config(network={"standardize_vectors": True}, replay={"capacity_steps": 500})
    trained = Bench(config, threaded=threaded)
    vectors = np.array([v for p in trained.game.payloads for v in decode(p, 2**24).observations])
    assert len(vectors) > 50
    trained.update(2)
    for network in (trained.learner.state.network, trained.learner.state.target):
        found = network.state_dict()
        np.testing.assert_allclose(found["torso.mean"].numpy(), vectors.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["torso.scale"].numpy(), 1 / (vectors.std(0) + 0.01), rtol=1e-4)
    trained.learner.close()


CENTRED: dict[str, Any] = {
    "network": {"torso": "small", "center_pixels": True},
    "replay": {"capacity_steps": 500},
    "learner": {"burn_in_steps": 2, "publish_period_updates": 1},
}


@pytest.mark.parametrize("threaded", [False, True])
def test_pixels_are_centred_by_the_mean_of_all_frames_that_came_before_the_first_update(threaded: bool) -> None:
    config = tiny_config(**CENTRED)
    trained = Bench(config, spec=IMAGE, threaded=threaded)
    pictures = [frame for p in trained.game.payloads for frame in decode(p, 2**24).observations]
    mean = np.mean([folded(picture) for picture in pictures], 0)
    assert len(pictures) > 50
    before = deepcopy(trained.learner.state.network)
    trained.update()
    for network in (trained.learner.state.network, trained.learner.state.target):
        found = network.state_dict()["torso.convolutions.0.mean"].numpy()
        assert np.abs(found - mean).max() <= 0.5 + 1e-3  # whole grey levels
        assert (found == np.round(found)).all()
        assert network.state_dict()["torso.convolutions.0.scale"].item() == pytest.approx(1 / 40)
    # It was set before the update and not behind it: the update is that of a centred network.
    before.center_pixels(torch.from_numpy(mean).float())
    read = trained.batches()[0]
    result = td_loss(before, before, read.windows, config.learner, config.window, 1, read.batch.weights)
    assert trained.learner.take_stats().td_loss == pytest.approx(result.loss.item(), rel=1e-4)
    published = trained.publisher.latest(0)
    assert published is not None
    assert (published.vector == trained.learner.state.network.to_vector()).all()
    centre = trained.learner.state.network.state_dict()["torso.convolutions.0.mean"].clone()
    trained.update(2)
    assert torch.equal(trained.learner.state.network.state_dict()["torso.convolutions.0.mean"], centre)
    trained.learner.close()


def test_the_time_for_centring_is_part_of_training() -> None:
    trained = Bench(tiny_config(**CENTRED), spec=IMAGE)
    for _ in range(3):
        trained.update()
        stats = trained.learner.take_stats()
        assert stats.train_s > 0
        assert stats.wait_s >= 0


def test_the_centre_is_part_of_the_checkpoint_and_is_not_measured_again() -> None:
    config = tiny_config(**CENTRED)
    trained = Bench(config, spec=IMAGE)
    trained.update()
    resumed = Bench(tiny_config(**CENTRED, seed=4), first=1, spec=IMAGE, game=trained.game)
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


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_has_a_number_which_torch_needs_to_make_it_the_current_one(
    name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name) == torch.device("cuda", number)
    assert torch.cuda._utils._get_device_index(resolve_device(name)) == number  # what `set_device` asks first


def test_run_trains_for_about_the_time_it_is_given() -> None:
    stats = bench().learner.run(0.05)
    assert stats.new_updates == stats.updates > 0
    assert 0 <= stats.wait_s < stats.wall_s
    assert stats.train_s > 0
