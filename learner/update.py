"""One update as one function of static shape: on a GPU a CUDA graph, elsewhere a call."""

from collections.abc import Callable

import torch
from torch import Tensor

from drqn_dist.config import TrainConfig
from drqn_dist.qlearning.priority import mixed_priority
from learner.feed import Batch
from learner.frame_store import FrameStore, Gathered
from learner.loss import td_loss
from learner.train_state import TrainState
from learner.windows import read_windows, rows_of

STATISTICS = ("td_loss", "td_error", "q_value", "grad_norm")
"""What an update answers behind its priorities: loss, mean |δ| and mean q over trained steps, and the gradient's norm
before clipping."""
_WARM_UP = 3


class Update:
    """gather → burn-in and unroll of both networks → loss → backward → clip → optimizer → priorities, statistics.

    Nothing in it asks the device a question, and no shape depends on a value: what a GPU runs as a graph is the very
    function that runs elsewhere. The learning rate, target copies and new weights change tensors in place between two
    updates.
    """

    def __init__(self, config: TrainConfig, state: TrainState, store: FrameStore) -> None:
        self._config, self._state, self._store = config, state, store
        self._shape, self._stack = config.window, config.env.stack_frames
        self._parameters = list(state.network.parameters())
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Batch | None = None
        self._outputs: Tensor | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Trains on a batch; on a GPU the work is only enqueued.

        Returns:
            float32 [B + len(STATISTICS)] on the learner's device, priorities first; overwritten by the next update.
        """
        if self._parameters[0].device.type != "cuda":
            return self._train(batch.places, batch.weights, batch.gathered)
        if self._graph is None:
            self._capture(batch)
        assert self._graph is not None
        assert self._inputs is not None
        assert self._outputs is not None
        for mine, given in zip(_tensors(self._inputs), _tensors(batch), strict=True):
            mine.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs

    def _train(self, places: Tensor, weights: Tensor, gathered: Gathered | None) -> Tensor:
        config, state, network = self._config, self._state, self._state.network
        if gathered is None:
            gathered = self._store.gather(*rows_of(places))
        windows = read_windows(gathered, places, self._shape, network.uses_last_action_and_reward)
        result = td_loss(network, state.target, windows, config.learner, self._shape, self._stack, weights)
        result.loss.backward()  # type: ignore[no-untyped-call]
        norm = self._clip()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

        mask = windows.mask
        steps = mask.sum().clamp(min=1.0)
        td_error = (result.td_errors.abs() * mask).sum() / steps
        q_value = (result.q_taken * mask).sum() / steps
        priorities = mixed_priority(result.td_errors, mask, config.replay.priority_eta)
        return torch.cat([priorities, torch.stack([result.loss.detach(), td_error, q_value, norm])])

    def _clip(self) -> Tensor:
        """Clips the gradients; answers their global norm before."""
        config = self._config.learner
        if config.clip_gradient == "norm":
            return torch.nn.utils.clip_grad_norm_(self._parameters, config.clip_gradient_at, foreach=True)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None], foreach=True)
        if config.clip_gradient == "value":
            torch.nn.utils.clip_grad_value_(self._parameters, config.clip_gradient_at, foreach=True)
        return norm

    def _capture(self, batch: Batch) -> None:
        """Records the update on a GPU. Warming up trains for real, hence what it changed is put back."""
        device = self._parameters[0].device
        self._inputs = batch._replace(
            places=batch.places.to(device),
            weights=batch.weights.to(device),
            gathered=None if batch.gathered is None else Gathered(*(x.to(device) for x in batch.gathered)),
        )
        inputs = self._inputs
        run: Callable[[], Tensor] = lambda: self._train(inputs.places, inputs.weights, inputs.gathered)  # noqa: E731
        before = [t.detach().clone() for t in self._state.trained_tensors()]
        side, recorded = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # The feeding thread pins memory meanwhile, which must not spoil the recording.
        with torch.cuda.graph(graph, stream=recorded, capture_error_mode="thread_local"):
            self._outputs = run()
        self._graph = graph
        with torch.no_grad():
            torch._foreach_copy_(self._state.trained_tensors(), before)


def _tensors(batch: Batch) -> list[Tensor]:
    return [batch.places, batch.weights, *(batch.gathered or ())]
