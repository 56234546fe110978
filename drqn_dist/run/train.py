"""A training run from its configuration to its summary."""

from __future__ import annotations

import hashlib
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from actors.evaluator import Evaluation
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import CheckpointError, DrqnError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.metrics import MetricsLog
from drqn_dist.network.q_network import QNetwork
from drqn_dist.run.console import Progress
from drqn_dist.run.memory import check_memory
from drqn_dist.run.monitor import Monitor, evaluation_values, mean_score
from drqn_dist.run.run_folder import RunFolder, Summary, create_run, open_run
from drqn_dist.run.serial import SerialSession
from drqn_dist.run.session import Saved, Session


def train(config: TrainConfig, resume: Path | None = None) -> Summary:
    """Trains until `total_steps`, `minutes`, `stop_at_return` or a signal, and writes everything into a run folder.

    Args:
        config: of the run; with `resume` it must be that run's own, except for its bounds.
        resume: folder of the run to go on with: learner, optimizer, target network and counters go on where the
            newest checkpoint left them; the replay fills again.

    Raises:
        ConfigError: the configuration cannot run on this machine; nothing was started or left behind.
        RunFolderError, CheckpointError: the folder or the checkpoint to resume cannot be used.
        RoleFailedError: a process failed too often; the last checkpoint stays.
    """
    spec = env_spec(config.env)
    with torch.device("meta"):  # refuses a network that does not fit the observations, without memory
        QNetwork(config.network, spec, config.env.stack_frames)
    check_memory(config, spec)
    restored = None
    if resume is not None:
        folder = replace(open_run(resume), config=config)
        checkpoint = folder.checkpoints.latest()
        if checkpoint is None:
            raise CheckpointError(f"{resume} holds no checkpoint to go on from; start a new run")
        restored = Saved(checkpoint.tensors, checkpoint.meta)
    with ExitStack() as stack:
        stop = stack.enter_context(_signals())
        session = _start_session(config, restored)
        stack.callback(session.close)
        if resume is None:
            folder = create_run(config, sys.argv)
        return _Run(config, spec, session, folder, restored, stop).run()


def _start_session(config: TrainConfig, restored: Saved | None) -> Session:
    if config.mode == "serial":
        return SerialSession(config, restored)
    from drqn_dist.run.supervisor import RaySession  # Ray takes a second to import

    return RaySession(config, restored)


class _Run:
    """The training loop: advance, log, save, stop."""

    def __init__(
        self,
        config: TrainConfig,
        spec: EnvSpec,
        session: Session,
        folder: RunFolder,
        restored: Saved | None,
        stop: _StopRequest,
    ) -> None:
        self._config, self._session, self._folder, self._stop = config, session, folder, stop
        meta = restored.meta if restored else {}
        self._monitor = Monitor(
            config,
            spec.frames_per_step,
            int(meta.get("agent_steps", 0)),
            int(meta["learner"]["updates"]) if restored else 0,
            float(meta.get("wall_s", 0.0)),
        )
        self._resumed_at = int(meta["agent_steps"]) if restored else None
        self._started = self._checkpointed = time.monotonic()

    def run(self) -> Summary:
        config, monitor = self._config, self._monitor
        title = f"{config.env.id} · {config.preset} · seed {config.seed} · {config.mode}"
        with ExitStack() as stack:
            log = MetricsLog(self._folder.path, self._resumed_at)
            stack.callback(log.close)
            progress = stack.enter_context(Progress(title, config.log_period_s))
            progress.message(f"run folder: {self._folder.path}")
            while True:
                while not (stopped_by := self._stopped_by()):
                    self._advance(log, progress)
                progress.message(f"stopping: {stopped_by}")
                saved = self._checkpoint(progress)
                evaluation = monitor.last_evaluation if self._stop.requested else self._evaluate(log, progress)
                if stopped_by != "stop_at_return" or evaluation is None:
                    break
                if mean_score(evaluation) >= (config.stop_at_return or 0.0):
                    break
                progress.message(f"not confirmed: below {config.stop_at_return:g} in other games, training goes on")
                monitor.best_mean_return = -math.inf
            summary = Summary(
                agent_steps=monitor.agent_steps,
                frames=monitor.frames,
                updates=monitor.updates,
                wall_s=monitor.wall_s,
                eval_mean_return=mean_score(evaluation) if evaluation else None,
                eval_std_return=_std(evaluation) if evaluation else None,
                weights_sha256=weights_sha256(saved.tensors) if saved else "",
                stopped_by=stopped_by,
            )
            self._folder.write_summary(summary)
            progress.message(f"done: {self._folder.path / 'summary.json'}")
            return summary

    def _advance(self, log: MetricsLog, progress: Progress) -> None:
        monitor, config = self._monitor, self._config
        report = self._session.advance(config.log_period_s)
        values, shown = monitor.take(report)
        log.write(values, monitor.agent_steps, monitor.frames, monitor.wall_s)
        progress.update(shown)
        for event in report.events:
            progress.message(event)
        for evaluation in report.evaluations:
            progress.message(f"evaluation at update {evaluation.version:,}: {_scores(evaluation)}")
        if time.monotonic() - self._checkpointed >= config.checkpoint_period_s:
            self._checkpoint(progress)

    def _evaluate(self, log: MetricsLog, progress: Progress) -> Evaluation:
        """Evaluates the weights just saved, in games of their own: those that decided to stop would flatter them."""
        monitor, config = self._monitor, self._config
        progress.message(f"final evaluation: {config.eval.episodes} episodes …")
        evaluation = self._session.evaluate(config.seed + 1)
        values = evaluation_values(evaluation)
        log.write(values, monitor.agent_steps, monitor.frames, monitor.wall_s)
        progress.message(f"final evaluation at update {evaluation.version:,}: {_scores(evaluation)}")
        return evaluation

    def _stopped_by(self) -> str:
        config, monitor = self._config, self._monitor
        if self._stop.requested:
            return "signal"
        if monitor.agent_steps >= config.total_steps:
            return "total_steps"
        if config.minutes and time.monotonic() - self._started >= 60 * config.minutes:
            return "minutes"
        if config.stop_at_return is not None and monitor.best_mean_return >= config.stop_at_return:
            return "stop_at_return"
        return ""

    def _checkpoint(self, progress: Progress) -> Saved | None:
        """Writes a checkpoint; one that cannot be written (disk full) is reported, and training goes on."""
        self._checkpointed = time.monotonic()
        try:
            saved = self._session.save()
            self._monitor.updates = int(saved.meta["learner"]["updates"])
            meta = saved.meta | {"wall_s": self._monitor.wall_s}
            self._folder.checkpoints.write(self._monitor.updates, saved.tensors, meta)
        except DrqnError as error:
            progress.message(f"no checkpoint: {error}")
            return None
        return saved


def weights_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the online network's tensors of a checkpoint, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith("network."):
            digest.update(name.encode())
            digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _scores(evaluation: Evaluation) -> str:
    return f"mean return {mean_score(evaluation):.2f} ± {_std(evaluation):.2f} over {len(evaluation.scores)} episodes"


def _std(evaluation: Evaluation) -> float:
    mean = mean_score(evaluation)
    return math.sqrt(sum((s - mean) ** 2 for s in evaluation.scores) / len(evaluation.scores))


class _StopRequest:
    """Set by SIGINT or SIGTERM; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def _signals() -> Iterator[_StopRequest]:
    stop = _StopRequest()
    try:
        old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever called from there handles signals
        old = {}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
