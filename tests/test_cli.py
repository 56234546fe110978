from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import drqn_dist
from drqn_dist.arguments import parse_train
from drqn_dist.cli import COMMANDS, main
from drqn_dist.config import TrainConfig
from drqn_dist.errors import ConfigError
from drqn_dist.experiments.run_folder import create_run
from drqn_dist.presets import preset


def _parse(line: str) -> TrainConfig:
    return parse_train(line.split(), "drqn-dist train").config


def test_the_presets_values_are_the_defaults_and_flags_change_them() -> None:
    expected = dataclasses.replace(preset("gridworld"), seed=3, minutes=2.5)
    assert _parse("--preset gridworld --seed 3 --minutes 2.5") == expected
    assert _parse("--seed 3 --preset=gridworld --minutes 2.5") == expected
    assert _parse("") == preset(TrainConfig().preset)


def test_every_documented_flag_is_understood() -> None:
    config = _parse(
        "--preset r2d2 --env ALE/Breakout-v5 --seed 1 --mode serial --actors 2 --total-steps 1000 --minutes 1 "
        "--run-dir elsewhere --stop-at-return 18"
    )
    assert (config.preset, config.env.id, config.seed, config.mode) == ("r2d2", "ALE/Breakout-v5", 1, "serial")
    assert (config.actors, config.total_steps, config.minutes) == (2, 1000, 1.0)
    assert (config.run_dir, config.stop_at_return) == ("elsewhere", 18.0)


def test_actors_are_a_number_or_as_many_as_fit() -> None:
    assert _parse("--actors auto").actors is None
    assert _parse("--actors=auto").actors is None
    with pytest.raises(ConfigError, match=r"actors is 0, but must lie in \[1, 100000\] or be None \(auto\)"):
        _parse("--actors 0")


def test_shards_count_only_where_there_are_any() -> None:
    assert _parse("--mode serial --actors 1 --replay.shards 2").replay.shards == 2


@pytest.mark.parametrize("flag", ["--env.frame-skip", "--env.frame_skip"])
def test_flags_may_be_written_with_hyphens_or_underscores(flag: str) -> None:
    assert _parse(f"{flag} 3").env.frame_skip == 3


@pytest.mark.parametrize("flag", ["--env X-v0", "--env=X-v0", "--env.id X-v0"])
def test_env_is_short_for_env_id(flag: str) -> None:
    assert _parse(flag).env.id == "X-v0"


def test_switches_take_true_and_false_in_any_case() -> None:
    assert _parse("--learner.double-q True --learner.rescale-values true").learner.double_q
    assert not _parse("--preset pong-cpu --learner.double-q false").learner.double_q


def test_environment_arguments_are_given_as_json() -> None:
    config = parse_train(["--env.kwargs", '{"size": 7, "walls": true}'], "drqn-dist train").config
    assert config.env.kwargs == {"size": 7, "walls": True}


