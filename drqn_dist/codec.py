"""Fragment <-> bytes: the format on the wire, in the replay and in its journal. The only user of msgpack.

::

    offset  0        4         6        10
            | magic  | schema  | crc32  | msgpack list of the fields of `_Envelope`, in that order |
              4 bytes  uint16    uint32   ^^^^^^^^^^^^ what crc32 covers ^^^^^^^^^^^^^^^^^^^^^^^^^^

Numbers are little-endian. Observations are one zstd frame (level 1); the small arrays are raw: actions in the
smallest integer type that holds them, rewards, priorities and states as float32.

Measured on Pong with random actions, fragments of 32 steps without states, one busy core: 47 bytes a frame at 64x64
and 55 at 84x84 in all; decoding 2.7 to 4 µs a frame at either size, of which decompression is 0.6 and 1.3; encoding 4
to 5; a header 25 to 35 µs a fragment. Each stored state adds 4 bytes a unit. Decompressing straight into a caller's
array was no faster than into fresh memory, so there is no such path.

Every function is thread-safe; decompression releases the GIL. Nothing read here can execute code.
"""

from __future__ import annotations

import math
import struct
import threading
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from drqn_dist.errors import FragmentError
from drqn_dist.fragment import Fragment

SCHEMA_VERSION = 1

_MAGIC = b"DRQF"
_PREFIX = struct.Struct("<4sHI")
_ACTION_TYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "uint16", "uint32", "int64")}
_OBSERVATION_TYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "float32")}
_FLOAT32 = _OBSERVATION_TYPES["float32"]
_MAX_INT = 2**63 - 1
_MAX_DIMENSIONS = 16


class _Envelope(NamedTuple):
    num_steps: int
    terminated: bool
    truncated: bool
    first_step: int
    actor_id: int
    env_id: int
    episode_id: int
    sequence_no: int
    weight_version: int
    priorities: bytes
    action_type: str
    actions: bytes
    rewards: bytes
    state_steps: list[int]
    state_shape: list[int]
    states: bytes
    observation_type: str
    observation_shape: list[int]
    observations: bytes


_FIELD_TYPES = [int, bool, bool, *[int] * 6, bytes, str, bytes, bytes, list, list, bytes, str, list, bytes]


@dataclass(frozen=True)
class FragmentHeader:
    """What a fragment says of itself without decompressing its observations; fields as in `Fragment`."""

    num_steps: int
    terminated: bool
    truncated: bool
    first_step: int
    actor_id: int
    env_id: int
    episode_id: int
    sequence_no: int
    weight_version: int
    priorities: npt.NDArray[np.float32]
    """float32 [number of windows whose unroll starts in this fragment], finite and not negative."""
    observation_shape: tuple[int, ...]
    """Of one observation."""
    observation_type: str
    """uint8 or float32"""

    @property
    def num_observations(self) -> int:
        """Observations in the fragment: one per step and the one after the last step."""
        return self.num_steps + 1

    @property
    def raw_bytes(self) -> int:
        """Size of the decompressed observations."""
        itemsize = _OBSERVATION_TYPES[self.observation_type].itemsize
        return self.num_observations * math.prod(self.observation_shape) * itemsize

    @property
    def ends_episode(self) -> bool:
        return self.terminated or self.truncated


