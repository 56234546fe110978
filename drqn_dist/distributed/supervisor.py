"""Drives the roles through Ray: hands out work in short pieces, collects what was done, replaces what died or hangs."""

import contextlib
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

from actors.evaluator import Evaluation, Played
from drqn_dist.config import TrainConfig
from drqn_dist.distributed import remote, remote_replay
from drqn_dist.distributed.channels import RAY, Pulse
from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.distributed.placement import Placement, check_device, living_nodes
from drqn_dist.distributed.role import HANG_S, START_S, Kind, Role, RoleKind, decide
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import DrqnError, EnvFailedError, RoleFailedError
from drqn_dist.interfaces import WeightSnapshot
from drqn_dist.network.q_network import QNetwork
from drqn_dist.training.memory import STORE_BYTES, processes
from drqn_dist.training.serial import next_multiple
from drqn_dist.training.session import Report, Saved, journal_folders, never, next_incarnation
from learner.learner import LearnerStats
from learner.train_state import load_network
from replay_server.stats import ReplayStats, total_stats

PIECE_S = 1.0
"""Work is handed out for this long at a time; also the precision with which a run stops."""
PIECES_QUEUED = 2
"""The next piece waits at the role before the present one ends, so that it never idles in between."""
PULSE_S = 1.0
"""Roles that may rightly wait for others are asked for a sign of life this often."""
ANSWER_S = 120.0
"""How long an answer that is ready may be on its way, and the replay's CPU time may take."""
REFUSALS = 24
"""A role that could not begin so often is told of; from half of that on it is asked less and less often."""
SILENT_S = 5.0
"""A shard that has been silent for so long may be what others wait for."""
PAUSE_S = 2.0
"""Between two looks of the supervisor. Nobody is blamed for a longer one: it was busy, or the machine stood still."""


