"""All roles in one process, in a fixed order: the plain loop to compare with, which repeats bit for bit on a CPU."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from actors.actor import Actor
from actors.evaluator import Evaluation, EvaluationStopped, Evaluator, Played
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import (
    CheckpointError,
    ConfigError,
    EnvError,
    EnvFailedError,
    FragmentError,
    RunFolderError,
    shown,
)
from drqn_dist.interfaces import WeightSnapshot
from drqn_dist.state import State, together
from drqn_dist.training.memory import plan_frame_store
from drqn_dist.training.session import Report, Saved, journal_folders, never, next_incarnation
from learner.learner import Learner, resolve_device
from learner.weight_publisher import WeightPublisher
from replay_server.make import LocalSource, make_replay
from replay_server.replay import Replay

_SERIAL = "serial."
"""Before the names of what a checkpoint holds beside the learner."""
_UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a state may raise that is not what it should be."""


class SerialSession:
    """Actors step in turn; after each batched step the learner catches up as far as the rate limiter lets it."""

    def __init__(self, config: TrainConfig, restored: Saved | None = None, folder: Path | None = None) -> None:
        """
        Args:
            folder: of the run, where the replay keeps its journal.

        Raises:
            ConfigError: the rate limiter could block the only thread there is.
            EnvError, CheckpointError
        """
        self._config = config
        # What an environment completes at once, and what came in the rest of a push period.
        burst = config.actor.envs_per_actor * (config.window.burst + config.push_period - 1)
        if config.rate_tolerance_steps < burst:
            raise ConfigError(
                f"replay.rate_tolerance_steps ({config.rate_tolerance_steps:,}) is smaller than what one actor may "
                f"push at once ({config.actor.envs_per_actor} environments of {config.window.burst} + "
                f"{config.push_period - 1} steps, {burst:,}): in serial mode nobody could take the excess away; raise "
                "it, or use None for automatic"
            )
        spec = env_spec(config.env)
        self.replay = make_replay(config)
        self.publisher = WeightPublisher()
        plan = plan_frame_store(config, spec)
        self._notes = [*notes_on(resolve_device(config.learner.device)), str(plan)]
        source = LocalSource(self.replay, config.learner.batch_windows)
        self.learner = Learner(config, spec, source, self.replay, self.publisher, plan)
        meta = restored.meta if restored else {}
        if restored:
            self.learner.load(restored.tensors, meta["learner"])
        replay = meta["replay"][0] if restored else None
        try:
            note = self.replay.begin(replay, journal_folders(config, folder)[0], exact=True)
        except OSError as error:
            raise RunFolderError(f"cannot use the replay's journal in {folder}: {error.strerror}") from error
        self._notes += [f"replay {note}"] if note else []
        self._incarnation = next_incarnation(folder, int(meta.get("incarnation", -1)) + 1)
        self.agent_steps = int(meta.get("agent_steps", 0))
        self._turn = 0
        self.actors = [self._new_actor(index) for index in range(config.num_actors)]
        if restored and "serial" in meta:
            self._go_on(restored)
        self._evaluators: dict[int, Evaluator] = {}
        self._next_eval = next_multiple(self.learner.state.updates, config.eval.period_updates)

    def advance(self, seconds: float, stopping: Callable[[], bool] = never) -> Report:
        report, deadline = Report(notes=self._notes), time.monotonic() + seconds
        self._notes = []
        while (
            self.agent_steps < self._config.total_steps
            and not stopping()
            and not report.evaluations  # who stops at a return stops at the same step every time
            and time.monotonic() < deadline
        ):
            self.turn(report, stopping)
        report.actors += [actor.take_stats() for actor in self.actors]
        report.learner.append(self.learner.take_stats())
        report.replay = self.replay.stats()
        return report

    def turn(self, report: Report, stopping: Callable[[], bool] = never) -> None:
        """One batched step of one actor, then as many updates as are due, with the evaluations among them."""
        actor = self.actors[self._turn % len(self.actors)]
        with _playing(f"actor {self._turn % len(self.actors)}"):
            self.agent_steps += actor.step()
        self._turn += 1
        while self.replay.can_sample():
            self.learner.update()
            if self.learner.state.updates == self._next_eval:
                self._next_eval = next_multiple(self._next_eval, self._config.eval.period_updates)
                with suppress(EvaluationStopped):
                    episodes = self._config.eval.episodes
                    report.evaluations.append(self._evaluate(self._config.seed, episodes, stopping))

    def save(self, patience_s: float = math.inf) -> Saved:
        tensors, learner = self.learner.save()
        published = self.publisher.latest(-1)
        assert published is not None
        state = together(
            feed=self.learner.feed.get_state(),
            published=State({"vector": published.vector}, {"version": published.version}),
            **{f"actor {index}": actor.get_state() for index, actor in enumerate(self.actors)},
        )
        return Saved(
            tensors | {f"{_SERIAL}{name}": torch.from_numpy(array) for name, array in state.arrays.items()},
            {
                "learner": learner,
                "replay": [self.replay.save()],
                "incarnation": self._incarnation,
                "agent_steps": self.agent_steps,
                "turn": self._turn,
                "serial": state.values,
            },
        )

    def _new_actor(self, index: int) -> Actor:
        sink = _Sink(self.replay)
        return Actor(self._config, index, sink, self.publisher, self.agent_steps, self._incarnation)

    def _go_on(self, restored: Saved) -> None:
        """Everything is as it was when that was saved; where that cannot be, actors begin new games, as after a
        failure."""
        saved = {n.removeprefix(_SERIAL): tensor for n, tensor in restored.tensors.items() if n.startswith(_SERIAL)}
        try:
            state = State({name: tensor.numpy() for name, tensor in saved.items()}, restored.meta["serial"])
            for index, actor in enumerate(self.actors):
                actor.set_state(state.part(f"actor {index}"))
            published = state.part("published")
            vector = np.empty_like(self.learner.state.network.to_vector())
            published.fill("vector", vector)
            version, turn = published.number("version"), State(values=restored.meta).number("turn")
            if version < 0:
                raise ValueError(f"the weights that they play with are of update {version}")
            self.learner.feed.set_state(state.part("feed"))
        except (EnvError, EnvFailedError, CheckpointError, FragmentError, *_UNFIT) as error:
            self._notes.append(f"actors begin new games: {shown(error, 1_000)}")
            for actor in self.actors:
                actor.close()
            self.actors = [self._new_actor(index) for index in range(self._config.num_actors)]
            return
        self.publisher.offer(WeightSnapshot(version, vector))
        self._turn = turn
        self._incarnation = int(restored.meta["incarnation"])

    def evaluate(self, seed: int, progress: Callable[[Played], object] = never) -> Evaluation:
        return self._evaluate(seed, self._config.eval.final_episodes or self._config.eval.episodes, progress=progress)

    def _evaluate(
        self,
        seed: int,
        episodes: int,
        stopping: Callable[[], bool] = never,
        progress: Callable[[Played], object] = never,
    ) -> Evaluation:
        if episodes not in self._evaluators:
            self._evaluators[episodes] = Evaluator(self._config, episodes)
        state = self.learner.state
        weights = WeightSnapshot(state.updates, state.network.to_vector())
        with _playing("the evaluator"):
            return self._evaluators[episodes].evaluate(weights, seed, progress, stopping)

    def close(self) -> None:
        for actor in self.actors:
            actor.close()
        self.actors = []
        for evaluator in self._evaluators.values():
            evaluator.close()
        self._evaluators = {}
        self.replay.stop()


@contextmanager
def _playing(who: str) -> Iterator[None]:
    """Says whose environment it was that raised."""
    try:
        yield
    except EnvFailedError as error:
        raise EnvFailedError(f"{who}: {error}") from error


class _Sink:
    """Pushes straight into the replay."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def push(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            self._replay.push(payload)


def notes_on(device: torch.device) -> list[str]:
    """What a person should know about a serial run whose learner trains there."""
    if device.type == "cpu":
        return []
    return [f"the learner trains on {device}: serial mode does not repeat bit for bit there, only on the CPU"]


def next_multiple(done: int, period: int | None) -> int:
    """The next multiple of `period` above `done`; -1, which never comes, without a period."""
    return (done // period + 1) * period if period else -1
