"""Complete episodes of a journal as files: what comes out is what went in."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium import spaces

from drqn_dist.cli import main
from drqn_dist.errors import ConfigError, FragmentError, RunFolderError
from drqn_dist.experiments import replay_export
from drqn_dist.experiments.replay_export import export_replay
from drqn_dist.experiments.run_folder import RunFolder
from replay_server.journal import Journal
from replay_server.segments import Record, read_journal
from tests.experiments.journals import SHAPE, fragments, make_run, stream, write


def archives(folder: Path) -> dict[str, dict[str, npt.NDArray[Any]]]:
    found = {}
    for path in sorted(folder.iterdir()):
        with np.load(path, allow_pickle=False) as archive:
            found[path.name] = dict(archive)
    return found


def test_an_episode_comes_out_as_it_was_played(tmp_path: Path) -> None:
    """30 steps in fragments of 8, 8, 8 and 6, whose last observation is the next one's first."""
    run = make_run(tmp_path)
    pieces = fragments(run, 30, 4, 9, "truncated", actor_id=2, env_id=1, weight_version=7)
    write(run, [pieces[1], pieces[0], *pieces[2:]])  # they may overtake one another
    assert export_replay(run.path, tmp_path / "out") == 1
    ((name, episode),) = archives(tmp_path / "out").items()
    assert name == "000000_actor2_env1_episode4.npz"
    expected = np.concatenate([*(piece.observations[:-1] for piece in pieces), pieces[-1].observations[-1:]])
    assert episode["observations"].shape == (31, *SHAPE)
    np.testing.assert_array_equal(episode["observations"], expected)
    assert episode["observations"][:, 0, 0, 0].tolist() == list(range(31))
    assert episode["actions"].tolist() == [step % 3 for step in range(30)]
    assert episode["rewards"].tolist() == [1.0] * 30
    assert episode["terminated"].tolist() == [False] * 30
    assert episode["truncated"].tolist() == [False] * 29 + [True]
    assert episode["weight_version"].tolist() == [7] * 30
    assert [int(episode[name]) for name in ("actor_id", "env_id", "episode_id")] == [2, 1, 4]
    types = {name: array.dtype.name for name, array in episode.items()}
    assert types == {
        "observations": "uint8",
        "actions": "int64",
        "rewards": "float32",
        "terminated": "bool",
        "truncated": "bool",
        "weight_version": "int64",
        "actor_id": "int64",
        "env_id": "int64",
        "episode_id": "int64",
    }


def test_only_complete_episodes_come_out_and_the_newest_of_all_shards(tmp_path: Path) -> None:
    """Room for 100 steps a shard: of five episodes of 30 steps the last three are whole."""
    run = make_run(tmp_path, replay={"shards": 2, "capacity_steps": 200}, actors=2)
    for shard in (0, 1):
        begun = fragments(run, 8, 5, 20, "", actor_id=shard)
        write(run, [*stream(run, 5, actor_id=shard), *begun], shard)
    assert export_replay(run.path, tmp_path / "all") == 6
    assert list(archives(tmp_path / "all")) == [
        f"{number:06d}_actor{number % 2}_env0_episode{2 + number // 2}.npz" for number in range(6)
    ]
    assert export_replay(run.path, tmp_path / "some", newest=3) == 3
    assert list(archives(tmp_path / "some")) == [
        "000000_actor1_env0_episode3.npz",
        "000001_actor0_env0_episode4.npz",
        "000002_actor1_env0_episode4.npz",
    ]


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write(run, stream(run, 1))
    (tmp_path / "out").mkdir()
    assert export_replay(run.path, tmp_path / "out") == 1  # an empty folder is nothing
    before = archives(tmp_path / "out")
    with pytest.raises(RunFolderError, match="out is there already"):
        export_replay(run.path, tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    for place in ({"out": tmp_path / "file"}, {"video": tmp_path / "file"}):
        with pytest.raises(RunFolderError, match="file is there already"):
            export_replay(run.path, **place)
    assert (tmp_path / "file").read_text() == "mine"
    assert archives(tmp_path / "out").keys() == before.keys()


def test_a_folder_that_was_filled_meanwhile_stays_and_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    write(run, stream(run, 1))
    real, out = replay_export.os.rename, tmp_path / "out"

    def rename(source: Path, target: Path) -> None:
        out.mkdir()
        (out / "mine").touch()
        real(source, target)

    monkeypatch.setattr(replay_export.os, "rename", rename)
    with pytest.raises(RunFolderError, match="could not write"):
        export_replay(run.path, out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_journal_gives_what_is_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = next(write(run, stream(run, 3)).glob("*.segment"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert export_replay(run.path, tmp_path / "out") == 2
    assert [name[-5] for name in archives(tmp_path / "out")] == ["0", "2"]


def test_a_record_that_is_no_fragment_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 2))
    journal = Journal(folder, read_journal(folder).log, 60.0)
    journal.append(Record(8, 8, 61, 9, b"no fragment"))
    journal.close()
    assert export_replay(run.path, tmp_path / "out") == 2
    assert "left out 0/00000000000000000008.segment record 0 (byte 36): " in capsys.readouterr().err


def test_an_episode_that_is_damaged_while_it_is_read_leaves_no_half_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    write(run, stream(run, 2))
    real = replay_export.read_payload
    monkeypatch.setattr(replay_export, "read_payload", lambda entry: b"" if entry.header.episode_id else real(entry))
    with pytest.raises(FragmentError):
        export_replay(run.path, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def frames_of(video: Path, height: int, width: int) -> list[npt.NDArray[np.uint8]]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video)]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    return list(np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3))