def test_every_setting_has_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    names = []
    for field in dataclasses.fields(TrainConfig):
        value = getattr(TrainConfig(), field.name)
        if dataclasses.is_dataclass(value):
            names += [f"{field.name}.{inner.name}" for inner in dataclasses.fields(value)]
        else:
            names.append(field.name)
    for name in names:
        assert re.search(rf"--{name.replace('_', '-')} \S+ (?!\(default)", shown), f"--{name} has no help"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --sed 1", "--sed, 1; did you mean --seed?"),
        ("train --seed x", "--seed"),
        ("train --seed -1", "seed is -1, but must lie in [0, "),
        ("train --seed", "--seed"),
        ("train --mode fast", "'fast'"),
        ("train --preset pong", "did you mean pong-gpu or pong-cpu?"),
        ("train --preset", "--preset"),
        ("train --learner.double-q maybe", "neither true nor false"),
        ("train --env.kwargs [1]", "not a JSON object"),
        ("train --learner.unroll-steps 100001", "learner.unroll_steps is 100001"),
        ("train --learner.unroll-steps 0", "learner.unroll_steps is 0"),
        ("train --preset gridworld --replay.capacity-steps 5 --replay.min-steps 1", "does not fit a replay of 5 steps"),
        ("train --resume nowhere", "nowhere is no run folder"),
        ("train --stop-at-return nan", "stop_at_return is nan"),
        ("eval nowhere --episodes 0", "episodes is 0"),
        ("eval nowhere --seed -1", "seed is -1"),
        ("eval", "run"),
        ("plot nowhere --out x.png", "nowhere is no run folder"),
        ("plot --out x.png", "name at least one run"),
        ("plot nowhere", "--out FILE.png"),
        ("plot a b --csv x.csv", "2 were named"),
        ("presets nope", "unknown preset 'nope'"),
        ("replay inspct nowhere", "did you mean inspect? one of inspect, verify, export"),
        ("replay inspect nowhere", "nowhere is no run folder"),
        ("replay verify", "run"),
        ("replay export nowhere", "say what to export: --out FOLDER"),
        ("replay export nowhere --out x --episodes 0", "episodes is 0"),
        ("bench everything", "'everything'"),
        ("trian", "did you mean train?"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2_and_leaves_nothing(
    line: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("drqn-dist: error: ")
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early_is_no_error_of_ours() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "drqn_dist.cli", "presets"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_typo_is_one_line_on_any_terminal_and_never_a_traceback(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drqn_dist.cli", "train", "--learner.gama", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "FORCE_COLOR": "1"},
        check=False,
    )
    assert done.returncode == 2
    expected = "Unrecognized options: --learner.gama, 1; did you mean --learner.gamma?; see drqn-dist train --help"
    assert done.stderr == f"drqn-dist: error: {expected}\n"


def test_a_resumed_run_keeps_its_configuration_but_for_what_may_change(tmp_path: Path) -> None:
    saved = dataclasses.replace(preset("dqn"), run_dir=str(tmp_path), seed=5)
    run = create_run(saved, []).path
    args = parse_train(["--resume", str(run), "--total-steps", "77", "--actors=3"], "drqn-dist train")
    assert args.config == dataclasses.replace(saved, total_steps=77, actors=3)
    assert args.resume == run
    with pytest.raises(ConfigError, match=rf"cannot change learner\.gamma from 0\.99 to 0\.5: .*--init-from {run}$"):
        parse_train(["--resume", str(run), "--learner.gamma", "0.5"], "drqn-dist train")


def test_a_run_cannot_both_go_on_and_begin_with_other_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(create_run(dataclasses.replace(preset("dqn"), run_dir=str(tmp_path)), []).path)
    for more in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as stopped:
            main(["train", "--resume", run, "--init-from", run, *more])
        assert stopped.value.code == 2
        assert "leave one of them out" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "bench", (lambda argv: os.mkdir("/proc/somewhere"), ""))
    with pytest.raises(SystemExit) as stopped:
        main(["bench"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "drqn-dist: error: /proc/somewhere: No such file or directory\n"


def test_presets_lists_every_number_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    main(["presets"])
    shown = capsys.readouterr().out
    assert "\npong-cpu\n" in "\n" + shown
    assert "learner.burn_in_steps = 40: R2D2; Acme, SEED, rlpyt, zoo: 40" in shown
    main(["presets", "dqn"])
    assert capsys.readouterr().out.startswith("dqn\n")


def test_plot_draws_and_exports_a_run(tmp_path: Path) -> None:
    run = create_run(dataclasses.replace(preset("dqn"), run_dir=str(tmp_path)), []).path
    line = '{"agent_steps": 1, "frames": 4, "wall_s": 1.0, "charts/episodic_return": 2.0}\n'
    (run / "metrics.jsonl").write_text(line)
    main(["plot", str(run), "--out", str(tmp_path / "a.png"), "--csv", str(tmp_path / "a.csv"), "--x", "frames"])
    assert (tmp_path / "a.png").stat().st_size > 0
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "1,4,1.0,2.0"


def test_help_version_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as helped:
        main(["--help"])
    with pytest.raises(SystemExit) as empty:
        main([])
    main(["--version"])
    assert (helped.value.code, empty.value.code) == (0, 2)
    assert drqn_dist.__version__ in capsys.readouterr().out


def test_reading_arguments_needs_neither_torch_nor_ray() -> None:
    script = (
        "import sys, drqn_dist.cli as cli, drqn_dist.arguments as a; a.parse_train([], 'x');"
        "print(sorted({'torch', 'ray', 'matplotlib', 'tensorboard', 'gymnasium'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_offers_its_functions_lazily() -> None:
    assert set(drqn_dist.__all__) >= {"train", "evaluate", "load_policy"}
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = drqn_dist.trian
