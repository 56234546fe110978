"""A training run from its configuration to its summary."""

import errno
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from actors.evaluator import Evaluation, Played
from drqn_dist.checkpoint import weights_sha256
from drqn_dist.config import TrainConfig
from drqn_dist.errors import CheckpointError, DrqnError, RayDiedError, RoleFailedError, RunFolderError
from drqn_dist.experiments.run_folder import CONFIG_NAME, RunFolder, Summary, create_run
from drqn_dist.files import locked
from drqn_dist.interfaces import EnvSpec
from drqn_dist.metrics import MetricsLog
from drqn_dist.network.q_network import QNetwork
from drqn_dist.training.console import Progress
from drqn_dist.training.keeper import Word
from drqn_dist.training.monitor import Monitor, evaluation_values
from drqn_dist.training.preflight import Prepared, prepare
from drqn_dist.training.serial import SerialSession
from drqn_dist.training.session import Report, Saved, Session, drop_other_shards
from drqn_dist.training.stop import StopRequest, stop_on_signals
from learner.train_state import load_network

ALONE_S = 5.0
"""How long another process that trains in the same folder gets to end."""
PATIENCE_S = 120.0
"""How long checkpoints but for the periodic ones wait for a learner that is being started again."""


def train(config: TrainConfig, resume: Path | None = None, init_from: Path | None = None) -> Summary:
    """Trains until `total_steps`, `minutes`, `stop_at_return` or a signal, and writes everything into a run folder.

    Args:
        config: of the run; with `resume` it must be that run's own, except for what may change (`resumable.py`).
        resume: folder of the run to go on with: learner, optimizer, target network and counters go on where the
            newest checkpoint left them, the replay with what its journal holds.
        init_from: folder of another run, with whose newest weights this new one begins (`origin.initial_state`).

    Raises:
        ConfigError: the configuration cannot run on this machine; nothing was started or left behind.
        RunFolderError, CheckpointError: the folder or the checkpoint to begin with cannot be used.
        EnvFailedError: an environment raised; the last checkpoint stays.
        RoleFailedError: a process failed too often; the last checkpoint stays.
        RayDiedError: Ray itself died; the last checkpoint stays.
    """
    with ExitStack() as stack:
        if resume is not None:
            stack.enter_context(_alone_in(resume))
        prepared = prepare(config, resume, init_from)
        config, before, state = prepared.config, prepared.before, prepared.state
        restored = state if before is not None else None
        stop = stack.enter_context(stop_on_signals())
        word = Word()
        stack.callback(word.ends)
        if restored is not None and before is not None:  # said first: starting takes long, and may fail
            word.saved(before.path, int(restored.meta["learner"]["updates"]))
        folder = create_run(config, sys.argv, prepared.init_from) if before is None else before
        if before is None:
            stack.enter_context(_alone_in(folder.path))
        try:
            with stop.at_once():  # a cluster may take long to have room
                session = _start_session(config, state, folder.path)
        except BaseException as error:
            if before is None:
                shutil.rmtree(folder.path, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt):
                nothing = "stopped before the run began; nothing was written"
                print(nothing if before is None else f"stopped; {word.safe}", file=sys.stderr, flush=True)
            raise
        stack.callback(session.close)
        folder, said = (folder, _beginning(prepared)) if before is None else _going_on(prepared)
        if drop_other_shards(folder.path):
            said.append("the replay begins empty: its journal was that of another number of shards")
        try:
            return _Run(config, prepared.spec, session, folder, restored, stop, word, said).run()
        except RayDiedError as error:
            if word.kept:  # it is gone on with at once, or the keeper says how to
                raise
            raise RayDiedError(f"{error}; {word.safe}") from error
        finally:
            word.ends()  # already now: Ray's C++ may end this process while it closes


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other process trains in a run's folder meanwhile.

    Raises:
        RunFolderError: one does.
    """
    with ExitStack() as stack:
        try:
            known = (folder / CONFIG_NAME).is_file()
        except OSError:  # said where it is read
            known = False
        if known:
            try:
                stack.enter_context(locked(folder / "lock", ALONE_S))
            except OSError as error:  # another one is no reason: what cannot be written is said where it matters
                if error.errno == errno.EBUSY:
                    raise RunFolderError(
                        f"another process trains in {folder}; end it, wait for it, or resume a copy of the folder"
                    ) from error
        yield


def _going_on(prepared: Prepared) -> tuple[RunFolder, list[str]]:
    """The run's folder, with a `config.json` that holds from now on, and what was changed."""
    assert prepared.before is not None
    assert prepared.state is not None
    meta = prepared.state.meta
    return prepared.before.go_on(prepared.config, int(meta["learner"]["updates"]), int(meta["agent_steps"]), sys.argv)


