"""Everything the learner must keep to go on later."""

import torch
from torch import Tensor

from drqn_dist.config import LearnerConfig, TrainConfig
from drqn_dist.errors import CheckpointError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import QNetwork
from drqn_dist.seeding import derive_seed

SLOTS = {"adam": ("step", "exp_avg", "exp_avg_sq"), "rmsprop": ("step", "square_avg")}
"""What each optimizer keeps of a parameter."""


class TrainState:
    """Online network, target network, optimizer and the number of updates."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, device: torch.device) -> None:
        torch.manual_seed(derive_seed(config.seed, "network"))
        self.network = QNetwork(config.network, spec, config.env.stack_frames).to(device)
        self.target = QNetwork(config.network, spec, config.env.stack_frames).to(device)
        self.target.load_state_dict(self.network.state_dict())
        self.target.requires_grad_(False)
        for module in (*self.network.modules(), *self.target.modules()):
            if isinstance(module, torch.nn.RNNBase):
                module.flatten_parameters()  # or cuDNN copies them together at every call
        self.optimizer = _optimizer(self.network, config.learner, device)
        self._slots = SLOTS[config.learner.optimizer]
        self._make_moments()
        self.updates = 0

    def trained_tensors(self) -> list[Tensor]:
        """All that an update changes, in a fixed order: weights and the optimizer's moments."""
        return [*self.network.parameters(), *self._moments().values()]

    def copy_target(self) -> None:
        """The target network becomes the online network; in place."""
        with torch.no_grad():
            for mine, other in zip(self.target.state_dict().values(), self.network.state_dict().values(), strict=True):
                mine.copy_(other)

    def set_learning_rate(self, rate: float) -> None:
        """Of the next updates."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _make_moments(self) -> None:
        """Zero moments, so that they have their places before the first update: a graph and `load_tensors` write into
        them. A step along a zero gradient leaves the weights as they are."""
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for moment in self._moments().values():
            moment.zero_()

    def _moments(self) -> dict[str, Tensor]:
        """What the optimizer keeps, by names such as 3.exp_avg."""
        parameters = enumerate(self.network.parameters())
        return {f"{index}.{slot}": self.optimizer.state[p][slot] for index, p in parameters for slot in self._slots}

    def to_tensors(self) -> dict[str, Tensor]:
        """All tensors, on the CPU, by names such as network.core.rnn.weight_ih_l0 and optimizer.3.exp_avg."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"target.{k}": v for k, v in self.target.state_dict().items()}
        tensors |= {f"optimizer.{name}": moment for name, moment in self._moments().items()}
        return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of `to_tensors`.

        Raises:
            CheckpointError: the tensors belong to another network or optimizer; nothing was changed then.
        """
        network = _network_part(self.network, tensors, "network.")
        target = _network_part(self.target, tensors, "target.")
        mine = self._moments()
        moments = _matching(mine, tensors, "optimizer.", "optimizer")
        self.network.load_state_dict(network)
        self.target.load_state_dict(target)
        # In place: the fused optimizer needs their memory's order, a graph their addresses.
        for name, moment in mine.items():
            moment.copy_(moments[name])
        self.updates = updates


def load_network(network: QNetwork, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copies the tensors named `prefix`… into the network.

    Raises:
        CheckpointError: names or shapes differ; nothing was changed then.
    """
    network.load_state_dict(_network_part(network, tensors, prefix))


def _network_part(network: QNetwork, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return _matching(network.state_dict(), tensors, prefix, "network")


def _matching(wanted: dict[str, Tensor], tensors: dict[str, Tensor], prefix: str, whose: str) -> dict[str, Tensor]:
    """The tensors named `prefix`…, under their names without it, which must be just those wanted."""
    found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    for name in sorted(found.keys() | wanted.keys()):
        there, here = (_described(part.get(name)) for part in (found, wanted))
        if there != here:
            raise CheckpointError(
                f"the checkpoint belongs to another {whose}: {prefix}{name} is {there} there and {here} here; use the "
                "configuration that it was written with"
            )
    return found


def _described(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    kind = "" if tensor.dtype is torch.float32 else f" of {tensor.dtype}"
    return f"of shape {tuple(tensor.shape)}{kind}"


def _optimizer(network: QNetwork, config: LearnerConfig, device: torch.device) -> torch.optim.Optimizer:
    cuda = device.type == "cuda"
    # A graph reads the rate from the device.
    rate = torch.tensor(config.learning_rate, device=device) if cuda else config.learning_rate
    parameters, epsilon = list(network.parameters()), config.optimizer_epsilon
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, alpha=config.rmsprop_alpha, eps=epsilon, capturable=cuda)
    return torch.optim.Adam(parameters, rate, eps=epsilon, fused=True, capturable=cuda)
