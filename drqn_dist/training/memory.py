"""Refuses, before anything starts, a configuration that this machine's memory or disk cannot hold."""

import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from drqn_dist.config import TrainConfig
from drqn_dist.envs.atari import SEED_PERIOD_STEPS
from drqn_dist.errors import ConfigError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import QNetwork
from learner.feed import PROBED_STEPS, PROBED_WINDOWS
from learner.frame_store import StorePlan, plan_store, state_shape
from learner.learner import resolve_device
from learner.train_state import SLOTS
from replay_server.journal import SEGMENT_FRAGMENTS

_MB = 1024**2
PROCESS_BYTES = 350 * _MB
"""One process of this program at rest: Python, torch and its libraries (measured: 270 MB resident)."""
RAY_BYTES = 600 * _MB
"""Ray's own processes of a local run, without the dashboard (an estimate on the safe side)."""
STORE_BYTES = 256 * _MB
"""Room in Ray's object store: weights, fragments and draws on their way."""
FRAGMENT_HEADER_BYTES = 256
"""An encoded fragment of one step beside observations and state: header, lengths, action, reward and priority
(measured: 134)."""
FRAGMENT_OVERHEAD_BYTES = 2_048
"""A stored fragment's Python objects, index and priorities beside its payload."""


@dataclass(frozen=True)
class Needs:
    """What a run takes at most of something that is bounded, in bytes."""

    parts: dict[str, int]
    available: int | None
    """None: it cannot be told."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def fits(self) -> bool:
        return self.available is None or self.total <= self.available

    def __str__(self) -> str:
        return ", ".join(f"{name} {size / _MB:,.0f}" for name, size in self.parts.items())


def estimate_memory(config: TrainConfig, spec: EnvSpec) -> dict[str, int]:
    """Upper bounds of what a run holds in memory beside the frame store, in bytes, by part.

    Frames count as if compression saved nothing; only `replay.capacity_bytes` bounds the replay further.
    """
    window, learner, replay, network = config.window, config.learner, config.replay, config.network
    frame = math.prod(spec.observation_shape) * np.dtype(spec.observation_dtype).itemsize
    hidden = network.core_units * {"lstm": 2, "gru": 1, "none": 0}[network.core]
    states = hidden * 4 // window.stride if learner.stored_state else 0
    step = frame + states + 16  # action and reward

    fragments = -(-replay.capacity_steps // window.fragment)
    stored = min(replay.capacity_bytes, replay.capacity_steps * step + fragments * frame)
    batch_steps = learner.batch_windows * (window.total + window.history)
    pixels = math.prod(spec.observation_shape)
    # One training step: the input as float32, three layers of activations, the core's gates, and their gradients.
    activations = pixels * config.env.stack_frames + 2 * (3 * pixels + 3 * network.torso_units + 8 * network.core_units)
    parameters = sum(p.numel() for p in _network(config, spec).parameters())
    # The learner keeps online, target, gradient and two moments; every actor and the evaluator one copy and one
    # incoming; the published snapshot is one more.
    copies = 5 + 2 * (config.num_actors + 1) + 1
    in_flight = config.num_actors * config.actor.max_pushes_in_flight * (window.fragment + 1) * step
    open_fragments = config.total_envs * (window.fragment + window.total + 1 + config.push_period) * step
    # Where the frame store lies in host memory beside a GPU, the episodes behind probed windows travel whole.
    pasts = 0 if learner.probe_period_updates is None else PROBED_WINDOWS * PROBED_STEPS
    resident = PROCESS_BYTES
    if config.mode == "ray":  # besides the driver
        resident += processes(config) * PROCESS_BYTES + RAY_BYTES
    return {
        "replay": stored + fragments * FRAGMENT_OVERHEAD_BYTES,
        "learner: training step": batch_steps * activations * 4,
        "learner: network": copies * parameters * 4,
        "learner: probe": pasts * (frame + 12),
        "actors": in_flight + open_fragments,
        "processes": resident,
    }


def processes(config: TrainConfig) -> int:
    """Roles with a process of their own in Ray mode: each wants one CPU, and with fewer cores than that the operating
    system shares them out."""
    return config.num_actors + config.replay.shards + 2  # learner, evaluator


def available_memory() -> int:
    """Bytes this process may still take: what the machine has free, or what its container allows, if that is less."""
    machine = int(psutil.virtual_memory().available)
    return min([machine, *_container_rooms(Path("/sys/fs/cgroup"))])


def usable_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those of its affinity, or its container's quota, if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such group, or the quota is "max"
        quota, period = (root / "cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def check_memory(config: TrainConfig, spec: EnvSpec, available_bytes: int | None = None) -> Needs:
    """Checks that a run fits into the memory of this machine or container, or into so many bytes.

    Raises:
        ConfigError: it does not fit; the message carries every part.
    """
    available = available_memory() if available_bytes is None else available_bytes
    parts = estimate_memory(config, spec)
    parts["learner: frame store"] = plan_store(config, spec, False, 0, max(0, available - sum(parts.values()))).bytes
    needs = Needs(parts, available)
    if not needs.fits:
        advice = {
            "replay": "lower replay.capacity_bytes or replay.capacity_steps",
            "learner: frame store": "lower learner.frame_store_bytes or learner.batches_per_draw",
            "learner: training step": "lower learner.batch_windows or the window",
            "learner: network": "lower network.torso_units or network.core_units",
            "learner: probe": "use --learner.probe-period-updates None",
            "actors": "lower actors, actor.envs_per_actor or actor.max_pushes_in_flight",
            "processes": "lower actors or use --mode serial",
        }[needs.largest]
        raise ConfigError(
            f"this run may need {needs.total / _MB:,.0f} MB of memory ({needs}), but {available / _MB:,.0f} MB are "
            f"available; {advice}"
        )
    return needs


def checkpoint_bytes(config: TrainConfig, spec: EnvSpec) -> int:
    """Upper bound of one checkpoint's size: both networks, the optimizer's moments, and the header."""
    network = _network(config, spec)
    weights, buffers = list(network.parameters()), list(network.buffers())
    slots = len(SLOTS[config.learner.optimizer])  # one of them a single number, the steps done
    numbers = (1 + slots) * sum(w.numel() for w in weights) + 2 * sum(b.numel() for b in buffers)
    names = (2 + slots) * len(weights) + 2 * len(buffers)
    bound = 4 * numbers + 256 * names + 4_096 * (1 + config.replay.shards)  # random states of all shards
    return bound + (_serial_actors_bytes(config, spec) if config.mode == "serial" else 0)


def _serial_actors_bytes(config: TrainConfig, spec: EnvSpec) -> int:
    """Upper bound of what the actors add to a checkpoint in serial mode: of each environment the steps that it holds,
    their states, its stack and present observation, and the actions to play again; of each actor the weights."""
    held = config.window.fragment + config.window.unroll  # and those that are cut and wait to be pushed
    frame = int(np.prod(spec.observation_shape)) * np.dtype(spec.observation_dtype).itemsize
    state = 4 * int(np.prod(state_shape(config, spec)))
    played = SEED_PERIOD_STEPS + config.env.max_episode_frames // spec.frames_per_step
    weights = 4 * sum(w.numel() for w in _network(config, spec).parameters())
    each = 2 * held * (frame + state + 64) + (config.env.stack_frames + 2) * frame + 2 * state + played + 4_096
    return config.total_envs * each + config.num_actors * weights


def journal_bytes(config: TrainConfig, spec: EnvSpec | None = None) -> int:
    """Upper bound of the replay's journal on disk, all shards together.

    Its segments hold what the replay does, which is `replay.capacity_bytes`, or, where the environment is known and
    that is less, `replay.capacity_steps` of frames that do not compress, in episodes of a single step (two frames and
    a fragment's header each). A sixteenth more, or two of the smallest segments, are for what was evicted from a
    segment still in use, 1 MiB is for what was seen, the rest for priorities, of which two copies lie there while they
    are written.
    A journal that is written anew, after a crash of the machine, takes the same again for a moment, if there is room.
    """
    if not config.replay.journal:
        return 0
    contents = config.replay.capacity_bytes
    if spec is not None:
        contents = min(contents, config.replay.capacity_steps * _largest_step(config, spec))
    windows = config.replay.capacity_steps // config.window.stride + config.replay.capacity_steps // 16
    fragment = config.replay.max_fragment_bytes
    if spec is not None:
        fragment = min(fragment, config.window.fragment * _largest_step(config, spec))
    smallest = min(2 * SEGMENT_FRAGMENTS * fragment, contents)
    return contents * 17 // 16 + 16 * windows + config.replay.shards * (_MB + smallest)


def _largest_step(config: TrainConfig, spec: EnvSpec) -> int:
    """Encoded bytes of a fragment of one step at most; longer ones take less for each step."""
    frames = 2 * math.prod(spec.observation_shape) * np.dtype(spec.observation_dtype).itemsize
    state = 4 * math.prod(state_shape(config, spec)) if config.learner.stored_state else 0
    # zstd adds at most a 256th and 64 bytes to what does not compress.
    return frames + frames // 256 + 64 + state + FRAGMENT_HEADER_BYTES + 4 * len(spec.observation_shape)


def check_disk(config: TrainConfig, spec: EnvSpec, run: Path | None = None, free_bytes: int | None = None) -> Needs:
    """Checks that what a run keeps fits on the disk of `config.run_dir`; metrics, some kilobytes a minute, aside.

    Args:
        run: the run's folder, where it exists already: what lies there is replaced bit by bit, and so counts as free.
        free_bytes: on that disk; None: as the system says.

    Raises:
        ConfigError: it does not fit; the message carries every part.
    """
    free = free_disk(Path(config.run_dir) if run is None else run) if free_bytes is None else free_bytes
    if free is not None and run is not None:
        free += sum(
            _size(path) for folder in run.glob("*/") if folder.name != "tensorboard" for path in folder.rglob("*")
        )
    parts = {
        # A new one is written before the oldest goes.
        "checkpoints": (config.checkpoints_kept + 1) * checkpoint_bytes(config, spec),
        "replay's journal": journal_bytes(config, spec),
    }
    needs = Needs(parts, free)
    if free is not None and not needs.fits:
        advice = {
            "checkpoints": "lower checkpoints_kept",
            "replay's journal": "lower replay.capacity_bytes or replay.capacity_steps",
        }[needs.largest]
        place = "choose another place with --run-dir" if run is None else "move the run's folder to a larger disk"
        raise ConfigError(
            f"this run may need {needs.total / _MB:,.0f} MB on disk ({needs}), but {free / _MB:,.0f} MB are free at "
            f"{config.run_dir}; {advice}, free some, or {place}"
        )
    return needs


def free_disk(place: Path) -> int | None:
    """Bytes free for this user where a folder lies, or will lie; None where the file system does not tell its size, as
    some network's do not."""
    for folder in (place, *place.absolute().parents):
        with suppress(OSError):  # not made yet
            usage = shutil.disk_usage(folder)
            return usage.free if usage.total else None
    return None


def _size(path: Path) -> int:
    with suppress(OSError):  # it went meanwhile
        return path.stat().st_size if path.is_file() else 0
    return 0


def _network(config: TrainConfig, spec: EnvSpec) -> QNetwork:
    """Its shapes alone, which take no memory."""
    with torch.device("meta"):
        return QNetwork(config.network, spec, config.env.stack_frames)


def plan_frame_store(config: TrainConfig, spec: EnvSpec) -> StorePlan:
    """Where the learner of this process keeps its frames.

    Raises:
        ConfigError: there is no such device.
    """
    device = resolve_device(config.learner.device)
    # The replay, the actors and the rest grow later, in what is free now.
    free = max(0, available_memory() - sum(estimate_memory(config, spec).values()))
    cuda = device.type == "cuda"
    return plan_store(config, spec, cuda, torch.cuda.mem_get_info(device)[0] if cuda else 0, free)


def _container_rooms(root: Path) -> list[int]:
    """Bytes left under the control group's limit; empty without one.

    The page cache (inactive_file) counts as usage there, although the kernel gives it back when asked.
    """
    with suppress(OSError, ValueError):  # no such group, or the limit is "max"
        limit, usage = (int((root / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        return [max(0, limit - usage + int(stat.get("inactive_file", "0")))]
    return []
