from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    """Networks here are so small that a second thread only adds waiting."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that take it; runs started meanwhile use it and leave it running."""
    from drqn_dist.distributed.local_ray import LocalRay

    owner = LocalRay(None, cpus=16, store_bytes=512 * 1024**2)
    yield
    owner.close()
