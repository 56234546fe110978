from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.replay_server.journaled import MADE


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No test leaves a file or a thread behind."""
    yield
    while MADE:
        MADE.pop().stop()
