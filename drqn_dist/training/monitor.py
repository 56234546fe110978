"""Turns reports into metrics for the log and figures for the screen."""

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from actors.actor import ActorStats, Episode
from actors.evaluator import Evaluation
from drqn_dist.config import TrainConfig
from drqn_dist.metrics import resident_bytes
from drqn_dist.qlearning.exploration import GREEDY_EPSILON
from drqn_dist.training.session import Report
from learner.learner import LearnerStats

RECENT_EPISODES = 20
"""Training episodes behind charts/episodic_return."""


class Monitor:
    """Keeps the run's counters and the recent past. Used from one thread."""

    def __init__(
        self,
        config: TrainConfig,
        frames_per_step: int,
        agent_steps: int,
        updates: int,
        wall_s: float,
        ran_s: float = 0.0,
    ) -> None:
        """Goes on from these counts of the run before this start; 0 in a new run. `ran_s` of `minutes` are over."""
        self._config = config
        self._frames_per_step = frames_per_step
        self.agent_steps, self.updates = agent_steps, updates
        self._most_updates = updates
        self._wall_before, self._ran_s = wall_s, ran_s
        self._started = self._last = time.monotonic()
        self._steps_at_start = agent_steps
        self._episodes: deque[Episode] = deque(maxlen=RECENT_EPISODES)
        self._lag = PolicyLag()
        self._threshold = max(GREEDY_EPSILON, config.actor.epsilon_low)
        self.last_evaluation: Evaluation | None = None
        self._recent: deque[Evaluation] = deque(maxlen=config.eval.settled_evaluations)

    @property
    def frames(self) -> int:
        return self.agent_steps * self._frames_per_step

    @property
    def remembers(self) -> bool:
        """Whether there are training games that have ended, maybe in the run before this start."""
        return bool(self._episodes)

    @property
    def wall_s(self) -> float:
        """Seconds of training, earlier starts of the run included."""
        return self._wall_before + time.monotonic() - self._started

    def settled(self) -> bool:
        """Whether the last evaluations reach `stop_at_return` on average, and the training games what they must."""
        config, mark, recent = self._config.eval, self._config.stop_at_return, self._recent
        if mark is None or len(recent) < config.settled_evaluations:
            return False
        if config.settled_training_return is not None and not self._training() >= config.settled_training_return:
            return False
        return float(np.mean([e.mean for e in recent])) >= mark

    def _training(self) -> float:
        """Mean return of the last training games that explored little, of all until there are such; NaN without any."""
        return _mean(e.score for e in self._episodes)

    def _remember(self, ended: list[Episode]) -> None:
        little = [episode for episode in ended if episode.epsilon <= self._threshold]
        none_known = not any(episode.epsilon <= self._threshold for episode in self._episodes)
        if little and none_known:
            self._episodes.clear()
        self._episodes.extend(little if little or not none_known else ended)

    def refuse(self) -> None:
        """Other games did not confirm it: at least one more evaluation must come before the next try."""
        self._recent.popleft()

    def get_state(self) -> dict[str, Any]:
        """The recent past by which training settles, for JSON."""
        return {
            "episodes": [asdict(episode) for episode in self._episodes],
            "evaluations": [[evaluation.version, list(evaluation.scores)] for evaluation in self._recent],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on with the recent past of a run before its stop."""
        self._episodes.extend(Episode(**episode) for episode in state["episodes"])
        self._recent.extend(Evaluation(version, tuple(scores)) for version, scores in state["evaluations"])

    def take(self, report: Report) -> tuple[dict[str, float], dict[str, float | None]]:
        """Counts a report in.

        Returns:
            values for the log by tag, and the same with the run's counters for the screen, as far as they are known.
        """
        now = time.monotonic()
        elapsed, self._last = max(now - self._last, 1e-9), now
        steps = sum(a.agent_steps for a in report.actors)
        self.agent_steps += steps
        for stats in report.learner:
            self.updates = stats.updates
        # A learner that was started again makes up first for the updates that it lost.
        self._most_updates = max(self._most_updates, self.updates)
        self._remember([e for a in report.actors for e in a.episodes])
        if report.evaluations:
            self.last_evaluation = report.evaluations[-1]
            for evaluation in report.evaluations:
                if not self._recent or evaluation.version > self._recent[-1].version:  # no weights count twice
                    self._recent.append(evaluation)
        values = {
            "time/updates": float(self._most_updates),
            "charts/agent_steps_per_s": steps / elapsed,
            "charts/updates_per_s": sum(s.new_updates for s in report.learner) / elapsed,
            "charts/episodic_return": self._training(),
            "charts/episodic_length": _mean(e.steps for e in self._episodes),
            **_learner_values(report.learner),
            **_actor_values(report.actors),
            **report.gauges,
            "memory/driver_mb": resident_bytes() / 1e6,
        }
        lag = self._lag.of(report)
        if lag is not None:
            values["actors/policy_lag_updates"] = lag
        if report.replay is not None:
            replay, capacity = report.replay, self._config.replay.capacity_steps
            values |= {
                "replay/steps": replay.stored_steps,
                "replay/bytes": replay.stored_bytes,
                "replay/fill": replay.stored_steps / capacity,
                "replay/samples_per_insert": replay.samples_per_insert,
                "replay/late_priorities": replay.late_priorities,
                "replay/missing": replay.missing,
                "replay/duplicates": replay.duplicates,
                "replay/rejected": replay.rejected,
                "replay/journal_bytes": replay.journal_bytes,
                "replay/journal_missed": replay.journal_missed,
            }
        for evaluation in report.evaluations:
            values |= evaluation_values(evaluation)
        return values, self._shown(values)

    def _shown(self, values: dict[str, float]) -> dict[str, float | None]:
        shown: dict[str, float | None] = {tag: value for tag, value in values.items() if math.isfinite(value)}
        elapsed = time.monotonic() - self._started
        shown |= {
            "agent_steps": self.agent_steps,
            "total_steps": self._config.total_steps,
            "frames": self.frames,
            "updates": self._most_updates,
            "elapsed_s": self.wall_s,
        }
        gained = self.agent_steps - self._steps_at_start
        if gained > 0:
            left = (self._config.total_steps - self.agent_steps) * elapsed / gained
            if self._config.minutes:
                left = min(left, 60 * self._config.minutes - self._ran_s - elapsed)
            shown["eta_s"] = max(left, 0.0)
        return shown


def evaluation_values(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation's figures by tag."""
    return {
        "eval/mean_return": evaluation.mean,
        "eval/std_return": evaluation.std,
        "eval/episodes": len(evaluation.scores),
        "eval/updates": evaluation.version,
    }


PROBES = ("staleness_first", "staleness_last", "churn")


def _learner_values(pieces: list[LearnerStats]) -> dict[str, float]:
    trained = [p for p in pieces if p.new_updates or p.arrived]
    if not trained:
        return {}

    def mean(name: str, count: str) -> float:
        known = [p for p in trained if getattr(p, count)]
        weights = [getattr(p, count) for p in known]
        return float(np.average([getattr(p, name) for p in known], weights=weights)) if known else math.nan

    wait, train = sum(p.wait_s for p in trained), sum(p.train_s for p in trained)
    return {
        "losses/td_loss": mean("td_loss", "arrived"),
        "losses/td_error": mean("td_error", "arrived"),
        "losses/q_values": mean("q_value", "arrived"),
        "losses/grad_norm": mean("grad_norm", "arrived"),
        "replay/sample_age_updates": mean("sample_age", "new_updates"),
        **{f"probe/{name}": _mean(v for p in trained if math.isfinite(v := getattr(p, name))) for name in PROBES},
        "time/waiting_for_replay": wait / max(wait + train, 1e-9),
    }


def _actor_values(pieces: list[ActorStats]) -> dict[str, float]:
    busy = [p for p in pieces if p.agent_steps]
    if not busy:
        return {}
    names = ("env", "policy", "build", "encode", "push", "weights")
    parts = {name: sum(getattr(p, f"{name}_s") for p in busy) for name in names}
    total = max(sum(parts.values()), 1e-9)
    return {
        "charts/epsilon": float(np.mean([p.epsilon for p in busy])),
        **{f"time/actor_{name}": seconds / total for name, seconds in parts.items()},
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan


class PolicyLag:
    """Compares actors and learner as of the moment at which each actor told its version: the learner's last piece is up
    to a second old, hundreds of updates. The clocks of all nodes are taken to agree."""

    def __init__(self) -> None:
        self._known: list[LearnerStats] = []

    def of(self, report: Report) -> float | None:
        """Mean over the actors' pieces of a report; None without any, or before the learner's first one."""
        for piece in report.learner:
            if self._known and piece.updates < self._known[-1].updates:
                self._known.clear()  # a learner that died was set back
            self._known.append(piece)
        pieces, self._known = self._known, self._known[-2:]
        acting = [piece for piece in report.actors if piece.agent_steps]
        if not acting or not pieces:
            return None
        first, last = pieces[0], pieces[-1]
        # Before the first end and after the last one the learner is taken to keep the pace of that piece.
        times = [first.told_s - first.wall_s, *(p.told_s for p in pieces), last.told_s + last.wall_s]
        done = [first.updates - first.new_updates, *(p.updates for p in pieces), last.updates + last.new_updates]
        updates = np.interp([piece.told_s for piece in acting], times, done)
        return float(np.mean(updates - [max(piece.weight_version, 0) for piece in acting]))
