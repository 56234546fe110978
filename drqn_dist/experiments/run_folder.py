"""The folder of one run, `runs/<env>__<preset>__<seed>__<YYYYmmdd-HHMMSS>/`; the README tells what is in it."""

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

import drqn_dist
from drqn_dist.checkpoint import CheckpointFolder
from drqn_dist.config import TrainConfig, from_dict, with_settings
from drqn_dist.errors import ConfigError, RunFolderError, shown
from drqn_dist.files import make_folder, sync_folder, write_atomically
from drqn_dist.reading import read_json
from drqn_dist.resumable import changes, describe_changes
from drqn_dist.training.memory import usable_cores

CONFIG_NAME = "config.json"
SUMMARY_NAME = "summary.json"
_PACKAGES = ("torch", "ray", "gymnasium", "ale-py", "numpy")
_CODE = ("drqn_dist", "actors", "learner", "replay_server", "pyproject.toml")
"""What of a checkout decides how a run goes."""


@dataclass(frozen=True)
class Summary:
    """What a run came to; the keys of `summary.json`."""

    agent_steps: int
    frames: int
    updates: int
    wall_s: float
    eval_mean_return: float | None
    """Of the last evaluation, if these weights played it; None otherwise."""
    eval_std_return: float | None
    eval_updates: int | None
    """Updates behind the weights that it evaluated."""
    weights_sha256: str
    """Of the final parameters' bytes."""
    stopped_by: str
    """total_steps, minutes, stop_at_return or signal; unfinished, while the run goes on or if it did not end in order:
    then all of this is as of the newest checkpoint."""


@dataclass(frozen=True)
class RunFolder:
    """A run on disk."""

    path: Path
    config: TrainConfig
    """The one that holds now."""

    @property
    def checkpoints(self) -> CheckpointFolder:
        return CheckpointFolder(self.path / "checkpoints", self.config.checkpoints_kept)

    def write_summary(self, summary: Summary) -> None:
        """Writes `summary.json`, all or nothing.

        Raises:
            RunFolderError: it could not be written.
        """
        try:
            _write_json(self.path / SUMMARY_NAME, asdict(summary))
        except OSError as error:
            raise RunFolderError(f"could not write {self.path / SUMMARY_NAME}: {error.strerror}") from error

    def read_summary(self) -> Summary:
        """What the run came to, or what it is at.

        Raises:
            RunFolderError: it has no readable `summary.json`: it was stopped before its first checkpoint.
        """
        try:
            return from_dict(Summary, read_json(self.path / SUMMARY_NAME))
        except (OSError, ValueError, TypeError, ConfigError) as error:
            raise RunFolderError(f"{self.path} has no readable {SUMMARY_NAME}: {error}") from error

    def read_description(self) -> dict[str, Any]:
        """All that stands in `config.json`: config, command_line, created, versions, machine and history; init_from
        where the run began with the weights of another one.

        `config` and `versions` are those that hold now, command_line and machine those of the first start. The history
        has an entry for each start but the first: when; updates and agent_steps at which it went on; changes,
        {setting: {old, new}}; versions, the same by package, where they changed; command_line.

        Raises:
            RunFolderError: it cannot be read.
        """
        return _read_description(self.path)

    def first_config(self) -> TrainConfig:
        """The configuration with which the run began: that of now without what its history changed.

        Raises:
            RunFolderError: it cannot be read.
        """
        entries = self.read_description()["history"]
        try:
            oldest = {name: change["old"] for entry in reversed(entries) for name, change in entry["changes"].items()}
            return with_settings(self.config, oldest)
        except (TypeError, AttributeError, KeyError, ConfigError) as error:
            raise RunFolderError(f"the history in {self.path / CONFIG_NAME} is damaged: {error}") from error

    def resumed_at(self) -> list[int]:
        """Agent steps at which each start but the first went on; those of earlier versions only where they changed
        something.

        Raises:
            RunFolderError: they cannot be read.
        """
        entries = self.read_description()["history"]
        steps: list[Any] = [entry.get("agent_steps") if isinstance(entry, dict) else None for entry in entries]
        if not all(type(step) is int for step in steps):
            raise RunFolderError(f"the history in {self.path / CONFIG_NAME} is damaged: agent_steps are {shown(steps)}")
        return steps

    def go_on(
        self, config: TrainConfig, updates: int, agent_steps: int, command_line: Sequence[str]
    ) -> tuple["RunFolder", list[str]]:
        """Notes in `config.json`, all or nothing, where the run goes on, what holds from now on and what was changed,
        and sets checkpoints aside that are newer and could not be read.

        Args:
            config: with which the run goes on.
            updates, agent_steps: where it goes on.

        Returns:
            The folder with that configuration, and what was changed or set aside, a line each.

        Raises:
            RunFolderError: it could not be read or written.
        """
        description = self.read_description()
        packages = _differing(description["versions"], versions())
        lines = describe_changes(self.config, config, updates)
        lines += [f"{package}: {now}, was {before}" for package, (before, now) in packages.items()]
        entry: dict[str, Any] = {
            "when": _now(),
            "updates": updates,
            "agent_steps": agent_steps,
            "changes": _old_and_new(changes(self.config, config)),
        }
        if packages:
            entry["versions"] = _old_and_new(packages)
        entry["command_line"] = _without_path(command_line)
        description |= {"config": asdict(config), "versions": versions()}
        description["history"] = [*description["history"], entry]
        try:
            _write_json(self.path / CONFIG_NAME, description)
        except OSError as error:
            failure = f"could not write {self.path / CONFIG_NAME}: {error.strerror or error}"
            if lines:
                raise RunFolderError(failure) from error
            lines.append(f"that the run goes on here is not in its history: {failure}")
        aside = self.checkpoints.set_aside(updates)
        lines += [f"a newer checkpoint could not be read, and is now {path.name}" for path in aside]
        return replace(self, config=config), lines


