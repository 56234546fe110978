"""Complete episodes of a run's replay journal as files for others: NumPy archives, a Minari dataset, a video."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from drqn_dist.codec import decode
from drqn_dist.config import EnvConfig, TrainConfig
from drqn_dist.envs.make import describe_single, env_spec
from drqn_dist.envs.spaces import recorded_spaces
from drqn_dist.errors import ConfigError, EnvError, FragmentError, RunFolderError
from drqn_dist.experiments.replay_read import (
    Entry,
    ShardJournal,
    entry_of,
    episodes,
    is_complete,
    open_journals,
    read_payload,
    stored,
)
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.experiments.video import write_video
from drqn_dist.fragment import Observations

DEFAULT_STEPS_PER_S = 15.0
"""Of a video where the environment cannot be asked."""


@dataclass(frozen=True)
class Episode:
    """A whole episode of T steps."""

    observations: Observations
    """uint8 or float32 [T + 1, *observation_shape], unstacked, as the agent saw them."""
    actions: npt.NDArray[np.int64]
    """int64 [T]"""
    rewards: npt.NDArray[np.float32]
    """float32 [T], unclipped."""
    terminated: npt.NDArray[np.bool_]
    """bool [T], false but for the last step."""
    truncated: npt.NDArray[np.bool_]
    """bool [T], false but for the last step."""
    weight_version: npt.NDArray[np.int64]
    """int64 [T], learner updates behind the policy that took the last step of the same fragment."""
    actor_id: int
    env_id: int
    episode_id: int

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it by name, the ids as int64 []."""
        return {name: np.asarray(value) for name, value in vars(self).items()}


class _Parts(NamedTuple):
    """Where an episode lies."""

    entries: list[Entry]
    """In the episode's order."""
    newest: tuple[int, str]
    """Steps that its shard had received with its last fragment, and the shard; shards fill about equally fast."""


def export_replay(
    run: Path,
    out: Path | None = None,
    newest: int | None = None,
    minari: str | None = None,
    video: Path | None = None,
) -> int:
    """Writes the complete episodes that a run's replay holds; the run may be going on.

    Args:
        run: the run's folder.
        out: a folder that is new or empty, for one archive each, `000000_actor…_env…_episode….npz`, oldest first; its
            arrays are those of `Episode`.
        newest: only so many; None: all.
        minari: name of a new Minari dataset; all its episodes are in memory at once.
        video: a new MP4 file, of the newest episode.

    Returns:
        Episodes exported.

    Raises:
        ConfigError: nothing was asked for, Minari is not installed or refuses, or the observations are no pictures.
        RunFolderError: it is no run, has no journal or complete episode, something is there already, or cannot be
            written.
        FragmentError: a fragment is damaged; `drqn-dist replay verify` tells more.
    """
    if out is None and minari is None and video is None:
        raise ConfigError("say what to export: --out FOLDER, --minari NAME or --video FILE.mp4")
    if newest is not None and newest < 1:
        raise ConfigError(f"episodes is {newest}, but must be at least 1")
    _refuse_existing(out, video)
    library = None if minari is None else _minari()
    folder = open_run(run)
    limit = folder.config.replay.max_fragment_bytes
    with open_journals(folder) as journals:
        found = _complete(journals, folder.config)[-(newest or 0) :]
        if not found:
            raise RunFolderError(f"the replay of {run} holds no complete episode yet; let it train longer")
        if video is not None:
            write_video(video, _pictures(_read(found[-1], limit)), _steps_per_s(folder.config.env))
        if out is not None:
            _write_archives(out, found, limit)
        if minari is not None:
            _make_dataset(library, minari, [_read(parts, limit) for parts in found], folder.config)
    return len(found)


def _refuse_existing(out: Path | None, video: Path | None) -> None:
    try:
        if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise RunFolderError(f"{out} is there already; choose another --out, or remove it")
        if video is not None and video.exists():
            raise RunFolderError(f"{video} is there already; choose another --video, or remove it")
    except OSError as error:
        raise RunFolderError(f"cannot write to {error.filename}: {error.strerror}") from error


