"""The learner: batches in; weights and priorities out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drqn_dist.config import TrainConfig
from drqn_dist.errors import CheckpointError, ConfigError, DrqnError
from drqn_dist.interfaces import EnvSpec, PrioritySink, WeightSnapshot
from drqn_dist.qlearning.priority import importance_weights, mixed_priority
from drqn_dist.stopwatch import Stopwatch
from learner.batch_loader import BatchSource, TensorBatch
from learner.loss import td_loss
from learner.train_state import TrainState
from learner.weight_publisher import WeightPublisher

CENTER_BATCHES = 16
"""Batches whose mean picture `network.center_pixels` subtracts; one alone shows too few situations."""


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
    publish_s: float = 0.0
    """The part of `train_s` in which new weights were published."""
    transfer_s: float = 0.0
    """Seconds in which batches were copied to the device, by the loader's threads beside the training."""
    wall_s: float = 0.0
    """Since it was last asked."""
    cpu_s: float = 0.0
    """CPU seconds of its process, all threads, since then."""
    told_s: float = 0.0
    """When it was asked, in seconds since 1970."""


def resolve_device(name: str) -> torch.device:
    """auto → cuda where there is one, else cpu.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (index and not index.isdecimal())):
        raise ConfigError(f"learner.device is {name!r}, but must be auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"learner.device is {name!r}, but {torch.cuda.device_count()} GPUs are here; use auto or cpu")
    return device


class Learner:
    """One update after the other. Used from one thread."""

    def __init__(
        self,
        config: TrainConfig,
        spec: EnvSpec,
        batches: BatchSource,
        priorities: PrioritySink,
        publisher: WeightPublisher,
    ) -> None:
        torch.set_num_threads(config.learner.torch_threads)
        self._config = config
        self._device = resolve_device(config.learner.device)
        self.state = TrainState(config, spec, self._device)
        self._parameters = list(self.state.network.parameters())
        self._batches, self._priorities, self._publisher = batches, priorities, publisher
        self._pending: tuple[npt.NDArray[np.int64], Tensor] | None = None
        self._inserted_steps = 0
        self._pictures: Tensor | float = 0.0
        self._num_pictures: Tensor | float = 0.0
        self._measured_batches = 0
        self._watch = Stopwatch()
        self._reset_stats()
        publisher.publish(self.state.network, self.state.updates)

    def update(self) -> None:
        """Trains on one batch; where pixels are to be centred, the first batches are only looked at.

        Raises:
            DrqnError: training has diverged (noticed one update later on a GPU).
        """
        start = time.perf_counter()
        batch = self._batches.next()
        self._wait_s += time.perf_counter() - start
        centred = self.state.updates > 0 or not self._config.network.center_pixels
        if not centred and not self._measure(batch):
            return
        self._train(batch)
        updates = self.state.updates
        if updates % self._config.learner.target_period_updates == 0:
            self.state.target.load_state_dict(self.state.network.state_dict())
        if updates % self._config.learner.publish_period_updates == 0:
            began = time.perf_counter()
            self._publisher.publish(self.state.network, updates)
            self._publish_s += time.perf_counter() - began
        self._train_s += time.perf_counter() - start

    def run(self, seconds: float) -> LearnerStats:
        """Trains for about this long and answers what was done; the unit in which a learner is driven remotely."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.update()
        return self.take_stats()

    def take_stats(self) -> LearnerStats:
        """Statistics since the last call.

        Raises:
            DrqnError: training has diverged.
        """
        count = self.state.updates - self._stats_from
        sums = self._means() if count else [float("nan")] * 4
        wall_s, cpu_s = self._watch.lap()
        stats = LearnerStats(
            updates=self.state.updates,
            new_updates=count,
            inserted_steps=self._inserted_steps,
            td_loss=sums[0],
            td_error=sums[1],
            q_value=sums[2],
            grad_norm=sums[3],
            sample_age=self._age / count if count else float("nan"),
            wait_s=self._wait_s,
            train_s=self._train_s - self._wait_s,
            publish_s=self._publish_s,
            wall_s=wall_s,
            cpu_s=cpu_s,
            told_s=time.time(),
        )
        self._reset_stats()
        return stats

    def save(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able facts for a checkpoint.

        Raises:
            DrqnError: training has diverged; such weights are not worth keeping.
        """
        self._send_priorities()
        self._means()
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
        self._inserted_steps = inserted_steps
        self._reset_stats()
        self._publisher.publish(self.state.network, updates)

    def adopt(self, weights: WeightSnapshot) -> None:
        """Goes on with these weights of an earlier update, in both networks; the optimizer keeps its moments."""
        self.state.network.load_vector(weights.vector)
        self.state.target.load_state_dict(self.state.network.state_dict())
        self._publisher.publish(self.state.network, self.state.updates)

    def _train(self, batch: TensorBatch) -> None:
        config, state = self._config, self.state
        importance = importance_weights(batch.probabilities, batch.population, config.replay.importance_exponent)
        weights = torch.from_numpy(importance).to(self._device)
        result = td_loss(state.network, state.target, batch, config.learner, weights)
        state.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()  # type: ignore[no-untyped-call]
        norm = self._clip()
        if config.learner.learning_rate_halving_updates:
            for group in state.optimizer.param_groups:
                group["lr"] = config.learner.learning_rate_at(state.updates)
        state.optimizer.step()
        state.updates += 1

        steps = batch.mask.sum().clamp(min=1.0)
        td_error = (result.td_errors.abs() * batch.mask).sum() / steps
        q_value = (result.q_taken * batch.mask).sum() / steps
        self._sums += torch.stack([result.loss.detach(), td_error, q_value, norm])
        self._age += float(np.maximum(state.updates - 1 - batch.weight_versions, 0).mean())
        self._inserted_steps = batch.inserted_steps
        # On a GPU the values of the update before are ready by now; asking for this one's would wait for it.
        self._send_priorities()
        values = mixed_priority(result.td_errors, batch.mask, config.replay.priority_eta)
        self._pending = (batch.ids, values)
        if self._device.type == "cpu":
            self._send_priorities()

    def _send_priorities(self) -> None:
        if self._pending is not None and self._config.replay.prioritized:
            ids, values = self._pending
            priorities = values.double().cpu().numpy()
            if not np.isfinite(priorities).all():
                raise self._diverged()
            self._priorities.update_priorities(ids, priorities)
        self._pending = None

    def _means(self) -> list[float]:
        """Loss, |td|, q and gradient norm, averaged over the updates since the last statistics."""
        if not torch.isfinite(self._sums).all():
            raise self._diverged()
        means: list[float] = (self._sums / max(1, self.state.updates - self._stats_from)).tolist()
        return means

    def _diverged(self) -> DrqnError:
        loss, td_error, q_value, norm = self._sums.tolist()
        return DrqnError(
            f"training diverged before update {self.state.updates:,}: since the last statistics the sums are loss "
            f"{loss:g}, |td| {td_error:g}, q {q_value:g}, gradient norm {norm:g}; lower learner.learning_rate, or "
            "resume from an earlier checkpoint"
        )

    def _clip(self) -> Tensor:
        """Clips the gradients; answers their global norm before."""
        config = self._config.learner
        if config.clip_gradient == "norm":
            return torch.nn.utils.clip_grad_norm_(self._parameters, config.clip_gradient_at)
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if config.clip_gradient == "value":
            torch.nn.utils.clip_grad_value_(self._parameters, config.clip_gradient_at)
        return norm

    def _measure(self, batch: TensorBatch) -> bool:
        """Adds a batch to the mean picture. The last one needed sets it in both networks; actors get it with the next
        weights.

        Returns:
            whether that was the last one.
        """
        images = batch.inputs.observations[:, self._config.learner.burn_in_steps :][:, : batch.mask.shape[1]]
        self._pictures += images[batch.mask > 0].float().sum(0)
        self._num_pictures += batch.mask.sum()
        self._measured_batches += 1
        if self._measured_batches < CENTER_BATCHES:
            return False
        self.state.network.center_pixels(self._pictures / self._num_pictures)
        self.state.target.load_state_dict(self.state.network.state_dict())
        return True

    def _reset_stats(self) -> None:
        self._stats_from = self.state.updates
        self._sums = torch.zeros(4, device=self._device)
        self._age = self._wait_s = self._train_s = self._publish_s = 0.0