def create_run(
    config: TrainConfig, command_line: Sequence[str], init_from: Mapping[str, Any] | None = None
) -> RunFolder:
    """Makes a new folder under `config.run_dir` and writes `config.json` into it (the program without its path).

    Args:
        init_from: for JSON, whose weights the run begins with, where they are those of another run.

    Raises:
        RunFolderError: it could not be made.
    """
    root = Path(config.run_dir)
    path = None
    try:
        make_folder(root)
        path = _make_unique(root, _run_name(config))
        sync_folder(root)
        _write_json(path / CONFIG_NAME, _description(config, command_line, init_from))
    except OSError as error:
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
        raise RunFolderError(
            f"cannot create a run folder under {root}: {error.strerror or error}; choose another place with --run-dir"
        ) from error
    return RunFolder(path, config)


def open_run(path: Path) -> RunFolder:
    """Opens the folder of an earlier run.

    Raises:
        RunFolderError: it is missing, not a run, or its configuration cannot be read.
    """
    try:
        config = from_dict(TrainConfig, _read_description(path)["config"])
    except ConfigError as error:
        raise RunFolderError(f"{path / CONFIG_NAME} is damaged or of another version: {error}") from error
    return RunFolder(path, config)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = read_json(path / CONFIG_NAME)
        if lacking := [key for key in ("config", "versions", "machine") if key not in description]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        history = description.setdefault("history", [])  # runs of earlier versions have none
    except OSError as error:
        raise RunFolderError(
            f"{path} is no run folder: no readable {CONFIG_NAME} in it ({error.strerror}); "
            "name a folder <env>__<preset>__<seed>__<time>"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path / CONFIG_NAME} is damaged or of another version: {error}") from error
    found = description["versions"]
    if not (isinstance(found, dict) and all(isinstance(version, str) for version in found.values())):
        raise RunFolderError(
            f"{path / CONFIG_NAME} is damaged: versions is {shown(found)}, but must be a table of texts"
        )
    if not isinstance(history, list):
        raise RunFolderError(f"{path / CONFIG_NAME} is damaged: history is {shown(history)}, but must be a list")
    return description


def machine_description() -> dict[str, Any]:
    """Processor, memory and GPU of this machine, for putting numbers beside; no names or addresses."""
    gpu, driver = _gpu()
    return {
        "cpu": _cpu_model(),
        "logical_cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu,
        "gpu_driver": driver,
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, this program (with its git revision, where it runs from a checkout) and the packages that
    decide its numbers."""
    found = {"python": platform.python_version(), "drqn-dist": drqn_dist.__version__ + _revision()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _revision() -> str:
    """`+g12ab34c`, with `.dirty` where code differs from that commit; empty without a checkout or git."""
    checkout = Path(drqn_dist.__file__).parents[1]
    if not (checkout / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        # Variables such as GIT_DIR, which git sets for its hooks, would name another repository.
        alone = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
        return subprocess.run(command, env=alone, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "--short=7", "HEAD")
        dirty = git("status", "--porcelain", "--", *_CODE)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"+g{revision}{'.dirty' if dirty else ''}"


def _description(
    config: TrainConfig, command_line: Sequence[str], init_from: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "config": asdict(config),
        "command_line": _without_path(command_line),
        "created": _now(),
        "versions": versions(),
        "machine": machine_description(),
        **({"init_from": dict(init_from)} if init_from is not None else {}),
        "history": [],
    }


def _without_path(command_line: Sequence[str]) -> list[str]:
    return [Path(word).name if index == 0 else word for index, word in enumerate(command_line)]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """Old and new value of each key that differs; None where there was or is none."""
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def _old_and_new(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {"old": old, "new": new} for name, (old, new) in changed.items()}


def _run_name(config: TrainConfig) -> str:
    env = re.sub(r"[^A-Za-z0-9.-]+", "-", config.env.id).strip("-.")
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", config.preset).strip("-.")
    return f"{env}__{name}__{config.seed}__{time.strftime('%Y%m%d-%H%M%S')}"


def _make_unique(root: Path, name: str) -> Path:
    """Creates root/name, or root/name-2 and so on where that exists: two runs may start in the same second."""
    for attempt in itertools.count(1):
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def _gpu() -> tuple[str | None, str | None]:
    """Name and driver version of the first GPU that CUDA would show, None without one.

    PyTorch could tell them too, but would open a context for it: hundreds of megabytes of the learner's GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.partition(",")[0].strip()
    if not first or first == "-1":
        return None, None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", f"--id={first}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30.0, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None, None
    name, _, driver = answer.strip().rpartition(", ")
    return name, driver


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
