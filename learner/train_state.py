"""Everything the learner must keep to go on later."""

from __future__ import annotations

import torch
from torch import Tensor

from drqn_dist.config import LearnerConfig, TrainConfig
from drqn_dist.errors import CheckpointError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import QNetwork
from drqn_dist.seeding import derive_seed

_SLOTS = {"adam": ("step", "exp_avg", "exp_avg_sq"), "rmsprop": ("step", "square_avg")}
"""What each optimizer keeps of a parameter."""


class TrainState:
    """Online network, target network, optimizer and the number of updates."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, device: torch.device) -> None:
        torch.manual_seed(derive_seed(config.seed, "network"))
        self.network = QNetwork(config.network, spec, config.env.stack_frames).to(device)
        self.target = QNetwork(config.network, spec, config.env.stack_frames).to(device)
        self.target.load_state_dict(self.network.state_dict())
        self.target.requires_grad_(False)
        self.optimizer = _optimizer(self.network, config.learner)
        self._slots = _SLOTS[config.learner.optimizer]
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
            CheckpointError: the tensors belong to another network or optimizer; nothing was changed then.
        """
        network = _network_part(self.network, tensors, "network.")
        target = _network_part(self.target, tensors, "target.")
        moments = self._optimizer_part(tensors)
        self.network.load_state_dict(network)
        self.target.load_state_dict(target)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.updates = updates

    def _optimizer_part(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        parameters = list(self.network.parameters())
        wanted = {
            f"optimizer.{index}.{slot}": (index, slot) for index in range(len(parameters)) for slot in self._slots
        }
        mine = {name: t for name, t in tensors.items() if name.startswith("optimizer.")}
        if mine and mine.keys() != wanted.keys():  # there are none before the first update
            name = sorted(mine.keys() ^ wanted.keys())[0]
            raise CheckpointError(
                f"the checkpoint belongs to another optimizer: {name} is in only one of the two; "
                "use the configuration that it was written with"
            )
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in mine.items():
            index, slot = wanted[name]
            like = parameters[index]
            if slot != "step":
                if tensor.shape != like.shape:
                    raise CheckpointError(
                        f"the checkpoint belongs to another network: {name} has shape {tuple(tensor.shape)} there and "
                        f"{tuple(like.shape)} here; use the configuration that it was written with"
                    )
                # The fused optimizer walks through memory: moments must lie there in the order of their parameter.
                tensor = torch.empty_like(like, requires_grad=False).copy_(tensor)
            moments.setdefault(index, {})[slot] = tensor.clone()
        return moments


def load_network(network: QNetwork, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copies the tensors named `prefix`… into the network.

    Raises:
        CheckpointError: names or shapes differ; nothing was changed then.
    """
    network.load_state_dict(_network_part(network, tensors, prefix))


def _network_part(network: QNetwork, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
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
    return mine


def _optimizer(network: QNetwork, config: LearnerConfig) -> torch.optim.Optimizer:
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            network.parameters(), config.learning_rate, alpha=config.rmsprop_alpha, eps=config.optimizer_epsilon
        )
    return torch.optim.Adam(network.parameters(), config.learning_rate, eps=config.optimizer_epsilon, fused=True)
