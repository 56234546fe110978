"""The update as one function of static shape that asks the device nothing; tests/gpu runs it as a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.learner.batches import FixedDraws
from tests.learner.preset_cases import NAMES, check_same_updates, eager, graphed, learner_on, scaled_case
from tests.learner.reading import Reader, full_plan

ASKS = ("item", "_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "_unique2", "equal")
"""Operations whose answer, or whose answer's shape, only the device knows."""
WAITS = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__", "tensor", "as_tensor")
"""Calls that wait for the device, or copy to it from memory that is not pinned."""


class Dispatched(TorchDispatchMode):
    """Writes down every operation with the shapes it works on."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
        self.masks = 0
        self.quiet = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.quiet:
            tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            name = func.overloadpacket.__name__
            self.operations.append((name, tuple(tuple(x.shape) for x in tensors)))
            # Reading or writing by a mask has a shape that only the device knows.
            self.masks += name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:])
        return func(*args, **(kwargs or {}))

    def asked(self) -> list[str]:
        return [name for name, _ in self.operations if name in ASKS]


class Called(TorchFunctionMode):
    """Writes down calls that wait for the device. On a CPU alone `one_hot` looks at its classes."""

    def __init__(self, dispatched: Dispatched) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._dispatched = dispatched

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        names = [x for x in (*args[1:], *(kwargs or {}).values()) if isinstance(x, str)]
        if name in WAITS or (name == "to" and "cpu" in names):
            self.waits.append(name)
        self._dispatched.quiet = func is F.one_hot or func is torch.nn.functional.one_hot
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._dispatched.quiet = False


def watched(run: Callable[[], Any]) -> tuple[Dispatched, Called]:
    dispatched = Dispatched()
    called = Called(dispatched)
    with called, dispatched:
        run()
    return dispatched, called


@pytest.mark.parametrize("name", NAMES)
def test_an_update_of_every_preset_asks_the_device_nothing(name: str) -> None:
    learner = learner_on(scaled_case(name), "cpu")
    for _ in range(2):
        batch = learner.feed.next()
        dispatched, called = watched(
            lambda batch=batch: learner.step._train(batch.places, batch.weights, batch.gathered)
        )
        assert len(dispatched.operations) > 100
        assert dispatched.asked() == []
        assert dispatched.masks == 0
        assert called.waits == []


def test_the_watch_sees_what_it_looks_for() -> None:
    x = torch.tensor([1.0, 0.0])
    for ask in (
        lambda: x[0].item(),
        lambda: bool(x[0] > 0),
        lambda: float(x[0]),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x.numpy(),
        lambda: x.to("cpu"),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: torch.tensor(1.0),
        lambda: torch.unique(x),
    ):
        dispatched, called = watched(ask)
        assert dispatched.asked() or dispatched.masks or called.waits
    dispatched, called = watched(lambda: F.one_hot(torch.arange(3), 4).float() * 2)
    assert not any((dispatched.asked(), dispatched.masks, called.waits))
    assert [name for name, _ in dispatched.operations][-1] == "mul"


def whole_and_short(name: str) -> tuple[Any, list[list[int]]]:
    """A case, and its windows in two batches: with nothing missing, and with short burn-ins and ends."""
    case = scaled_case(name)
    config, pool = case.config, case.game.windows
    size = config.learner.batch_windows
    count = len(pool.ids)
    rows = [[(first + k) % count for k in range(size)] for first in range(0, count, size)]
    reader = Reader(config, case.spec, FixedDraws(config, case.game, picks=rows), full_plan(config, case.spec))
    whole, short = [], []
    for batch in rows:
        windows = reader.next().windows
        for i, row in enumerate(batch):
            beyond = windows.steps_left[i, 0] > config.window.unroll + config.window.n_step
            (whole if beyond and windows.skipped[i] == 0 else short).append(row)
    assert whole
    assert short
    return case, [[*whole, *whole, *whole][:size], [*short, *short, *short][:size]]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_done_depends_on_no_value(name: str) -> None:
    case, picks = whole_and_short(name)
    learner = learner_on(case, "cpu", picks=picks)
    eager(learner, learner.feed.next())
    runs = []
    for _ in range(2):
        batch = learner.feed.next()
        runs.append(watched(lambda batch=batch: eager(learner, batch))[0].operations)
    assert len(runs[0]) > 100
    assert runs[0] == runs[1]


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("name", NAMES)
def test_an_update_of_every_preset_trains_by_the_gradient_of_its_loss(name: str, place: Any) -> None:
    case = scaled_case(name)
    mine, other = learner_on(case, "cpu", place), learner_on(case, "cpu")
    check_same_updates(case, mine, graphed, other, eager, loss=1e-6, gradient=1e-6)
