from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drqn_dist import bench
from drqn_dist.bench import BenchSettings, Figures, actor, learner, rate, replay, run_bench
from drqn_dist.bench.learner import rate_of
from drqn_dist.bench.play import copies, play
from drqn_dist.cli import main
from drqn_dist.codec import decode, decode_header
from drqn_dist.config import ActorConfig, LearnerConfig, NetworkConfig, TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import ConfigError
from drqn_dist.presets import preset

QUICK = BenchSettings(seconds=0.05, repeats=1, play_steps=600)
LIMIT = 2**24


def _config() -> TrainConfig:
    return replace(
        preset("gridworld"),
        network=NetworkConfig(torso="mlp", torso_units=8, core_units=8),
        learner=LearnerConfig(batch_windows=4, unroll_steps=8),
        actor=ActorConfig(envs_per_actor=4, epsilon_low=0.25, epsilon_high=0.25),
    )


def test_a_figure_is_the_median_with_its_spread() -> None:
    figures = Figures()
    for value in (5.0, 1.0, 3.0):
        figures.add(a=value, b=10 * value)
    assert figures.result() == {"a": 3.0, "b": 30.0, "spread": {"a": [1.0, 5.0], "b": [10.0, 50.0]}}


def test_a_rate_counts_work_by_time_and_does_some_even_in_no_time() -> None:
    calls = []

    def work() -> int:
        calls.append(1)
        return 7

    assert rate(work, 0.0) > 0
    assert len(calls) == 1


def test_actor_figures_have_their_names_and_the_ratio_is_their_quotient() -> None:
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    result = actor.bench(_config(), QUICK)
    assert result["ratio"] == result["agent_steps_per_s"] / result["env_only_steps_per_s"]
    names = {"agent_steps_per_s", "env_only_steps_per_s", "ratio", "cpu_us_per_agent_step"}
    assert result["spread"].keys() == names
    # On one core a step's CPU time is at most its wall time; clocks and the last step leave some slack.
    assert 0 < result["cpu_us_per_agent_step"] < 1.2 * 1e6 / result["agent_steps_per_s"]
    assert (result["env"], result["envs"], result["cores"]) == ("drqn_dist/GridWorld-v0", 4, 1)
    assert torch.get_num_threads() == threads
    assert cores is None or os.sched_getaffinity(0) == cores


def test_replay_figures_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = _config()
    result = replay.bench(config, QUICK)
    assert result["windows_per_s"] > 0
    payloads = play(config, env_spec(config.env), QUICK.play_steps)
    steps = sum(decode_header(payload, LIMIT).num_steps for payload in payloads)
    assert result["bytes_per_frame"] == sum(map(len, payloads)) / steps
    assert result["raw_bytes_per_frame"] == 9 * 4
    assert result["pushes_per_s"] > 0
    assert result["journaled_pushes_per_s"] > 0
    assert 0 < result["restart_s_per_million_steps"] < 1_000
    assert list(tmp_path.iterdir()) == []
    assert result["steps_per_push"] == 32


@pytest.mark.ray
def test_learner_figures_have_their_names_and_the_ratio_is_their_quotient() -> None:
    result = learner.bench(_config(), replace(QUICK, seconds=0.5))
    assert result["ratio"] == result["updates_per_s"] / result["bare_updates_per_s"]
    assert result["transitions_per_s"] == pytest.approx(4 * 8 * result["updates_per_s"])
    names = {"updates_per_s", "bare_updates_per_s", "ratio", "transitions_per_s", "cpu_s_per_1000_transitions"}
    assert result["spread"].keys() == names
    # Two busy processes and Ray's own have at most this machine's cores; clocks have some slack.
    cores = 1_000 * os.cpu_count() / result["transitions_per_s"]  # type: ignore[operator]
    assert 0 < result["cpu_s_per_1000_transitions"] < 2 * cores
    assert (result["batch_windows"], result["unroll_steps"], result["device"]) == (4, 8, "cpu")


def test_updates_are_counted_until_the_last_one_is_finished() -> None:
    begun: list[float] = []
    found = rate_of(lambda: begun.append(time.perf_counter()), 0.01)
    assert len(begun) - 1 > found * (begun[-1] - begun[0]) > 0
    assert rate_of(lambda: None, 0.0) > 0


def test_play_is_random() -> None:
    config = _config()
    fragments = [decode(payload, LIMIT) for payload in play(config, env_spec(config.env), 300)]
    assert {int(action) for fragment in fragments for action in fragment.actions} == {0, 1, 2, 3}


def test_copies_are_fragments_of_other_actors_in_bytes_of_their_own() -> None:
    config = _config()
    payloads = play(config, env_spec(config.env), 100)
    supply = copies(payloads, LIMIT)
    first, second = next(supply), next(supply)
    assert len({id(payload) for payload in payloads + first + second}) == 3 * len(payloads)
    assert [decode_header(p[0], LIMIT).actor_id for p in (payloads, first, second)] == [0, 1, 2]
    assert (decode(first[0], LIMIT).observations == decode(payloads[0], LIMIT).observations).all()


def test_the_actor_is_measured_on_the_reference_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[TrainConfig] = []
    monkeypatch.setattr(actor, "bench", lambda config, settings: measured.append(config) or {})
    bench.run_bench("actor")
    bench.run_bench("actor", "gridworld")
    reference, other = measured
    assert other == preset("gridworld")
    assert (reference.env.id, reference.env.height_px, reference.env.width_px) == ("ALE/Pong-v5", 84, 84)
    assert (reference.network.torso, reference.network.core, reference.network.core_units) == ("nature", "gru", 512)
    assert (reference.actor.env_threads, reference.actor.torch_threads) == (1, 1)


def test_the_command_prints_one_object_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--preset", "gridworld", "--seconds", "0.05", "--repeats", "3"]
    main(["bench", "actor", *quick, "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["role"] == "actor"
    low, high = result["spread"]["ratio"]
    assert low <= result["ratio"] <= high
    main(["bench", "actor", *quick])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "actor"
    names = ["agent_steps_per_s", "env_only_steps_per_s", "ratio", "cpu_us_per_agent_step"]
    assert [line.split()[0] for line in shown[1:5]] == names


def test_settings_that_cannot_work_are_clear_errors() -> None:
    with pytest.raises(ConfigError, match="--repeats is 0"):
        BenchSettings(repeats=0)
    with pytest.raises(ConfigError, match="--play-steps is -1"):
        BenchSettings(play_steps=-1)
    with pytest.raises(ConfigError, match="unknown preset"):
        run_bench("replay", "nope")
