"""`drqn-dist replay inspect|verify|export`: arguments in, lines out."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from drqn_dist.arguments import parse
from drqn_dist.errors import ConfigError, JournalDamagedError, did_you_mean
from drqn_dist.experiments.replay_export import export_replay
from drqn_dist.experiments.replay_inspect import inspect_replay, table
from drqn_dist.experiments.replay_verify import verify_replay

PROGRESS_PERIOD_S = 5.0


@dataclass(frozen=True)
class InspectArgs:
    """Shows what a run's replay holds, by its journal, also while the run goes on."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout instead of a table."""


@dataclass(frozen=True)
class VerifyArgs:
    """Reads a run's replay journal in whole and decodes every fragment; exits with 1 if anything is damaged."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""


@dataclass(frozen=True)
class ExportArgs:
    """Writes the complete episodes of a run's replay; overwrites nothing."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    out: Path | None = None
    """New folder for one .npz archive an episode, read by numpy.load: observations, actions, rewards, terminated,
    truncated, weight_version, actor_id, env_id, episode_id."""
    episodes: int | None = None
    """Only the newest so many; None: all."""
    minari: str | None = None
    """Name of a new Minari dataset, such as pong/replay-v0; Minari must be installed."""
    video: Path | None = None
    """New MP4 file of the newest of these episodes, as the agent saw it."""


def replay(argv: Sequence[str], program: str) -> None:
    """Runs `inspect`, `verify` or `export`.

    Raises:
        ConfigError, RunFolderError, FragmentError: as the functions that they call.
        JournalDamagedError: `verify` found faults.
    """
    word = argv[0] if argv else ""
    if word in ("", "-h", "--help"):
        print(f"usage: {program} {'|'.join(_ACTIONS)} RUN [OPTIONS]; {program} {next(iter(_ACTIONS))} --help and so on")
        raise SystemExit(0 if word else 2)
    if word not in _ACTIONS:
        raise ConfigError(f"unknown: {program} {word}; {did_you_mean(word, _ACTIONS, 1)}one of {', '.join(_ACTIONS)}")
    _ACTIONS[word](argv[1:], f"{program} {word}")


def _inspect(argv: Sequence[str], program: str) -> None:
    args = parse(InspectArgs, argv, program)
    inspected = inspect_replay(args.run)
    print(json.dumps(inspected) if args.json else table(inspected))


def _verify(argv: Sequence[str], program: str) -> None:
    args = parse(VerifyArgs, argv, program)
    verdict = verify_replay(args.run, lambda line: print(line, flush=True), _Progress())
    counted = f"{verdict.fragments:,} fragments with {verdict.steps:,} steps"
    if verdict.faults:
        faults = f"{verdict.faults:,} fault{'s' * (verdict.faults != 1)}"
        raise JournalDamagedError(
            f"{faults} in the replay journal of {args.run}; {counted} could be read, and the next start takes back "
            "what is whole"
        )
    print(f"whole: {counted}")


def _export(argv: Sequence[str], program: str) -> None:
    args = parse(ExportArgs, argv, program)
    count = export_replay(args.run, args.out, args.episodes, args.minari, args.video)
    more = "" if count >= (args.episodes or 0) else "; no more are complete in the replay"
    print(f"exported {count:,} episode{'s' * (count != 1)}{more}", file=sys.stderr)


class _Progress:
    """Says every few seconds how far something is."""

    def __init__(self) -> None:
        self._due_s = time.monotonic() + PROGRESS_PERIOD_S

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + PROGRESS_PERIOD_S
            print(f"read {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", file=sys.stderr, flush=True)


_ACTIONS: dict[str, Callable[[Sequence[str], str], None]] = {"inspect": _inspect, "verify": _verify, "export": _export}