def _beginning(prepared: Prepared) -> list[str]:
    """What is to be said of a new run."""
    note = prepared.init_from
    return [f"begins with the weights of {note['run']} at update {note['update']:,}"] if note is not None else []


def _start_session(config: TrainConfig, state: Saved | None, folder: Path) -> Session:
    if config.mode == "serial":
        return SerialSession(config, state, folder)
    with suppress(OSError):  # stderr may be a file on a full disk
        print(
            f"starting Ray for {config.num_actors} actor(s), replay, learner and evaluator …",
            file=sys.stderr,
            flush=True,
        )
    from drqn_dist.distributed.supervisor import RaySession  # Ray takes a second to import

    return RaySession(config, state, folder=folder)


class _Run:
    """The training loop: advance, log, save, stop."""

    def __init__(
        self,
        config: TrainConfig,
        spec: EnvSpec,
        session: Session,
        folder: RunFolder,
        restored: Saved | None,
        stop: StopRequest,
        word: Word | None = None,
        said: Sequence[str] = (),
    ) -> None:
        """
        Args:
            restored: what the session goes on from, in a run that was there before.
            said: what a person should know first.
        """
        self._config, self._spec, self._session, self._folder, self._stop = config, spec, session, folder, stop
        self._word, self._said = word or Word(), said
        meta = restored.meta if restored else {}
        self._monitor = Monitor(
            config,
            spec.frames_per_step,
            int(meta.get("agent_steps", 0)),
            int(meta["learner"]["updates"]) if restored else 0,
            float(meta.get("wall_s", 0.0)),
            self._word.ran_s,
        )
        if "monitor" in meta:
            self._monitor.set_state(meta["monitor"])
        self._resumed_at = int(meta["agent_steps"]) if restored else None
        self._starts = int(meta.get("starts", 1)) + 1 if restored else 1
        self._final_seed = int(meta.get("final_seed", config.seed))
        self._checkpointed = time.monotonic()
        self._started = self._checkpointed - self._word.ran_s

    def run(self) -> Summary:
        config = self._config
        title = f"{config.env.id} · {config.preset} · seed {config.seed} · {config.mode}"
        with ExitStack() as stack:
            log = MetricsLog(self._folder.path, self._resumed_at)
            stack.callback(log.close)
            progress = stack.enter_context(Progress(title, config.log_period_s))
            progress.message(f"run folder: {self._folder.path}")
            if self._resumed_at is not None:
                progress.message(f"goes on from update {self._monitor.updates:,} at {self._resumed_at:,} agent steps")
                if self._monitor.remembers:
                    progress.message("until training games have ended, their return is that of before the stop")
            for line in self._said:
                progress.message(line)
            if self._monitor.agent_steps >= config.total_steps:
                progress.message(f"all of its {config.total_steps:,} steps are done; a larger --total-steps trains on")
            if self._word.kept and self._resumed_at is None:
                self._write(self._save(), progress)  # something to begin with again, from the first moment
            while True:
                with self._saving_at_failure(progress):
                    while not (stopped_by := self._stopped_by()):
                        self._advance(log, progress)
                if stopped_by != "stop_at_return" or self._confirmed(log, progress):
                    break
            hint = "; a second Ctrl-C gives up without" if stopped_by == "signal" else ""
            progress.message(f"stopping: {stopped_by}; writing checkpoint and summary{hint}")
            try:
                saved = self._save()
            except RayDiedError:
                raise
            except DrqnError:
                progress.message(self._word.safe)
                raise
            not_written = self._write(saved, progress)
            if stopped_by not in ("signal", "stop_at_return"):
                progress.message(f"final evaluation: {config.eval.final_episodes or config.eval.episodes} episodes …")
                self._evaluate(log, progress)
            summary = self._summary(saved, stopped_by)
            self._folder.write_summary(summary)
            if not_written is not None:
                raise type(not_written)(f"{not_written}; {self._word.safe}") from not_written
            on = f"; to go on: drqn-dist train --resume {self._folder.path}" if stopped_by == "signal" else ""
            progress.message(f"done: {self._folder.path / 'summary.json'}{on}")
            return summary

    @contextmanager
    def _saving_at_failure(self, progress: Progress) -> Iterator[None]:
        """Where a role cannot be cured, what the learner has learnt since the last checkpoint is kept, and said how to
        go on."""
        try:
            yield
        except RoleFailedError:
            try:
                self._write(self._save(), progress)
            except RayDiedError:
                raise
            except DrqnError:  # it is the learner, or the replay that it waits for
                pass
            progress.message(self._word.safe)
            raise

    def _advance(self, log: MetricsLog, progress: Progress) -> None:
        config = self._config
        self._take(self._session.advance(self._until_next(), lambda: self._stop.requested), log, progress)
        if time.monotonic() - self._checkpointed >= config.checkpoint_period_s:
            try:
                self._write(self._save(0.0), progress)
            except RayDiedError:
                raise
            except DrqnError as error:  # a learner that does not come back, say: advance will tell
                progress.message(f"no checkpoint: {error}")

    def _take(self, report: Report, log: MetricsLog, progress: Progress) -> None:
        values, shown = self._monitor.take(report)
        self._log(log, values, progress)
        progress.update(shown)
        for event in (*report.notes, *report.events):
            progress.message(event)
        for evaluation in report.evaluations:
            progress.message(f"evaluation at update {evaluation.version:,}: {_scores(evaluation)}")

    def _confirmed(self, log: MetricsLog, progress: Progress) -> bool:
        """Saves the weights of now and plays other games with them; if they reach the wanted return too, the run ends
        with them."""
        self._write(self._save(), progress)
        updates = self._monitor.updates
        progress.message(f"confirming the weights of update {updates:,} in other games, while training rests …")
        evaluation = self._evaluate(log, progress)
        self._take(self._session.advance(0.0), log, progress)  # what ended meanwhile
        assert self._config.stop_at_return is not None
        if evaluation is not None and evaluation.mean >= self._config.stop_at_return:
            return True
        self._monitor.refuse()
        if evaluation is not None:  # otherwise a signal broke it off
            progress.message("not confirmed")
        return False

    def _evaluate(self, log: MetricsLog, progress: Progress) -> Evaluation | None:
        """Evaluates the weights just saved in games that no evaluation before had: those that decided to stop would
        flatter them, and those that once refused them would do so again.

        Returns:
            None if a signal broke it off.
        """

        def show(played: Played) -> None:
            progress.update({"eval_episodes": played.episodes, "eval_steps": played.steps})

        with ExitStack() as stack:
            stack.callback(progress.update, {"eval_episodes": None, "eval_steps": None})
            stack.enter_context(suppress(KeyboardInterrupt))
            stack.enter_context(self._stop.at_once())
            if self._stop.requested:  # before this context
                return None
            self._final_seed += 1
            evaluation = self._monitor.last_evaluation = self._session.evaluate(self._final_seed, show)
            self._log(log, evaluation_values(evaluation), progress)
            progress.message(f"evaluation at update {evaluation.version:,}: {_scores(evaluation)}")
            return evaluation
        return None

    def _summary(self, saved: Saved, stopped_by: str) -> Summary:
        monitor, evaluation = self._monitor, self._monitor.last_evaluation
        if evaluation is not None and not self._played(saved, evaluation):
            evaluation = None
        return Summary(
            agent_steps=monitor.agent_steps,
            frames=monitor.frames,
            updates=monitor.updates,
            wall_s=monitor.wall_s,
            eval_mean_return=evaluation.mean if evaluation else None,
            eval_std_return=evaluation.std if evaluation else None,
            eval_updates=evaluation.version if evaluation else None,
            weights_sha256=weights_sha256(saved.tensors),
            stopped_by=stopped_by,
        )

    def _played(self, saved: Saved, evaluation: Evaluation) -> bool:
        """Whether the weights saved are those that were evaluated."""
        network = QNetwork(self._config.network, self._spec, self._config.env.stack_frames)
        load_network(network, saved.tensors, "network.")
        played = evaluation.weights
        return played is not None and np.array_equal(played.vector, network.to_vector())

    def _until_next(self) -> float:
        """Seconds until there is something to do besides training."""
        now, config = time.monotonic(), self._config
        seconds = min(config.log_period_s, self._checkpointed + config.checkpoint_period_s - now)
        if config.minutes:
            seconds = min(seconds, self._started + 60 * config.minutes - now)
        return max(seconds, 0.01)

    def _log(self, log: MetricsLog, values: dict[str, float], progress: Progress) -> None:
        """Writes a line of metrics; one that cannot be written (a full disk) is reported, and training goes on."""
        monitor = self._monitor
        try:
            log.write(values, monitor.agent_steps, monitor.frames, monitor.wall_s)
        except OSError as error:
            progress.message(f"no metrics: could not write them into {self._folder.path}: {error.strerror or error}")

    def _stopped_by(self) -> str:
        config, monitor = self._config, self._monitor
        if self._stop.requested:
            return "signal"
        if monitor.agent_steps >= config.total_steps:
            return "total_steps"
        if config.minutes and time.monotonic() - self._started >= 60 * config.minutes:
            return "minutes"
        return "stop_at_return" if monitor.settled() else ""

    def _save(self, patience_s: float = PATIENCE_S) -> Saved:
        """
        Args:
            patience_s: for a learner that is being started again; then it is saved as it was saved last.

        Raises:
            DrqnError: there is nothing fit to be saved; the checkpoint before stays.
        """
        self._checkpointed = time.monotonic()
        saved = self._session.save(patience_s)
        self._monitor.updates = int(saved.meta["learner"]["updates"])
        if not all(t.isfinite().all() for name, t in saved.tensors.items() if name.startswith("network.")):
            raise DrqnError("the weights are no longer finite: training has diverged; lower learner.learning_rate")
        return saved

    def _write(self, saved: Saved, progress: Progress) -> DrqnError | None:
        """Writes a checkpoint, and the summary of a run that ends there; an error (a full disk) is reported and
        returned, and the checkpoint before stays."""
        # The last checkpoint is written before the last evaluation, which takes one more.
        meta = saved.meta | {
            "wall_s": self._monitor.wall_s,
            "starts": self._starts,
            "final_seed": self._final_seed + 1,
            "monitor": self._monitor.get_state(),
        }
        try:
            self._folder.checkpoints.write(self._monitor.updates, saved.tensors, meta)
            self._word.saved(self._folder.path, self._monitor.updates)
            self._folder.write_summary(self._summary(saved, "unfinished"))
        except (CheckpointError, RunFolderError) as error:
            progress.message(f"not saved: {error}")
            return error
        return None


def _scores(evaluation: Evaluation) -> str:
    return f"mean return {evaluation.mean:.2f} ± {evaluation.std:.2f} over {len(evaluation.scores)} episodes"
