from __future__ import annotations

import errno
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drqn_dist.config import TrainConfig, with_settings
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import CheckpointError, CheckpointUnreadError, ConfigError, RunFolderError
from drqn_dist.experiments.run_folder import create_run, open_run
from drqn_dist.interfaces import SHARD_STRIDE, EnvSpec
from drqn_dist.network.torso import ConvTorso
from drqn_dist.training.origin import fit_replay, initial_state, resumed_state
from drqn_dist.training.serial import SerialSession
from drqn_dist.training.session import Report, Saved
from learner.train_state import TrainState
from replay_server.make import make_replay
from replay_server.stats import total_stats
from tests.runs import maze_config
from tests.tiny import IMAGE, VECTOR, tiny_config


def _state(inserted: int, debt: int, shard: int = 0) -> dict[str, Any]:
    """As a shard of a small replay would save it."""
    config = maze_config(Path("runs"), mode="ray", actors=4, replay={"shards": 2})
    state = make_replay(config, shard).get_state()
    counters = {"inserted_steps": inserted, "counted_steps": inserted - 10, "sampled_steps": 8 * inserted, "debt": debt}
    state["limiter"] |= counters
    state["counts"] = {"duplicates": inserted + 1, "rejected": inserted + 2, "late_priorities": inserted + 3}
    return state


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_counters_of_all_shards_stay_the_same_whatever_their_number(shards: int) -> None:
    config = maze_config(Path("runs"), mode="ray", actors=4, replay={"shards": shards})
    fitted = fit_replay([_state(100, 40), _state(300, -64, shard=1)], shards)
    replays = [make_replay(config, shard) for shard in range(shards)]
    for replay, state in zip(replays, fitted, strict=True):
        if state is not None:
            replay.set_state(state)
    stats = total_stats([replay.stats() for replay in replays])
    assert (stats.inserted_steps, stats.counted_steps, stats.sampled_steps) == (400, 380, 3_200)
    assert (stats.duplicates, stats.rejected, stats.late_priorities) == (402, 404, 406)


def test_a_debt_is_kept_as_a_whole_where_the_bounds_of_the_ratio_are_the_same() -> None:
    (whole,) = fit_replay([_state(100, 40), _state(300, -64, shard=1)], 1)
    assert whole is not None
    assert whole["limiter"]["debt"] == 40 - 64
    one, none = fit_replay([whole], 2)
    assert one is not None
    assert (one["limiter"]["debt"], none) == (40 - 64, None)


def test_states_of_as_many_shards_are_used_as_they_are_also_where_one_had_told_nothing() -> None:
    states = [_state(100, 40), None]
    assert fit_replay(states, 2) == states
    (whole,) = fit_replay([None, _state(300, -64)], 1)
    assert whole is not None
    assert whole["limiter"]["inserted_steps"] == 300
    assert fit_replay([None], 2) == [None, None]


