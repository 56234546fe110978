"""What files may say that nobody meant, and how much memory reading them may take."""

from __future__ import annotations

import json
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from drqn_dist.errors import DrqnError

EXAMPLES = os.environ.get("DRQN_FUZZ")
"""DRQN_FUZZ=20000 pytest tests/test_hostile_*.py tries so many of each, other ones each time."""
FUZZ = settings(
    max_examples=int(EXAMPLES or 100),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
DEEP = 100_000
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**400), 10**400),
        st.sampled_from([2**31, 2**53, 2**62, 2**63, 2**64, -1, 0, 10**4000]),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(["\0", "\ud800", "None", "nan", "1e999", "../..", "", "a" * 5_000]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@contextmanager
def little_memory(extra_bytes: int = 256 * 1024**2) -> Iterator[None]:
    """Whoever asks for more than this in addition to what there is gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def little_allocated(most_bytes: int = 40 * 1024**2) -> Iterator[None]:
    """Python allocates no more than this within."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """Where the values within tables and lists are."""
    inner: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, dict):
        inner = iter(value.items())
    elif isinstance(value, list):
        inner = iter(enumerate(value))
    for key, below in inner:
        yield (key,)
        yield from ((key, *path) for path in paths(below))


def changed(draw: Callable[[st.SearchStrategy[Any]], Any], value: Any) -> Any:
    """The same with one or two values left out, or others."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(list(paths(value))))
        place = value
        for key in way:
            place = place[key]
        if draw(st.integers(0, 4)) == 0:
            del place[last]
        else:
            place[last] = draw(JSON)
        if not list(paths(value)):
            break
    return value


@contextmanager
def refused_with(kind: type[DrqnError], said: str) -> Iterator[None]:
    """What is done within is done, or refused with an error of this kind alone, which says so in a line."""
    try:
        yield
    except kind as error:
        message = str(error)
    else:
        return
    assert said in message
    assert len(message) < 2_000