def test_the_video_shows_what_the_agent_saw_scaled_up(tmp_path: Path) -> None:
    """Grey pictures 4 x 6; the shorter side may grow to 480 px, so by 120."""
    run = make_run(tmp_path)
    pieces = fragments(run, 14)
    write(run, pieces)
    assert export_replay(run.path, video=tmp_path / "seen.mp4") == 1
    frames = frames_of(tmp_path / "seen.mp4", 480, 720)
    assert len(frames) == 15
    seen = np.concatenate([pieces[0].observations[:8], pieces[1].observations])
    for frame, observation in zip(frames, seen, strict=True):
        middles = frame[60::120, 60::120].astype(int)
        assert np.abs(middles - observation[0][..., None]).max() <= 8


def test_a_video_of_colours_keeps_them(tmp_path: Path) -> None:
    episode = replay_export.Episode(
        np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5), *([np.zeros(1)] * 5), 0, 0, 0
    )
    pictures = list(replay_export._pictures(episode))
    assert [picture.shape for picture in pictures] == [(4, 5, 3)] * 2
    assert pictures[1][2, 3].tolist() == [60 + 20 * channel + 2 * 5 + 3 for channel in range(3)]


def test_vectors_are_no_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write(run, fragments(run, 8, dtype="float32"))
    with pytest.raises(ConfigError, match=r"--video shows pictures, but .* float32 \[1, 4, 6\]"):
        export_replay(run.path, video=tmp_path / "seen.mp4")
    assert not list(tmp_path.glob("*.mp4*"))


def test_without_the_environment_a_video_plays_at_a_usual_speed() -> None:
    assert replay_export._steps_per_s(replay_export.EnvConfig(id="NoSuchEnv-v0")) == 15.0
    assert replay_export._steps_per_s(replay_export.EnvConfig(id="ALE/Pong-v5", frame_skip=4)) == 15.0
    assert replay_export._steps_per_s(replay_export.EnvConfig(id="ALE/Pong-v5", frame_skip=2)) == 30.0


def test_without_minari_one_sentence_says_how_to_get_it_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    run = make_run(tmp_path)
    write(run, stream(run, 1))
    with pytest.raises(SystemExit) as stopped:
        main(["replay", "export", str(run.path), "--out", str(tmp_path / "out"), "--minari", "maze/replay-v0"])
    assert stopped.value.code == 2
    expected = "--minari needs Minari, which is not installed here: pip install 'minari[all]', and try again"
    assert capsys.readouterr().err == f"drqn-dist: error: {expected}\n"
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class EpisodeBuffer:
    """As of Minari."""

    id: int | None = None
    seed: int | None = None
    options: dict[str, Any] | None = None
    observations: list[Any] | None = None
    actions: list[Any] | None = None
    rewards: list[float] = field(default_factory=list)
    terminations: list[bool] = field(default_factory=list)
    truncations: list[bool] = field(default_factory=list)
    infos: dict[str, Any] | None = None