class RaySession:
    """Replay, learner, actors and evaluator as processes of a local or joined Ray.

    A dead actor is replaced by one of the same index, hence the same rungs of the ε ladder, and the next incarnation.
    A dead replay, or shard of it, comes back with what its journal holds (empty without one) and the counters of its
    last pulse, a dead learner with the last saved state (`save`, called for every checkpoint). A role that hangs is
    killed first. Failures that repeat end the run (`role.decide`), but not those of a node that left the cluster: what
    was there starts again elsewhere, as soon as there is room. Used from one thread.
    """

    def __init__(
        self, config: TrainConfig, restored: Saved | None = None, hang_s: float = HANG_S, folder: Path | None = None
    ) -> None:
        """
        Args:
            folder: of the run, where the replay keeps its journal; on a cluster, as the replay's node sees it.
            hang_s: a role that gives no sign of life for this long, or whose work stands still, counts as dead
                (`Role.hangs`).

        Raises:
            ConfigError: the environment or the cluster is not usable.
            CheckpointError: `restored` belongs to another network.
            RoleFailedError: the replay or the learner does not start.
        """
        check_device(config)
        self._config, self._hang_s, self._folder = config, hang_s, folder
        self._spec = env_spec(config.env)
        self._report = Report()
        self._played: Played | None = None
        self._under_way: dict[Any, tuple[Role, Kind]] = {}
        self._learner, self._evaluator = Role("learner", RoleKind.LEARNER), Role("evaluator", RoleKind.EVALUATOR)
        shards = range(config.replay.shards)
        self._replay = [
            Role(f"replay {shard}" if len(shards) > 1 else "replay", RoleKind.REPLAY, shard) for shard in shards
        ]
        self._actors = [Role(f"actor {index}", RoleKind.ACTOR, index) for index in range(config.num_actors)]
        self._roles = [*self._replay, self._learner, *self._actors, self._evaluator]
        meta = restored.meta if restored else {}
        self.agent_steps = int(meta.get("agent_steps", 0))
        self._updates = int(restored.meta["learner"]["updates"]) if restored else 0
        self._saved = restored
        self._incarnations = [next_incarnation(folder, int(meta.get("incarnation", -1)) + 1)] * config.num_actors
        self._replay_states: list[dict[str, Any] | None] = list(meta.get("replay", [None] * len(shards)))
        self._journals = journal_folders(config, folder)
        self._replay_stats: list[ReplayStats | None] = [None] * len(shards)
        self._next_eval = next_multiple(self._updates, config.eval.period_updates)
        self._looked_s = time.monotonic()
        self._failed: DrqnError | None = None
        """What went wrong while the learner was asked for its state, if the run cannot go on."""
        self._ray = LocalRay(config.address, cpus=processes(config), store_bytes=STORE_BYTES)
        self._placement: Placement | None = None
        try:
            where = self._placement = Placement(config)
            run = f"drqn-{uuid.uuid4().hex}"  # unique: a cluster may hold several
            roles = [*self._replay, self._learner]
            handles = [
                *remote_replay.start_replay(config, run, self._replay_states, where, self._journals),
                remote.start_learner(config, self._spec, run, where),
            ]
            for role, handle in zip(roles, handles, strict=True):
                role.handle, role.started_s = handle, time.monotonic()
            self._turn_until(lambda: self._learner.begun, [*self._replay, self._learner])
        except BaseException:
            self.close()
            raise

    def advance(self, seconds: float, stopping: Callable[[], bool] = never) -> Report:
        if self._failed is not None:
            raise self._failed
        deadline = time.monotonic() + seconds
        while (
            self.agent_steps < self._config.total_steps
            and not stopping()
            and not self._report.evaluations
            and (left := deadline - time.monotonic()) > 0
        ):
            self._evaluate_if_due()
            self._turn(self._roles, left)
        report, self._report = self._report, Report()
        return report

    def save(self, patience_s: float = math.inf) -> Saved:
        agent_steps = self.agent_steps  # as reported so far: what is collected meanwhile comes with the next report
        tensors, learner = self._learner_state(patience_s)
        self._ask_replay()
        meta = {
            "learner": learner,
            "replay": list(self._replay_states),
            "incarnation": max(self._incarnations),
            "agent_steps": agent_steps,
        }
        self._saved = Saved(tensors, meta)
        return self._saved

    def evaluate(self, seed: int, progress: Callable[[Played], object] = never) -> Evaluation:
        assert self._saved is not None, "save first"
        network = QNetwork(self._config.network, self._spec, self._config.env.stack_frames)
        load_network(network, self._saved.tensors, "network.")
        weights = WeightSnapshot(int(self._saved.meta["learner"]["updates"]), network.to_vector())
        if self._evaluator.under_way["evaluate"]:  # with older weights: it would only be waited for
            self._end(self._evaluator)
        self._report.evaluations.clear()
        self._played = None
        while not self._report.evaluations:
            self._play(weights, seed, self._config.eval.final_episodes or self._config.eval.episodes)
            self._turn([self._evaluator], PULSE_S)
            if self._played is not None:
                progress(self._played)
        return self._report.evaluations.pop()

    def replay_cpu_s(self) -> float:
        """CPU seconds of all shards of the replay since they were started."""
        try:
            return float(sum(ray.get([role.handle.cpu_s.remote() for role in self._replay], timeout=ANSWER_S)))
        except RayError as error:
            raise RoleFailedError(f"the replay did not answer: {_cause(error)}") from error

    def close(self) -> None:
        if not self._ray.owned:  # nobody else ends them
            for role in self._roles:
                _kill(role, for_good=True)
            if self._placement is not None:
                self._placement.close()
        self._under_way.clear()
        self._ray.close()

    def _learner_state(self, patience_s: float) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a learner that has begun saves. One that dies or hangs now comes back with what was saved before, and is
        asked again; where it is away for longer than `patience_s`, that is what there is to save."""
        role, before, until_s = self._learner, self._saved, time.monotonic() + patience_s
        while True:
            self._turn_until(
                lambda: role.begun or (before is not None and time.monotonic() >= until_s),
                self._roles,
            )
            if before is not None and not role.begun:
                return before.tensors, before.meta["learner"]
            ref, failures = role.handle.save.remote(), len(role.failures)
            if not role.under_way.total():
                role.seen_s = time.monotonic()
            role.under_way["save"] += 1
            try:
                # Only whether it has answered: on a slow network a large state takes long to come.
                while not RAY.wait([ref], timeout=0.05, fetch_local=False)[0] and len(role.failures) == failures:
                    self._turn(self._replay, 0.05)
                    self._judge(role)
            except DrqnError as error:
                self._failed = error  # maybe another role's, which a caller that does without a checkpoint must hear of
                raise
            finally:
                if len(role.failures) == failures:  # otherwise it is forgotten already
                    role.under_way["save"] -= 1
            if len(role.failures) > failures:
                continue
            try:
                answer: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = ray.get(ref, timeout=ANSWER_S)
            except RayError as error:
                if isinstance(error, RayTaskError) and isinstance(error.cause, DrqnError):
                    raise error.cause from error
                self._fail(role, _cause(error), alive=isinstance(error, RayTaskError | GetTimeoutError))
                continue
            if answer is not None:
                return answer
            self._fail(role, "its process died", alive=False)

    def _ask_replay(self) -> None:
        """Takes the counters of all shards anew. Those of their last pulses are up to a second older than what the
        learner saved; it has rested since then, so that these are of the same moment, but for what it had drawn ahead.
        A shard that does not answer soon keeps those of its last pulse."""
        asked = {role.handle.pulse.remote(): role for role in self._replay if role.begun}
        if not asked:
            return
        for ref in ray.wait(list(asked), num_returns=len(asked), timeout=PULSE_S)[0]:
            with contextlib.suppress(RayError):  # its next pulse tells too
                if (pulse := ray.get(ref)) is not None:
                    self._replay_states[asked[ref].index] = pulse.state

    def _turn_until(self, done: Callable[[], bool], roles: list[Role]) -> None:
        while not done():
            self._turn(roles, PULSE_S)

    def _turn(self, roles: list[Role], seconds: float) -> None:
        """Gives these roles something to do, waits for an answer of any role, and deals with it.

        Raises:
            RayDiedError: no role can be started again.
            RoleFailedError: one failed too often.
        """
        self._report.events += self._ray.check()
        self._look()
        for role in roles:
            if time.monotonic() >= role.not_before_s:
                self._hand_out(role)
        # The time-out keeps signals, pulses and delayed restarts from waiting long.
        seconds = min(seconds, 0.5)
        if not self._under_way:
            time.sleep(seconds)  # everything rests after failures
            return
        waiting = list(self._under_way)
        done, _ = ray.wait(waiting, timeout=seconds)
        self._look()  # here it spends its time, and here a machine that stood still comes back
        done += [ref for ref in ray.wait(waiting, num_returns=len(waiting), timeout=0)[0] if ref not in done]
        for ref in done:
            if ref in self._under_way:  # an answer before it may have ended the role
                self._collect(ref)
        for role in roles:
            self._judge(role)

    def _look(self) -> None:
        """Nobody is blamed for the time that the supervisor did not look."""
        now = time.monotonic()
        if (pause_s := now - self._looked_s) > PAUSE_S:
            for role in self._roles:
                role.seen_s, role.moved_s = role.seen_s + pause_s, role.moved_s + pause_s
        self._looked_s = now

    def _judge(self, role: Role) -> None:
        """Replaces a role that hangs."""
        self._look()
        now = self._looked_s
        if role is self._learner and any(
            not shard.begun or (shard.under_way.total() and now - shard.seen_s > SILENT_S) for shard in self._replay
        ):
            role.seen_s = now  # it waits for a shard; that one alone is to blame
        cause = role.hangs(now, self._hang_s)
        if cause and not role.begun and (lack := self._lacks(role)):
            role.seen_s = role.moved_s = role.started_s = now
            self._report.events.append(f"{role.name} waits for {lack}")
        elif cause:
            self._fail(role, cause, alive=True)

    def _lacks(self, role: Role) -> str:
        """What a role that has not begun cannot start without, if that is why it is silent."""
        if self._config.address is None:  # a Ray of our own has a CPU for everyone
            return ""
        if role.kind is RoleKind.ACTOR:
            return "a CPU; add a node, or lower actors" if RAY.available_resources().get("CPU", 0) < 1 else ""
        assert self._placement is not None
        return "" if self._placement.has_room() else "room on another node after its own left; add one"

    def _hand_out(self, role: Role) -> None:
        if role.kind is RoleKind.ACTOR and role.handle is None:
            role.handle = remote.start_actor(
                self._config,
                role.index,
                self._replay[role.index % len(self._replay)].handle,
                self._learner.handle,
                self.agent_steps,
                self._incarnations[role.index],
            )
        if role.waits_to_begin and not role.begun:
            if not role.under_way["begin"]:
                goes_on_from = (
                    (self._saved,)
                    if role is self._learner
                    else (self._replay_states[role.index], self._journals[role.index])
                )
                self._expect(role, "begin", role.handle.begin.remote(*goes_on_from))
            return
        if role is self._learner or role.kind is RoleKind.ACTOR:
            for _ in range(PIECES_QUEUED - role.under_way["run"]):
                self._expect(role, "run", role.handle.run.remote(PIECE_S))
        due = time.monotonic() >= role.pulse_s + PULSE_S and not role.under_way["pulse"]
        if role.has_pulse and role.handle is not None and due:
            now = time.monotonic()
            if now - role.pulse_s > PULSE_S + PAUSE_S:  # nobody looked at its work meanwhile
                role.moved_s = now
            role.pulse_s = now
            self._expect(role, "pulse", role.handle.pulse.remote())

    def _evaluate_if_due(self) -> None:
        if 0 < self._next_eval <= self._updates and not self._evaluator.under_way["evaluate"]:
            self._next_eval = next_multiple(self._updates, self._config.eval.period_updates)
            self._play(self._learner.handle, self._config.seed, self._config.eval.episodes)

    def _play(self, source: Any, seed: int, episodes: int) -> None:
        """Sends the evaluator to work, unless it is or rests."""
        role = self._evaluator
        if role.under_way["evaluate"] or time.monotonic() < role.not_before_s:
            return
        if role.handle is None:
            assert self._placement is not None
            role.handle = remote.start_evaluator(self._config, self._placement)
        self._expect(role, "evaluate", role.handle.evaluate.remote(source, seed, episodes))

    def _collect(self, ref: Any) -> None:
        role, kind = self._under_way.pop(ref)
        role.under_way[kind] -= 1
        now = time.monotonic()
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            # An environment may break once in a while; the next incarnation plays other games.
            if isinstance(error.cause, DrqnError) and not isinstance(error.cause, EnvFailedError):
                raise error.cause from error
            self._fail(role, _cause(error), alive=True, error=error)
            return
        except ActorUnavailableError as error:
            if role.waits_to_begin and not role.begun and now - role.started_s < START_S:
                role.refused += 1  # Ray is still starting it, or it dies at once
                role.not_before_s = now + min(0.2 * 1.3 ** max(0, role.refused - REFUSALS // 2), 5.0)
                if role.refused == REFUSALS:
                    self._report.events.append(f"{role.name} does not begin: {_cause(error)}")
            else:
                self._fail(role, _cause(error), alive=False, error=error)
            return
        except RayError as error:
            self._fail(role, _cause(error), alive=False, error=error)
            return
        unknown = role.waits_to_begin and kind != "begin" and result is None
        pulse = result if isinstance(result, Pulse) else None
        if unknown:  # Ray was quicker to start another one than we to ask
            self._fail(role, "its process died", alive=False)
            return
        if role.kind is RoleKind.REPLAY and not role.begun:
            took = pulse.note if pulse is not None else ""
            if role.failures:
                self._report.events.append(f"{role.name} is back, and {took or 'fills again'}")
            elif took:
                self._report.events.append(f"{role.name} {took}")
        if kind == "run" and role is self._learner and result.new_updates:
            role.trained(result.updates)
        role.answered(now)
        if pulse is not None and role.has_pulse:
            role.slowest_s = max(role.slowest_s, pulse.slow_s)
            if pulse.waits:
                role.moved_s = now
            role.moved(now, pulse.moves)
        self._gauge(role, pulse if pulse is not None else result)
        if pulse is not None:
            role.process, role.node = pulse.process, pulse.node
        if pulse is not None and pulse.note and role.kind is not RoleKind.REPLAY:
            self._report.notes.append(pulse.note)
        if kind == "pulse" and role.kind is RoleKind.REPLAY:
            before = self._replay_stats[role.index]
            if result.stats.journal_missed and not (before and before.journal_missed):
                self._report.events.append(f"{role.name}'s journal does not take what comes: it is lost if it dies now")
            self._replay_stats[role.index], self._replay_states[role.index] = result.stats, result.state
            self._report.replay = total_stats([stats for stats in self._replay_stats if stats is not None])
        elif kind == "pulse" and role is self._evaluator:
            self._played = result.played
        elif kind == "evaluate":
            self._report.evaluations.append(result)
            # It played the weights that were the newest when it began, maybe later than those that made it due.
            due = next_multiple(result.version, self._config.eval.period_updates)
            self._next_eval = max(self._next_eval, due)
        elif kind == "run" and role is self._learner:
            self._updates = result.updates
            self._report.learner.append(result)
        elif kind == "run":
            self.agent_steps += result.agent_steps
            self._report.actors.append(result)

    def _gauge(self, role: Role, told: Any) -> None:
        """Notes what a pulse or the learner tells of queues and memory."""
        found: dict[str, float] = {}
        if isinstance(told, Pulse | LearnerStats):
            found[f"memory/{role.kind.name.lower()}_mb"] = told.resident_bytes / 1e6
        if isinstance(told, LearnerStats):
            found |= {f"queues/{name}": size for name, size in told.queues.items()}
        elif isinstance(told, Pulse) and role.kind is RoleKind.ACTOR:
            found["queues/pushes"] = told.pushes
        gauges = self._report.gauges
        gauges.update({tag: max(value, gauges.get(tag, 0.0)) for tag, value in found.items()})

    def _fail(self, role: Role, cause: str, alive: bool, error: RayError | None = None) -> None:
        """Carries out the failure policy's decision; once per death, though several pieces may have died with it.

        Raises:
            RoleFailedError: it failed too often; from `error`, which holds the traceback of its process.
        """
        now = time.monotonic()
        role.failures.append((now, role.node))
        # Often a process is seen to be gone before its node is; once that is known too, the failure is forgiven.
        nodes = living_nodes()
        counted = [at for at, node in role.failures if node is None or node in nodes]
        lost = role.node is not None and role.node not in nodes
        decision = decide(role.name, counted, now, cause, lost)
        self._report.events.append(decision.reason)
        if decision.action == "stop":
            self._forget(role)  # what else it leaves unanswered must not raise again while the run is saved
            raise RoleFailedError(decision.reason) from error
        if role.kind is RoleKind.REPLAY and (stats := self._replay_stats[role.index]) and stats.stored_steps:
            serving = sum(shard.begun for shard in self._replay if shard is not role)
            others = f", {serving} of the others serve on" if serving else ""
            held = f"the {stats.stored_steps:,} steps that it held"
            fate = f"will read {held} from its journal" if self._journals[role.index] is not None else f"lost {held}"
            self._report.events.append(f"{role.name} {fate}{others}")
            self._replay_stats[role.index] = replace(stats, stored_steps=0)  # it may die again before it tells more
        role.not_before_s = now + decision.delay_s
        if not role.waits_to_begin:
            self._end(role)
        else:
            self._forget(role)
            if alive:
                _kill(role, for_good=False)
                role.not_before_s = now + max(decision.delay_s, 1.0)  # the old process must not get the next call
        role.started_anew(role.not_before_s)
        if role.kind is RoleKind.ACTOR:
            self._incarnations[role.index] = next_incarnation(self._folder, max(self._incarnations) + 1)
        if role is self._learner:
            before = self._updates
            self._updates = int(self._saved.meta["learner"]["updates"]) if self._saved else 0
            self._report.events.append(
                f"learner goes on from update {self._updates:,}, where it was saved last: {before - self._updates:,} "
                "updates are lost"
            )
            self._next_eval = next_multiple(self._updates, self._config.eval.period_updates)

    def _expect(self, role: Role, kind: Kind, ref: Any) -> None:
        # Pulses go out one at a time: a silent role is judged from its oldest unanswered one, not from what it did
        # before the supervisor itself was busy elsewhere (an evaluation may take minutes).
        now = time.monotonic()
        if kind == "pulse" or not role.under_way.total():
            role.seen_s = now
        if kind != "pulse" and not (role.under_way["run"] or role.under_way["evaluate"]):
            role.moved_s = now  # it rested
        self._under_way[ref] = (role, kind)
        role.under_way[kind] += 1

    def _forget(self, role: Role) -> None:
        """Waits no longer for anything from this role."""
        self._under_way = {ref: entry for ref, entry in self._under_way.items() if entry[0] is not role}
        role.under_way.clear()

    def _end(self, role: Role) -> None:
        self._forget(role)
        _kill(role, for_good=True)
        role.handle = None
        role.started_anew(time.monotonic())


def _cause(error: RayError) -> str:
    """What happened, as one line."""
    if isinstance(error, RayTaskError) and error.cause is not None:
        return " ".join(f"{type(error.cause).__name__}: {error.cause}".split())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The first line tells it, except where a constructor raised something: there a traceback follows.
    return lines[-1 if "creation task" in lines[0] else 0] if lines else type(error).__name__


def _kill(role: Role, for_good: bool) -> None:
    if role.handle is not None:
        with contextlib.suppress(RayError, ValueError):
            ray.kill(role.handle, no_restart=for_good)
