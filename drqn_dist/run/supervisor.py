"""Drives the roles through Ray: hands out work in short pieces, collects what was done, replaces what died."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.evaluator import Evaluation
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import DrqnError, RoleFailedError
from drqn_dist.run import remote
from drqn_dist.run.failure_policy import decide
from drqn_dist.run.serial import next_multiple
from drqn_dist.run.session import Report, Saved

PIECE_S = 1.0
"""Work is handed out for this long at a time; also the precision with which a run stops."""
PIECES_QUEUED = 2
"""The next piece waits at the role before the present one ends, so that it never idles in between."""
CLOSE_S = 20.0
"""How long closing waits for pieces under way."""


class RaySession:
    """Replay, learner, actors and evaluator as processes of a local or joined Ray.

    A dead actor is replaced by one of the same index, hence the same rungs of the ε ladder. A dead replay comes back
    empty with the counters of the last report, a dead learner with the last saved state (`save`, called for
    every checkpoint). Failures that repeat end the run (`failure_policy`).
    """

    def __init__(self, config: TrainConfig, restored: Saved | None = None) -> None:
        """
        Raises:
            ConfigError: the environment or the cluster is not usable.
            CheckpointError: `restored` belongs to another network.
        """
        self._config = config
        self._spec = env_spec(config.env)
        # One logical CPU per process; with fewer cores the operating system shares them out.
        self._ray = remote.LocalRay(config.address, cpus=config.actors + 3)
        try:
            self._start(restored)
        except BaseException:
            self.close()
            raise

    def _start(self, restored: Saved | None) -> None:
        config = self._config
        meta = restored.meta if restored else {}
        self.agent_steps = int(meta.get("agent_steps", 0))
        self._updates = 0
        self._saved = restored
        self._failures: dict[str, list[float]] = defaultdict(list)
        self._work: dict[Any, str] = {}
        """Pieces under way: reference → role name."""
        self._not_before: dict[str, float] = {}
        """Roles that wait before their restart: name → time."""
        replay_name = f"replay-{uuid.uuid4().hex}"  # unique: a cluster may hold several runs
        self._replay = remote.start_replay(config, replay_name)
        self._learner = remote.start_learner(config, self._spec, replay_name)
        if restored:
            self._updates = int(restored.meta["learner"]["updates"])
            self._call(self._learner.load.remote(restored))
            self._call(self._replay.set_state.remote(meta["replay"]))
        self._replay_state: dict[str, Any] = self._call(self._replay.get_state.remote())
        first = int(meta.get("incarnation", -1)) + 1
        self._incarnations = dict.fromkeys(range(config.actors), first)
        self._roles: dict[str, Any] = {"learner": self._learner}
        for index in range(config.actors):
            self._roles[f"actor {index}"] = self._start_actor(index)
        self._evaluator: Any = None
        self._next_eval = next_multiple(self._updates, config.eval.period_updates)

    def advance(self, seconds: float) -> Report:
        report, deadline = Report(), time.monotonic() + seconds
        while self.agent_steps < self._config.total_steps:
            self._hand_out()
            left = deadline - time.monotonic()
            if left <= 0:
                break
            # The time-out keeps signals and delayed restarts from waiting long.
            done, _ = ray.wait(list(self._work), timeout=min(left, 0.5))
            for ref in done:
                self._collect(ref, report)
        self._watch_replay(report)
        return report

    def save(self) -> Saved:
        """
        Raises:
            RoleFailedError: the learner cannot be reached; the last saved state stays.
        """
        tensors, learner = self._call(self._learner.save.remote())
        meta = {
            "learner": learner,
            "replay": self._replay_state,
            "incarnation": max(self._incarnations.values()),
            "agent_steps": self.agent_steps,
        }
        self._saved = Saved(tensors, meta)
        return self._saved

    def evaluate(self, seed: int) -> Evaluation:
        if self._evaluator is None:
            self._evaluator = remote.start_evaluator(self._config)
        evaluation: Evaluation = self._call(self._evaluator.evaluate.remote(self._learner, seed))
        return evaluation

    def close(self) -> None:
        self._ray.close()

    def finish(self) -> Report:
        """Lets pieces under way end, and answers what they did; nothing new is handed out. For the last moments."""
        report, deadline = Report(), time.monotonic() + CLOSE_S
        while self._work and time.monotonic() < deadline:
            done, _ = ray.wait(list(self._work), timeout=0.5)
            for ref in done:
                self._collect(ref, report)
            if not any(name == "learner" for name in self._work.values()):
                break  # without a learner the rate limiter may keep actors waiting for ever
        self._watch_replay(report)
        return report

    def _hand_out(self) -> None:
        now = time.monotonic()
        for name, handle in list(self._roles.items()):
            if now < self._not_before.get(name, 0.0):
                continue
            if handle is None:
                handle = self._roles[name] = self._start_actor(int(name.split()[1]))
            under_way = sum(1 for role in self._work.values() if role == name)
            for _ in range(PIECES_QUEUED - under_way):
                self._work[handle.run.remote(PIECE_S)] = name
        if self._next_eval > 0 and self._updates >= self._next_eval and "evaluator" not in self._work.values():
            self._next_eval = next_multiple(self._updates, self._config.eval.period_updates)
            if self._evaluator is None:
                self._evaluator = remote.start_evaluator(self._config)
            self._work[self._evaluator.evaluate.remote(self._learner, self._config.seed)] = "evaluator"

    def _collect(self, ref: Any, report: Report) -> None:
        name = self._work.pop(ref)
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, DrqnError):
                raise error.cause from error
            self._fail(name, str(error.cause or error).strip().splitlines()[-1], report)
        except RayActorError as error:
            self._fail(name, str(error).strip().splitlines()[0], report)
        else:
            if name == "learner":
                self._updates = result.updates
                report.learner.append(result)
            elif name == "evaluator":
                report.evaluations.append(result)
            else:
                self.agent_steps += result.agent_steps
                report.actors.append(result)

    def _fail(self, name: str, cause: str, report: Report) -> None:
        """Carries out the failure policy's decision; once per death, though several pieces may have died with it."""
        for ref in [ref for ref, role in self._work.items() if role == name]:
            del self._work[ref]
        now = time.monotonic()
        self._failures[name].append(now)
        decision = decide(name, self._failures[name], now, cause)
        report.events.append(decision.reason)
        if decision.action == "stop":
            raise RoleFailedError(decision.reason)
        self._not_before[name] = now + decision.delay_s
        if name == "learner":
            self._restore_learner()
        elif name == "evaluator":
            _kill(self._evaluator)
            self._evaluator = None
        else:
            _kill(self._roles[name])
            self._roles[name] = None
            self._incarnations[int(name.split()[1])] += 1

    def _restore_learner(self) -> None:
        if self._saved is not None:
            self._call(self._learner.load.remote(self._saved))
            self._updates = int(self._saved.meta["learner"]["updates"])

    def _watch_replay(self, report: Report) -> None:
        """Reads the replay's figures; if it was restarted, gives it back the counters of the last report."""
        try:
            stats, state = self._call([self._replay.stats.remote(), self._replay.get_state.remote()])
        except RoleFailedError as error:
            self._fail_replay(str(error), report)
            return
        if stats.inserted_steps < self._replay_state["limiter"]["inserted_steps"]:
            self._fail_replay("its process died; its contents are lost and it fills again", report)
            return
        report.replay, self._replay_state = stats, state

    def _fail_replay(self, cause: str, report: Report) -> None:
        now = time.monotonic()
        self._failures["replay"].append(now)
        decision = decide("replay", self._failures["replay"], now, cause)
        report.events.append(decision.reason)
        if decision.action == "stop":
            raise RoleFailedError(decision.reason)
        self._call(self._replay.set_state.remote(self._replay_state))

    def _start_actor(self, index: int) -> Any:
        return remote.start_actor(
            self._config, index, self._replay, self._learner, self.agent_steps, self._incarnations[index]
        )

    def _call(self, ref: Any) -> Any:
        """Waits for a call to a role that Ray restarts.

        Raises:
            RoleFailedError: it did not answer.
        """
        try:
            return ray.get(ref, timeout=600)
        except RayTaskError as error:
            if isinstance(error.cause, DrqnError):
                raise error.cause from error
            raise RoleFailedError(str(error)) from error
        except RayError as error:
            raise RoleFailedError(str(error).strip().splitlines()[0]) from error


def _kill(handle: Any) -> None:
    if handle is not None:
        ray.kill(handle)