class FakeMinari(ModuleType):
    """`minari`, as far as it is called: keeps what it is given, and refuses a name that is taken."""

    def __init__(self) -> None:
        super().__init__("minari")
        self.data_collector = ModuleType("minari.data_collector")
        self.data_collector.EpisodeBuffer = EpisodeBuffer  # type: ignore[attr-defined]
        self.made: dict[str, dict[str, Any]] = {}

    def create_dataset_from_buffers(
        self,
        dataset_id: str,
        buffer: list[EpisodeBuffer],
        env: str | None = None,
        eval_env: str | None = None,
        algorithm_name: str | None = None,
        *,
        action_space: spaces.Space[Any] | None = None,
        observation_space: spaces.Space[Any] | None = None,
        description: str | None = None,
    ) -> None:
        if dataset_id in self.made:
            raise ValueError(f"A dataset with ID {dataset_id} already exists")
        self.made[dataset_id] = {"buffer": buffer, "actions": action_space, "observations": observation_space}


@pytest.fixture
def minari(monkeypatch: pytest.MonkeyPatch) -> FakeMinari:
    fake = FakeMinari()
    monkeypatch.setitem(sys.modules, "minari", fake)
    monkeypatch.setitem(sys.modules, "minari.data_collector", fake.data_collector)
    return fake


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_minari_gets_whole_episodes_within_their_spaces(tmp_path: Path, minari: FakeMinari, dtype: str) -> None:
    run = make_run(tmp_path)
    pieces = fragments(run, 30, 0, 0, "terminated", dtype) + fragments(run, 5, 1, 4, "truncated", dtype)
    write(run, pieces)
    assert export_replay(run.path, minari="maze/replay-v0") == 2
    made = minari.made["maze/replay-v0"]
    assert made["observations"].dtype.name == dtype
    assert made["actions"] == spaces.Discrete(4)  # of the maze
    for number, (buffer, steps) in enumerate(zip(made["buffer"], (30, 5), strict=True)):
        assert buffer.id == number
        assert len(buffer.observations) == steps + 1
        assert all(observation in made["observations"] for observation in buffer.observations)
        assert all(action in made["actions"] for action in buffer.actions)
        assert buffer.rewards == [1.0] * steps
        ends = [False] * (steps - 1) + [True]
        assert buffer.terminations == (ends if number == 0 else [False] * steps)
        assert buffer.truncations == (ends if number == 1 else [False] * steps)
    with pytest.raises(ConfigError, match=r"Minari did not take the dataset 'maze/replay-v0': .* already exists"):
        export_replay(run.path, minari="maze/replay-v0")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ConfigError, "say what to export"),
        ({"newest": 0, "out": Path("x")}, ConfigError, "episodes is 0"),
        ({"out": Path("nowhere/x")}, RunFolderError, "no complete episode yet"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    run = make_run(tmp_path)
    write(run, fragments(run, 8, ends=""))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        export_replay(run.path, **arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_exports_and_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    write(run, stream(run, 3))
    main(["replay", "export", str(run.path), "--out", str(tmp_path / "out"), "--episodes", "2"])
    assert capsys.readouterr().err == "exported 2 episodes\n"
    assert [name[-5] for name in archives(tmp_path / "out")] == ["1", "2"]
    main(["replay", "export", str(run.path), "--out", str(tmp_path / "more"), "--episodes", "4"])
    assert capsys.readouterr().err == "exported 3 episodes; no more are complete in the replay\n"


def test_archives_need_numpy_alone(tmp_path: Path) -> None:
    run: RunFolder = make_run(tmp_path)
    write(run, stream(run, 1))
    export_replay(run.path, tmp_path / "out")
    script = (
        "import glob, numpy; a = numpy.load(glob.glob('out/*.npz')[0], allow_pickle=False);"
        "print({k: a[k].shape for k in a.files}['observations'])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str((31, *SHAPE))
