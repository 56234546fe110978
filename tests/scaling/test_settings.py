from __future__ import annotations

from pathlib import Path

import pytest

from drqn_dist.arguments import parse
from drqn_dist.bench.play import play
from drqn_dist.cli import main
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import ConfigError
from drqn_dist.presets import preset
from drqn_dist.scaling.settings import ScaleArgs, base_config, counts, point_config
from replay_server.make import make_replay
from tests.replay_server.validity import can_push


def _parse(line: str) -> ScaleArgs:
    return parse(ScaleArgs, line.split(), "drqn-dist scale")


def test_counts_are_sorted_and_each_is_there_once() -> None:
    assert counts("--actors", "4,1, 2,2") == (1, 2, 4)


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "1.5", "a"])
def test_counts_must_be_positive_whole_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--actors is '{text}', but must be positive whole numbers"):
        counts("--actors", text)


def test_the_flags_are_understood() -> None:
    args = _parse(
        "--out d --actors 1,2 --no-learner --preset gridworld --set seed=3 replay.min_steps=7 env=CartPole-v1"
    )
    config = base_config(args)
    assert not args.learner
    assert (config.preset, config.seed, config.replay.min_steps, config.env.id) == ("gridworld", 3, 7, "CartPole-v1")
    shape = _parse("--simulate 4 --out d --cluster.shards 4 --cluster.learner-speedup 2.5").cluster
    assert (shape.shards, shape.learner_speedup) == (4, 2.5)


def test_a_measurement_never_ends_by_itself_nor_evaluates() -> None:
    config = base_config(_parse("--out d --preset pong-cpu"))
    assert (config.eval.period_updates, config.minutes, config.stop_at_return) == (None, None, None)
    assert config.total_steps >= 10**12


def test_settings_are_those_of_train() -> None:
    config = base_config(
        _parse("--out d --preset gridworld --set learner.learning-rate=0.5 actor.push_period_steps=None")
    )
    assert (config.learner.learning_rate, config.actor.push_period_steps) == (0.5, None)


def test_without_a_learner_pushes_never_wait_and_nothing_can_be_drawn() -> None:
    base = base_config(_parse("--out d --preset gridworld --set replay.min_steps=1"))
    config = point_config(base, 3, 4, learner=False)
    assert (config.actors, config.actor.envs_per_actor) == (3, 4)
    acting, training = make_replay(config), make_replay(point_config(base, 3, 4, learner=True))
    for payload in play(config, env_spec(config.env), 2_000):
        acting.push(payload)
        if can_push(training):
            training.push(payload)
    assert training.can_sample()
    assert not can_push(training)
    assert can_push(acting)
    assert not acting.can_sample()
    assert config.replay.capacity_bytes <= 2**29
    assert point_config(preset("gridworld"), 3, 4, learner=True).replay == preset("gridworld").replay


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "say where the measurements are kept: --out DIR"),
        ("--out d --actors 1,x", "--actors is '1,x'"),
        ("--out d --seconds 0", "--seconds is 0"),
        ("--out d --repeats 0", "--repeats is 0"),
        ("--out d --set nonsense", "--nonsense"),
        ("--out d --set learner.nope=3", "--learner.nope"),
        ("--out d --set seed=1.5", "seed"),
        ("--out d --set mode=serial", "mode is serial"),
        ("--out d --preset nope", "unknown preset 'nope'"),
        ("--out d --envs-per-actor 60000", "replay.capacity_steps"),
        ("--simulate 4", "say where the measurements are kept: --out DIR"),
        ("--simulate 4 --out d --actors 8", "--actors is for a measurement"),
        ("--simulate 4 --out d --set replay.shards=2", "--set is for a measurement"),
        ("--out d --cluster.shards 2", "--cluster is for --simulate"),
        ("--simulate 4 --out d --no-learner", "--learner is for a measurement; a simulation takes it from --out"),
        ("--simulate 4 --out nowhere", "nowhere holds no measured points"),
        ("--simulate x --out nowhere", "--simulate is 'x'"),
        ("--simulate 4 --out d --cluster.shards=-1", "--cluster.shards is -1"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2_and_leaves_nothing(
    line: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["scale", *line.split()])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []
