"""The learner: batches in; weights and priorities out."""

import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drqn_dist.config import TrainConfig
from drqn_dist.errors import CheckpointError, ConfigError, DrqnError
from drqn_dist.interfaces import EnvSpec, PrioritySink, WindowSource
from drqn_dist.metrics import Stopwatch, resident_bytes
from drqn_dist.network.torso import make_torso
from learner.feed import Batch, Feed, measures_frames
from learner.frame_store import StorePlan
from learner.outbox import Array, Outbox
from learner.probe import Probe, churn
from learner.train_state import TrainState
from learner.update import STATISTICS, Update
from learner.weight_publisher import WeightPublisher
from learner.windows import WindowTensors

UNDER_WAY = 8
"""Updates whose results may be on their way from the device before the learner waits for the oldest."""
COLLECT_S = 0.02
"""A learner that waits for a batch looks so often for results that have arrived."""


@dataclass(frozen=True)
class LearnerStats:
    """What the learner did since it was last asked; means over its updates, NaN without any."""

    updates: int
    """Over the whole run."""
    new_updates: int
    inserted_steps: int
    """Agent steps of the whole run that the replay had received when the last batch was drawn."""
    td_loss: float
    td_error: float
    """mean |δ| over trained steps"""
    q_value: float
    grad_norm: float
    """Before clipping."""
    sample_age: float
    """Updates between the policy that acted in a drawn window and the present one."""
    wait_s: float
    """Seconds spent waiting for batches."""
    train_s: float
    """Seconds spent on updates: on a GPU, on enqueueing them."""
    arrived: int = 0
    """Updates behind the means of loss, error, value and gradient; on a GPU the last ones come with the next piece."""
    wall_s: float = 0.0
    """Since it was last asked."""
    cpu_s: float = 0.0
    """CPU seconds of its process, all threads, since then."""
    told_s: float = 0.0
    """When it was asked, in seconds since 1970."""
    staleness_first: float = float("nan")
    """ΔQ at the first trained step, see `probe.Staleness`; like the next two a mean over probes, NaN without any."""
    staleness_last: float = float("nan")
    """ΔQ at the last trained step."""
    churn: float = float("nan")
    """Share of greedy actions that one update changes."""
    queues: dict[str, int] = field(default_factory=dict)
    """What waits in each, by name."""
    resident_bytes: int = 0
    """Of its process."""


def resolve_device(name: str) -> torch.device:
    """auto → cuda:0 where there is one, else cpu; cuda → cuda:0, because `set_device` wants a number.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (index and not index.isdecimal())):
        raise ConfigError(f"learner.device is {name!r}, but must be auto, cpu, cuda or cuda:N")
    device = torch.device(name if kind == "cpu" or index else "cuda:0")
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ConfigError(f"learner.device is {name!r}, but {torch.cuda.device_count()} GPUs are here; use auto or cpu")
    return device


class Learner:
    """One update after the other. Used from one thread."""

    def __init__(
        self,
        config: TrainConfig,
        spec: EnvSpec,
        source: WindowSource,
        priorities: PrioritySink,
        publisher: WeightPublisher,
        plan: StorePlan,
        threaded: bool = False,
    ) -> None:
        """
        Args:
            plan: where the frame store lies.
            threaded: a thread prepares the next draws meanwhile.
        """
        torch.set_num_threads(config.learner.torch_threads)
        self._config = config
        self._device = resolve_device(config.learner.device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # streams and events are made on the current device
        self.state = TrainState(config, spec, self._device)
        self._priorities, self._publisher = priorities, publisher
        self._outbox = Outbox(UNDER_WAY)
        self._inserted_steps = 0
        self._diverged: DrqnError | None = None
        self._watch = Stopwatch()
        self._reset_stats()
        publisher.publish(self.state.network, self.state.updates)
        with torch.device("meta"):  # only its way of folding frames is needed, not its weights
            torso = make_torso(config.network, spec.observation_shape, config.env.stack_frames)
        self.feed = Feed(config, spec, source, torso, plan, self._device, threaded)
        self.step = Update(config, self.state, self.feed.store)
        self._probe = Probe(config, self.state.network, self.feed.store)
        self._watched: WindowTensors | None = None
        """Windows whose greedy actions are looked at before and after the next update."""

    def update(self) -> None:
        """Trains on one batch.

        Raises:
            DrqnError: training has diverged (noticed some updates later on a GPU).
        """
        start = time.perf_counter()
        batch = self.feed.next()
        waited = time.perf_counter()
        if self.state.updates == 0 and measures_frames(self._config.network):
            self._center()
        self._train(batch)
        self._wait_s += waited - start
        self._train_s += time.perf_counter() - waited

    def run(self, seconds: float) -> LearnerStats:
        """Trains for about this long, also where no batch comes, and answers what was done; the unit in which a learner
        is driven remotely."""
        deadline = time.monotonic() + seconds
        while (now := time.monotonic()) < deadline:
            ready = self.feed.wait(min(deadline - now, COLLECT_S))
            self._outbox.collect()
            self._wait_s += time.monotonic() - now
            if ready:
                self.update()
        return self.take_stats()

    def take_stats(self) -> LearnerStats:
        """Statistics since the last call. On a GPU those of the last updates may come with the next one.

        Raises:
            DrqnError: training has diverged.
        """
        self._outbox.collect()
        self._check_diverged()
        means = self._sums / self._arrived if self._arrived else np.full(len(STATISTICS), np.nan)
        count = self.state.updates - self._stats_from
        wall_s, cpu_s = self._watch.lap()
        stats = LearnerStats(
            updates=self.state.updates,
            new_updates=count,
            inserted_steps=self._inserted_steps,
            **dict(zip(STATISTICS, means.tolist(), strict=True)),
            sample_age=self._age / count if count else float("nan"),
            **{name: _mean(values) for name, values in self._probes.items()},
            wait_s=self._wait_s,
            train_s=self._train_s,
            arrived=self._arrived,
            wall_s=wall_s,
            cpu_s=cpu_s,
            told_s=time.time(),
            queues={"updates": len(self._outbox), "draws": self.feed.waiting},
            resident_bytes=resident_bytes(),
        )
        self._reset_stats()
        return stats

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able facts for a checkpoint.

        Raises:
            DrqnError: training has diverged; such weights are not worth keeping.
        """
        self._outbox.flush()
        self._check_diverged()
        return self.state.to_tensors(), {"updates": self.state.updates, "inserted_steps": self._inserted_steps}

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """The inverse of `save`.

        Raises:
            CheckpointError: it belongs to another network or optimizer.
        """
        try:
            updates, inserted_steps = int(meta["updates"]), int(meta["inserted_steps"])
        except KeyError as error:
            raise CheckpointError(f"the checkpoint lacks {error}; it was not written by a learner") from error
        self.state.load_tensors(tensors, updates)
        if updates and measures_frames(self._config.network):
            self.feed.intake.measured()  # the centre came with the weights
        self._inserted_steps = inserted_steps
        self._reset_stats()
        self._publisher.publish(self.state.network, updates)

    def close(self) -> None:
        """Ends the thread that prepares draws."""
        self.feed.close()

    def _train(self, batch: Batch) -> None:
        config, state = self._config.learner, self.state
        if config.learning_rate_halving_updates:
            state.set_learning_rate(config.learning_rate_at(state.updates))
        watched, self._watched = self._watched, None
        before = None if watched is None else self._probe.greedy(watched)
        if batch.pasts is not None:
            self._watched = self._probe.windows_of(batch)
            found = self._probe.staleness(batch, self._watched)
            self._probes["staleness_first"].append(found.first)
            self._probes["staleness_last"].append(found.last)
        outputs = self.step(batch)
        if watched is not None and before is not None:
            self._probes["churn"].append(churn(before, self._probe.greedy(watched), watched.mask))
        state.updates += 1
        # Sent right behind what computed it; on a GPU it is read some updates later.
        self._outbox.post(outputs, partial(self._take, batch.ids, state.updates))
        self._outbox.collect()
        self._age += float(np.maximum(state.updates - 1 - batch.weight_versions, 0).mean())
        self._inserted_steps = batch.inserted_steps
        if state.updates % config.target_period_updates == 0:
            state.copy_target()
        if state.updates % config.publish_period_updates == 0:
            self._publisher.publish(state.network, state.updates, self._outbox)

    def _take(self, ids: npt.NDArray[np.int64], update: int, outputs: Array) -> None:
        """Deals with what an update answered."""
        priorities, statistics = outputs[: len(ids)].astype(np.float64), outputs[len(ids) :].astype(np.float64)
        if not np.isfinite(outputs).all():
            loss, td_error, q_value, norm = statistics.tolist()
            self._diverged = DrqnError(
                f"training diverged at update {update:,}: loss {loss:g}, |td| {td_error:g}, q {q_value:g}, gradient "
                f"norm {norm:g}; lower learner.learning_rate, or resume from an earlier checkpoint"
            )
        self._check_diverged()
        self._sums += statistics
        self._arrived += 1
        if self._config.replay.prioritized:
            self._priorities.update_priorities(ids, priorities)

    def _check_diverged(self) -> None:
        """Once training has diverged, every later call says so."""
        if self._diverged is not None:
            raise self._diverged

    def _center(self) -> None:
        """Sets the mean frame in both networks; actors get it with the next weights."""
        mean, deviation = self.feed.intake.measured()
        if self._config.network.center_pixels:
            self.state.network.center_pixels(mean)
        else:
            self.state.network.standardize(mean, deviation)
        self.state.copy_target()

    def _reset_stats(self) -> None:
        self._stats_from = self.state.updates
        self._sums, self._arrived = np.zeros(len(STATISTICS)), 0
        self._probes: dict[str, list[float]] = {"staleness_first": [], "staleness_last": [], "churn": []}
        self._age = self._wait_s = self._train_s = 0.0


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
