from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, those of a file stay together, and so do all that share one Ray."""
    for item in items:
        shared = "local_ray" in getattr(item, "fixturenames", ()) or item.path.name == "test_local_ray.py"
        item.add_marker(pytest.mark.xdist_group("local_ray" if shared else item.nodeid.split("::")[0]))


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    """Networks here are so small that a second thread only adds waiting."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def local_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """One Ray for all tests that take it; runs started meanwhile use it and leave it running."""
    from drqn_dist.distributed.local_ray import LocalRay

    if "PYTEST_XDIST_WORKER" in os.environ:
        grouped = any(item.nodeid.endswith("@local_ray") for item in request.session.items)
        assert grouped, "pytest-xdist did not group the tests: they need all of one Ray, in their order"
    owner = LocalRay(None, cpus=16, store_bytes=512 * 1024**2)
    owner._closing.set()  # tests stop roles to see what a run's supervisor does; this Ray is none of a run
    yield
    owner.close()