class _ZstdContexts(threading.local):
    """zstd contexts hold large tables and must not be shared by threads: one pair per thread."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _ZstdContexts()


def encode(fragment: Fragment) -> bytes:
    """Packs a fragment.

    Raises:
        FragmentError: the fragment is not valid.
    """
    fragment.validate()
    action_type = np.min_scalar_type(int(fragment.actions.max())).name
    if action_type not in _ACTION_TYPES:
        action_type = "int64"
    steps = sorted(fragment.states)
    states = [fragment.states[step] for step in steps]
    if len({state.shape for state in states}) > 1:
        raise FragmentError(f"states must share one shape [S, H], got {[state.shape for state in states]}")
    envelope = _Envelope(
        num_steps=fragment.num_steps,
        terminated=bool(fragment.terminated),
        truncated=bool(fragment.truncated),
        first_step=_bounded("first_step", fragment.first_step),
        actor_id=_bounded("actor_id", fragment.actor_id),
        env_id=_bounded("env_id", fragment.env_id),
        episode_id=_bounded("episode_id", fragment.episode_id),
        sequence_no=_bounded("sequence_no", fragment.sequence_no),
        weight_version=_bounded("weight_version", fragment.weight_version),
        priorities=fragment.priorities.tobytes(),
        action_type=action_type,
        actions=fragment.actions.astype(action_type).tobytes(),
        rewards=fragment.rewards.tobytes(),
        state_steps=[int(step) for step in steps],
        state_shape=list(states[0].shape) if states else [0, 0],
        states=b"".join(state.tobytes() for state in states),
        observation_type=fragment.observations.dtype.name,
        observation_shape=list(fragment.observations.shape[1:]),
        observations=_zstd.compressor.compress(np.ascontiguousarray(fragment.observations).data),
    )
    body: bytes = msgpack.packb(tuple(envelope))
    return _PREFIX.pack(_MAGIC, SCHEMA_VERSION, zlib.crc32(body)) + body


def decode(payload: bytes, max_bytes: int) -> Fragment:
    """Unpacks what `encode` made; `max_bytes` bounds the payload and the decompressed observations.

    All arrays of the result but the actions are read-only views.

    Raises:
        FragmentError: the payload is truncated, corrupted, of another schema, larger than `max_bytes` packed or
            unpacked, or does not hold a valid fragment. Nothing larger than `max_bytes` is ever allocated.
    """
    envelope, header = _open(payload, max_bytes)
    if envelope.action_type not in _ACTION_TYPES:
        raise FragmentError(f"actions must be one of {', '.join(_ACTION_TYPES)}, got {envelope.action_type!r}")
    actions = _array("actions", envelope.actions, _ACTION_TYPES[envelope.action_type], (header.num_steps,))
    fragment = Fragment(
        observations=_decompress(envelope, header),
        actions=actions.astype(np.int64),
        rewards=_array("rewards", envelope.rewards, _FLOAT32, (header.num_steps,)),
        terminated=header.terminated,
        truncated=header.truncated,
        first_step=header.first_step,
        actor_id=header.actor_id,
        env_id=header.env_id,
        episode_id=header.episode_id,
        sequence_no=header.sequence_no,
        weight_version=header.weight_version,
        priorities=header.priorities,
        states=_states(envelope),
    )
    fragment.validate_contents()
    return fragment


def decode_header(payload: bytes, max_bytes: int) -> FragmentHeader:
    """Reads and checks all but the arrays of steps: all that the replay needs.

    Raises:
        FragmentError: as `decode`, except for faults inside the compressed observations, the actions, the rewards
            and the states, which `encode` never makes and the checksum covers.
    """
    return _open(payload, max_bytes)[1]


def _open(payload: bytes, max_bytes: int) -> tuple[_Envelope, FragmentHeader]:
    if len(payload) > max_bytes:
        raise FragmentError(
            f"fragment of {len(payload):,} bytes exceeds the limit of {max_bytes:,}; "
            "shorten actor.fragment_steps or raise replay.max_fragment_bytes"
        )
    if len(payload) < _PREFIX.size:
        raise FragmentError(
            f"fragment is truncated: {len(payload)} bytes are shorter than its {_PREFIX.size}-byte prefix"
        )
    magic, schema, checksum = _PREFIX.unpack_from(payload)
    if magic != _MAGIC:
        raise FragmentError(f"not a fragment: it begins with {magic!r}, not {_MAGIC!r}")
    if schema != SCHEMA_VERSION:
        raise FragmentError(
            f"fragment has schema {schema}, but this program reads schema {SCHEMA_VERSION}; "
            "run the same version everywhere"
        )
    body = memoryview(payload)[_PREFIX.size :]
    if zlib.crc32(body) != checksum:
        raise FragmentError(
            f"fragment of {len(payload):,} bytes is truncated or corrupted: its checksum does not match"
        )
    envelope = _unpack(body)
    return envelope, _header(envelope, max_bytes)


def _unpack(body: memoryview) -> _Envelope:
    try:
        fields: Any = msgpack.unpackb(body, use_list=True)
    # A body with a right checksum can still be nonsense, and msgpack answers it with many kinds of exceptions.
    except Exception as error:
        raise FragmentError(f"fragment's envelope is not msgpack: {error}") from error
    if not isinstance(fields, list) or list(map(type, fields)) != _FIELD_TYPES:
        raise FragmentError(
            f"fragment's envelope does not hold the {len(_FIELD_TYPES)} fields of schema {SCHEMA_VERSION}"
        )
    envelope = _Envelope._make(fields)
    for integers in (envelope.state_steps, envelope.state_shape, envelope.observation_shape):
        if not set(map(type, integers)) <= {int}:
            raise FragmentError(f"shapes and steps must be lists of integers, got {integers}")
    for name, value in zip(envelope._fields, envelope, strict=True):
        if type(value) is int:
            _bounded(name, value)
    return envelope


def _header(envelope: _Envelope, max_bytes: int) -> FragmentHeader:
    if envelope.num_steps == 0:
        raise FragmentError("num_steps must be at least 1, got 0")
    if envelope.observation_type not in _OBSERVATION_TYPES:
        raise FragmentError(f"observations must be uint8 or float32, got {envelope.observation_type!r}")
    shape = tuple(envelope.observation_shape)
    if not 1 <= len(shape) <= _MAX_DIMENSIONS or min(shape) < 1:
        raise FragmentError(f"observation_shape must be positive, got {shape}")
    priorities = _array("priorities", envelope.priorities, _FLOAT32, (len(envelope.priorities) // 4,))
    if not ((priorities >= 0) & (priorities < np.inf)).all():
        raise FragmentError("priorities must be finite and not negative; the actor's Q values have diverged")
    header = FragmentHeader(
        num_steps=envelope.num_steps,
        terminated=envelope.terminated,
        truncated=envelope.truncated,
        first_step=envelope.first_step,
        actor_id=envelope.actor_id,
        env_id=envelope.env_id,
        episode_id=envelope.episode_id,
        sequence_no=envelope.sequence_no,
        weight_version=envelope.weight_version,
        priorities=priorities,
        observation_shape=shape,
        observation_type=envelope.observation_type,
    )
    if header.raw_bytes > max_bytes:
        raise FragmentError(
            f"fragment unpacks to {header.raw_bytes:,} bytes, which exceeds the limit of {max_bytes:,}; "
            "shorten actor.fragment_steps or raise replay.max_fragment_bytes"
        )
    try:
        declared = zstandard.frame_content_size(envelope.observations)
    except zstandard.ZstdError as error:
        raise FragmentError(f"compressed observations are corrupted: {error}") from error
    if declared != header.raw_bytes:
        raise FragmentError(
            f"compressed observations hold {declared:,} bytes, but {header.num_observations} of shape {shape} "
            f"need {header.raw_bytes:,}"
        )
    return header


def _decompress(envelope: _Envelope, header: FragmentHeader) -> npt.NDArray[Any]:
    # zstd allocates the size its own frame declares; `_header` has compared that with the shape and the limit.
    try:
        raw = _zstd.decompressor.decompress(envelope.observations, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FragmentError(f"compressed observations are corrupted: {error}") from error
    dtype = _OBSERVATION_TYPES[header.observation_type]
    return _array("observations", raw, dtype, (header.num_observations, *header.observation_shape))


def _states(envelope: _Envelope) -> dict[int, npt.NDArray[np.float32]]:
    shape = tuple(envelope.state_shape)
    if len(shape) != 2 or min(shape) < 0:
        raise FragmentError(f"state_shape must be [S, H], got {shape}")
    if len(set(envelope.state_steps)) != len(envelope.state_steps):
        raise FragmentError(f"state_steps must differ, got {envelope.state_steps}")
    states = _array("states", envelope.states, _FLOAT32, (len(envelope.state_steps), *shape))
    return dict(zip(envelope.state_steps, states, strict=True))


def _array(name: str, raw: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A read-only view of `raw`."""
    needed = math.prod(shape) * dtype.itemsize
    if len(raw) != needed:
        raise FragmentError(f"{name} of shape {shape} and type {dtype} need {needed:,} bytes, got {len(raw):,}")
    try:
        return np.frombuffer(raw, dtype).reshape(shape)
    except (ValueError, OverflowError) as error:  # an empty array of absurd shape
        raise FragmentError(f"{name} cannot have shape {shape}: {error}") from error


def _bounded(name: str, value: int) -> int:
    if not 0 <= value <= _MAX_INT:
        raise FragmentError(f"{name} must lie in [0, 2^63), got {value}")
    return int(value)