def test_the_windows_of_fitted_states_belong_to_the_first_shard_and_go_on_in_number() -> None:
    """Ids name their shard (2⁴⁸ for each). The second shard had given 7; the only one now gives the next."""
    state = _state(100, 40, shard=1)
    assert state["sampler"]["next_id"] == SHARD_STRIDE == 2**48
    state["sampler"]["next_id"] += 7
    (whole,) = fit_replay([None, state], 1)
    assert whole is not None
    assert whole["sampler"]["next_id"] == 7


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint after 5 updates."""
    return _trained(maze_config(tmp_path_factory.mktemp("runs")))


def _trained(config: TrainConfig, updates: int = 5) -> Path:
    run = create_run(config, [])
    with closing(SerialSession(config)) as session:
        while session.learner.state.updates < updates:
            session.turn(Report())
        saved = session.save()
    run.checkpoints.write(updates, saved.tensors, saved.meta)
    return run.path


def test_a_new_run_begins_with_the_online_weights_alone(source: Path, tmp_path: Path) -> None:
    other = maze_config(tmp_path, seed=9, learner={"optimizer": "rmsprop", "gamma": 0.5})
    state, note = initial_state(source, other, env_spec(other.env))
    theirs = open_run(source).checkpoints.latest()
    assert theirs is not None
    assert not torch.equal(theirs.tensors["network.head.weight"], theirs.tensors["target.head.weight"])
    for name, tensor in state.tensors.items():
        part, _, rest = name.partition(".")
        expected = torch.zeros_like(tensor) if part == "optimizer" else theirs.tensors[f"network.{rest}"]
        assert torch.equal(tensor, expected), name
    assert {name.rpartition(".")[2] for name in state.tensors if name.startswith("optimizer.")} == {
        "step",
        "square_avg",
    }
    assert (note["run"], note["update"], len(note["weights_sha256"])) == (source.name, 5, 64)
    with closing(SerialSession(other, state)) as session:
        assert (session.agent_steps, session.learner.state.updates) == (0, 0)
        assert session.replay.stats().inserted_steps == 0
        published = session.publisher.latest(-1)
        assert published is not None
        assert (published.version, published.vector.tolist()) == (0, session.learner.state.network.to_vector().tolist())


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    config = maze_config(tmp_path)
    run = _trained(config)
    good = (run / "checkpoints" / "checkpoint_0000000005.safetensors").read_bytes()
    (run / "checkpoints" / "checkpoint_0000000009.safetensors").write_bytes(good[:-50])
    assert initial_state(run, config, env_spec(config.env))[1]["update"] == 5


def test_in_serial_mode_alone_a_checkpoint_that_the_disk_does_not_give_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = maze_config(tmp_path)
    with closing(SerialSession(config)) as session:
        saved = session.save()
    run = create_run(config, [])
    for updates, agent_steps in ((1, 10), (2, 20)):
        run.checkpoints.write(updates, saved.tensors, saved.meta | {"agent_steps": agent_steps})
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name.endswith("2.safetensors"):
            raise OSError(errno.EIO, "Input/output error")
        return whole(path)

    assert resumed_state(run, config).meta["agent_steps"] == 20
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(CheckpointUnreadError, match=r"2\.safetensors: Input/output error; try again"):
        resumed_state(run, config)
    assert resumed_state(run, replace(config, mode="ray")).meta["agent_steps"] == 10


def test_a_run_without_a_checkpoint_or_a_folder_that_is_no_run_cannot_be_begun_from(tmp_path: Path) -> None:
    config = maze_config(tmp_path)
    run = create_run(config, [])
    with pytest.raises(CheckpointError, match="holds no checkpoint to go on from"):
        initial_state(run.path, config, env_spec(config.env))
    with pytest.raises(CheckpointError, match="holds no checkpoint to go on from"):
        resumed_state(run, config)
    with pytest.raises(RunFolderError, match="is no run folder"):
        initial_state(tmp_path, config, env_spec(config.env))


def _saved_network(root: Path, config: TrainConfig, spec: EnvSpec) -> Path:
    """A run whose checkpoint holds fresh weights."""
    run = create_run(replace(config, run_dir=str(root)), [])
    run.checkpoints.write(3, TrainState(config, spec, torch.device("cpu")).to_tensors(), {})
    return run.path


IMAGES: dict[str, Any] = {"network": {"torso": "small"}}


@pytest.mark.parametrize(
    ("there", "here", "specs", "message"),
    [
        (
            {"network.core_units": 9},
            {},
            (VECTOR, VECTOR),
            r"in core.rnn.weight_ih_l0, which is of shape \(27, 8\) there and of shape \(24, 8\) here; "
            r"network.core_units is 9 there and 8 here$",
        ),
        ({"network.torso_units": 5}, {}, (VECTOR, VECTOR), r"torso.layers.0.weight.* network.torso_units is 5 there"),
        (
            {"network.core_units": 9, "network.torso_units": 5},
            {},
            (VECTOR, VECTOR),
            r"torso.layers.0.weight.* here; network.torso_units is 5 there and 8 here$",
        ),
        ({"network.core": "lstm"}, {}, (VECTOR, VECTOR), r"\(32, 8\) there.* network.core is lstm there and gru here$"),
        ({"network.core": "none"}, {}, (VECTOR, VECTOR), "which is missing there and of .* network.core is none there"),
        ({"network.head": "dueling"}, {}, (VECTOR, VECTOR), r"in head.weight.*network.head is dueling there"),
        ({"env.stack_frames": 2}, {}, (VECTOR, VECTOR), r"\(8, 6\) there .*env.stack_frames is 2 there and 1 here$"),
        (
            {},
            {},
            (replace(VECTOR, num_actions=6), VECTOR),
            r"head.weight, which is of shape \(6, 8\) there and of shape \(4, 8\) here; "
            "the environment there has 6 actions and the one here 4$",
        ),
        (
            {"network.last_action_and_reward": True},
            {"network.last_action_and_reward": True},
            (replace(VECTOR, num_actions=6), VECTOR),
            "core.rnn.weight_ih_l0.*the environment there has 6 actions and the one here 4$",
        ),
        (
            {"network.head": "dueling", "network.head_units": 3},
            {"network.head": "dueling", "network.head_units": 3},
            (replace(VECTOR, num_actions=6), VECTOR),
            "head.advantage.2.weight.*the environment there has 6 actions and the one here 4$",
        ),
        (
            {},
            {},
            (replace(VECTOR, observation_shape=(5,)), VECTOR),
            r"\(8, 5\) there and .* the environments' observations differ in their shape$",
        ),
        (
            {"network.core_units": 9, "network.core": "lstm", "network.precision": "bf16"},
            {},
            (VECTOR, VECTOR),
            "; network.core is lstm there and gru here; network.core_units is 9 there and 8 here$",
        ),
    ],
)
def test_weights_of_other_shapes_are_refused_with_the_first_parameter_and_the_setting_behind_it(
    there: dict[str, Any], here: dict[str, Any], specs: tuple[EnvSpec, EnvSpec], message: str, tmp_path: Path
) -> None:
    theirs, mine = (with_settings(tiny_config(), changed) for changed in (there, here))
    run = _saved_network(tmp_path, theirs, specs[0])
    with pytest.raises(ConfigError, match=message):
        initial_state(run, mine, specs[1])


def test_centring_in_only_one_of_two_runs_is_refused(tmp_path: Path) -> None:
    plain = tiny_config(**IMAGES)
    centred = with_settings(plain, {"network.center_pixels": True})
    for theirs, mine, flag in ((plain, centred, "false"), (centred, plain, "true")):
        run = _saved_network(tmp_path / flag, theirs, IMAGE)
        with pytest.raises(ConfigError, match=f"use --network.center-pixels {flag}$"):
            initial_state(run, mine, IMAGE)


def test_the_mean_picture_comes_along_and_is_measured_anew_before_the_first_update(tmp_path: Path) -> None:
    game = {"id": "ALE/Pong-v5", "kwargs": {}, "height_px": 36, "width_px": 36}
    network = {"torso": "small", "torso_units": 8, "core_units": 8, "center_pixels": True}
    config = maze_config(tmp_path, env=game, network=network, replay={"min_steps": 16})
    spec = env_spec(config.env)
    theirs = TrainState(config, spec, torch.device("cpu"))
    assert isinstance(theirs.network.torso, ConvTorso)
    theirs.network.center_pixels(torch.full_like(theirs.network.torso.first.mean, 255.0))
    run = create_run(config, [])
    run.checkpoints.write(3, theirs.to_tensors(), {})
    state, _ = initial_state(run.path, config, spec)

    def means(session: SerialSession) -> set[float]:
        networks = (session.learner.state.network, session.learner.state.target)
        return {v for net in networks for v in net.state_dict()["torso.convolutions.0.mean"].flatten().tolist()}

    with closing(SerialSession(config, state)) as session:
        session.turn(Report())
        assert session.learner.state.updates == 0
        assert means(session) == {255.0}
        while session.learner.state.updates == 0:
            session.turn(Report())
        assert 255.0 not in means(session), "no pixel of Pong is white all the time"


def test_a_run_that_had_shards_goes_on_in_one_process_with_all_that_they_had_counted(tmp_path: Path) -> None:
    config = maze_config(tmp_path)
    with closing(SerialSession(config)) as session:
        saved = session.save()
    run = create_run(replace(config, mode="ray", actors=2, replay=replace(config.replay, shards=2)), [])
    meta = saved.meta | {"replay": [_state(100, 0), _state(300, 0, shard=1)], "agent_steps": 450}
    run.checkpoints.write(0, saved.tensors, meta)
    state: Saved = resumed_state(run, config)
    with closing(SerialSession(config, state)) as session:
        assert (session.agent_steps, session.replay.stats().inserted_steps) == (450, 400)
