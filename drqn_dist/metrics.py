"""Metrics of a run: `metrics.jsonl` (one object a line) and TensorBoard events, both by agent steps.

Every line of `metrics.jsonl` holds `agent_steps`, `frames` and `wall_s`, and any of these tags:

    charts/episodic_return     mean unclipped return of recent training episodes
    charts/episodic_length     their mean length, agent steps
    charts/epsilon             mean exploration rate of the environments
    charts/agent_steps_per_s   environment steps per second, all actors together
    charts/updates_per_s       learner updates per second
    losses/td_loss             importance-weighted loss of the last updates
    losses/td_error            mean absolute temporal-difference error
    losses/q_values            mean Q of the actions taken
    losses/grad_norm           gradient norm before clipping
    probe/staleness_first      ΔQ after a window's burn-in, at its first trained step (after R2D2, figure 1)
    probe/staleness_last       the same at the last trained step
    probe/churn                share of greedy actions that one update changes
    replay/steps               agent steps stored
    replay/bytes               compressed bytes stored
    replay/fill                stored steps / capacity, 0..1
    replay/samples_per_insert  measured replay ratio
    replay/late_priorities     priorities that came after their window was evicted
    replay/missing             fragments overtaken by later ones and not here (yet), or lost with a replay that died
    replay/duplicates          fragments that came again
    replay/rejected            pushes that were no valid fragment
    replay/journal_bytes       of its journal on the disk
    replay/journal_missed      fragments that the journal could not take (a full disk), since the replay was started
    replay/sample_age_updates  updates between the policy that acted in a window and the learner that trains it
    queues/pushes              fragments that an actor has pushed and that are not acknowledged; the most of all actors
    queues/priorities          calls with priorities that the replay has not acknowledged
    queues/updates             updates whose results are on their way from the GPU
    queues/draws               prepared draws that wait for the learner
    memory/<role>_mb           resident memory of driver, learner, replay, evaluator, actor; the most of all such, MB
    actors/policy_lag_updates  updates between the acting policy and the learner
    time/updates               the most updates that the learner had come to
    time/waiting_for_replay    share of the learner's time without a batch, 0..1
    time/actor_<part>          share of the actors' time in env, policy, build, encode, push and weights, 0..1
    eval/mean_return           greedy evaluation: mean, std and episodes
    eval/std_return
    eval/episodes
    eval/updates               updates behind the evaluated weights

A run that goes on after its process was killed repeats some agent steps, in lines behind those that they replace;
`read_metrics` and TensorBoard leave out what was replaced. TensorBoard shows all tags over agent steps, with
`time/frames` and `time/wall_s` beside them.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from drqn_dist.errors import RunFolderError, shown
from drqn_dist.reading import parse_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FILE_NAME = "metrics.jsonl"


def resident_bytes() -> int:
    """Of this process."""
    return int(psutil.Process().memory_info().rss)


class MetricsLog:
    """Writes one run's metrics. Called from one thread."""

    def __init__(self, folder: Path, resumed_at_steps: int | None = None) -> None:
        """Opens the log for appending.

        Args:
            folder: an existing run folder.
            resumed_at_steps: agent steps of the checkpoint that this run goes on from; TensorBoard then hides the
                points that a killed run wrote after it.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        self._folder = folder
        try:
            _drop_partial_line(folder / FILE_NAME)
            self._file = open(folder / FILE_NAME, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
            self._board: SummaryWriter | None = _board(folder, resumed_at_steps)
        except OSError as error:
            raise RunFolderError(
                f"cannot write metrics into {folder}: {error.strerror}; check its permissions"
            ) from error

    def write(self, values: Mapping[str, float], agent_steps: int, frames: int, wall_s: float) -> None:
        """Appends one line and the same scalars to TensorBoard; values that are not finite are left out.

        Raises:
            OSError: one of the two could not be written (a full disk); later calls try again.
        """
        finite = {tag: float(value) for tag, value in values.items() if math.isfinite(value)}
        line = {"agent_steps": agent_steps, "frames": frames, "wall_s": round(wall_s, 3), **finite}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        # A writer that could not write once never does again.
        board, self._board = self._board or _board(self._folder, None), None
        for tag, value in {**finite, "time/frames": frames, "time/wall_s": wall_s}.items():
            board.add_scalar(tag, value, global_step=agent_steps)
        self._board = board

    def close(self) -> None:
        with suppress(OSError):  # a full disk was reported when it was met
            self._file.close()
            if self._board is not None:
                self._board.close()


def _board(folder: Path, purge_step: int | None) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    return SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, in order of agent steps.

    A last line cut short by a kill is skipped. Where a resumed run went over steps again, its lines replace those
    of the run that was killed.

    Raises:
        RunFolderError: the run has no readable metrics.
    """
    path = run / FILE_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{run} has no {FILE_NAME}: {error.strerror}; is it a run folder?") from error
    lines: list[dict[str, Any]] = []
    for number, raw in enumerate(content.splitlines(), start=1):
        try:
            line = parse_json(raw.decode())
            steps, _, _ = line["agent_steps"], line["frames"], line["wall_s"]
            wrong = next((tag for tag, value in line.items() if type(value) not in (int, float)), None)
            if wrong is not None:
                raise TypeError(f"{shown(wrong)} is {shown(line[wrong])}")
        except (ValueError, KeyError, TypeError) as error:
            if not content.endswith(b"\n") and number == content.count(b"\n") + 1:
                break
            raise RunFolderError(
                f"line {number} of {path} is no line of metrics ({shown(error)}); remove it"
            ) from error
        while lines and lines[-1]["agent_steps"] > steps:
            lines.pop()
        lines.append(line)
    return lines


def _drop_partial_line(path: Path) -> None:
    """Cuts off a last line without its line break, which a killed run may leave."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end != len(content):
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began = (time.perf_counter(), time.process_time())

    def lap(self) -> tuple[float, float]:
        """Seconds by the clock, and CPU seconds of all threads of this process, since the last lap; starts the next."""
        now = (time.perf_counter(), time.process_time())
        (wall, cpu), self._began = self._began, now
        return now[0] - wall, now[1] - cpu
