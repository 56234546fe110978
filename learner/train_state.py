"""Everything the learner must keep to go on later."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drqn_dist.config import LearnerConfig, TrainConfig
from drqn_dist.errors import CheckpointError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import QNetwork
from drqn_dist.seeding import derive_seed


class TrainState:
    """Online network, target network, optimizer and the number of updates."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, device: torch.device) -> None:
        torch.manual_seed(derive_seed(config.seed, "network"))
        self.network = QNetwork(config.network, spec, config.env.stack_frames).to(device)
        self.target = QNetwork(config.network, spec, config.env.stack_frames).to(device)
        self.target.load_state_dict(self.network.state_dict())
        self.target.requires_grad_(False)
        self.optimizer = _optimizer(self.network, config.learner)
        self.updates = 0

    def to_tensors(self) -> dict[str, Tensor]:
        """All tensors, on the CPU, by names such as network.core.rnn.weight_ih_l0 and optimizer.3.exp_avg."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"target.{k}": v for k, v in self.target.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of `to_tensors`.

        Raises:
            CheckpointError: the tensors belong to another network; nothing was changed then.
        """
        load_network(self.network, tensors, "network.")
        load_network(self.target, tensors, "target.")
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".")
                state.setdefault(int(index), {})[slot] = value.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        try:
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint's optimizer does not fit this run: {error}") from error
        self.updates = updates


def load_network(network: QNetwork, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copies the tensors named `prefix`… into the network.

    Raises:
        CheckpointError: names or shapes differ; nothing was changed then.
    """
    mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    wanted = network.state_dict()
    if mine.keys() != wanted.keys():
        name = sorted(mine.keys() ^ wanted.keys())[0]
        raise CheckpointError(
            f"the checkpoint belongs to another network: {name} is in only one of the two; "
            "use the configuration that it was written with"
        )
    for name, tensor in wanted.items():
        if mine[name].shape != tensor.shape:
            raise CheckpointError(
                f"the checkpoint belongs to another network: {name} has shape {tuple(mine[name].shape)} there and "
                f"{tuple(tensor.shape)} here; use the configuration that it was written with"
            )
    network.load_state_dict(mine)


def _optimizer(network: QNetwork, config: LearnerConfig) -> torch.optim.Optimizer:
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            network.parameters(), config.learning_rate, alpha=config.rmsprop_alpha, eps=config.optimizer_epsilon
        )
    return torch.optim.Adam(network.parameters(), config.learning_rate, eps=config.optimizer_epsilon, fused=True)
