from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    """Networks here are so small that a second thread only adds waiting."""
    torch.set_num_threads(1)