def _complete(journals: Sequence[ShardJournal], config: TrainConfig) -> list[_Parts]:
    """The complete episodes of all shards, oldest first."""
    found = []
    for journal in journals:
        entries = []
        for place, record in journal.records():
            try:
                entries.append(entry_of(place, record, config.replay.max_fragment_bytes))
            except FragmentError as error:
                print(f"left out {place}: {error}", file=sys.stderr)
        for episode in episodes(stored(entries), config.window.fragment).values():
            if is_complete(episode):
                parts = [episode[index] for index in sorted(episode)]
                found.append(_Parts(parts, (max(part.inserted_steps for part in parts), journal.name)))
    return sorted(found, key=lambda parts: parts.newest)


def _read(parts: _Parts, limit: int) -> Episode:
    fragments = [decode(read_payload(entry), limit) for entry in parts.entries]
    last = fragments[-1]
    steps = [fragment.num_steps for fragment in fragments]
    ends = np.arange(sum(steps)) == sum(steps) - 1
    # Each observation at a joint is there twice.
    seen: list[Any] = [*(fragment.observations[:-1] for fragment in fragments), last.observations[-1:]]
    return Episode(
        observations=np.concatenate(seen),
        actions=np.concatenate([fragment.actions for fragment in fragments]),
        rewards=np.concatenate([fragment.rewards for fragment in fragments]),
        terminated=ends & last.terminated,
        truncated=ends & last.truncated,
        weight_version=np.repeat([fragment.weight_version for fragment in fragments], steps),
        actor_id=last.actor_id,
        env_id=last.env_id,
        episode_id=last.episode_id,
    )


def _write_archives(out: Path, found: Sequence[_Parts], limit: int) -> None:
    try:
        with _new_folder(out) as folder:
            for number, parts in enumerate(found):
                episode = _read(parts, limit)
                name = f"{number:06d}_actor{episode.actor_id}_env{episode.env_id}_episode{episode.episode_id}.npz"
                with open(folder / name, "xb") as file:
                    np.savez_compressed(file, **episode.arrays())  # type: ignore[arg-type]
    except OSError as error:
        raise RunFolderError(f"could not write {out}: {error.strerror or error}; choose another --out") from error


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that takes the name `out` when the context ends without an error, and is gone otherwise."""
    temporary = out.absolute().with_name(f"{out.absolute().name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        # An empty folder gives way; one that has come to hold something meanwhile does not.
        os.rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _pictures(episode: Episode) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 [H, W, 3], one of each observation.

    Raises:
        ConfigError: the observations are no pictures uint8 [1 or 3, H, W].
    """
    shape = episode.observations.shape[1:]
    if episode.observations.dtype != np.uint8 or len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigError(
            f"--video shows pictures, but the observations of this run are {episode.observations.dtype} {list(shape)}"
        )
    for observation in episode.observations:
        picture = np.broadcast_to(observation, (3, *shape[1:])).transpose(1, 2, 0)
        yield np.ascontiguousarray(picture, np.uint8)


def _steps_per_s(env: EnvConfig) -> float:
    try:
        return describe_single(env).steps_per_s
    except EnvError:  # it is not installed where the journal is looked at
        return DEFAULT_STEPS_PER_S


def _minari() -> Any:
    try:
        import minari
        import minari.data_collector
    except ImportError as error:
        raise ConfigError(
            "--minari needs Minari, which is not installed here: pip install 'minari[all]', and try again"
        ) from error
    return minari


def _make_dataset(library: Any, name: str, found: Sequence[Episode], config: TrainConfig) -> None:
    """Hands episodes over to `minari.create_dataset_from_buffers`."""
    shape = found[0].observations.shape[1:]
    observation_space, action_space = recorded_spaces(
        shape, found[0].observations.dtype.name, env_spec(config.env).num_actions
    )
    buffers = [
        library.data_collector.EpisodeBuffer(
            id=number,
            observations=list(episode.observations),
            actions=episode.actions.tolist(),
            rewards=episode.rewards.tolist(),
            terminations=episode.terminated.tolist(),
            truncations=episode.truncated.tolist(),
        )
        for number, episode in enumerate(found)
    ]
    try:
        library.create_dataset_from_buffers(
            dataset_id=name,
            buffer=buffers,
            # Not the environment's own spaces: the agent's observations are encoded, its actions numbered.
            observation_space=observation_space,
            action_space=action_space,
            algorithm_name="drqn-dist",
            description=f"Episodes of {config.env.id} from the replay of a training run",
        )
    # A name that cannot be, or is taken: Minari overwrites no dataset.
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"Minari did not take the dataset {name!r}: {error}") from error
