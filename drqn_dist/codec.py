"""Fragment <-> bytes: the format on the wire, in the replay and in its journal. The only user of msgpack.

::

    offset  0        4         6        10        72            72 + 4 D         72 + 4 (D + P)
            | magic  | schema  | crc32  | fields  | shape       | priorities     | msgpack list, the rest  |
              4 bytes  uint16    uint32   _FIELDS   uint32 [D]    float32 [P]      fields of `_Body`
                                          ^^^^^^^^^^^^^^^^^^ what crc32 covers ^^^^^^^^^^^^^^^^^^^^^^^^^^^

    fields  | flags  | type   | steps  | D      | P      | first_step, actor_id, env_id, episode_id,       |
              uint8    uint8    uint32   uint32   uint32   sequence_no, weight_version: int64 each

Numbers are little-endian. flags: 1 terminated, 2 truncated. type and shape are those of one observation: 0 uint8,
1 float32. All that the replay needs stands before the msgpack list, so that it reads no further. Observations are one
zstd frame (level 1); the small arrays are raw: actions in the smallest integer type that holds them, rewards,
priorities and states as float32.

Every function is thread-safe; decompression releases the GIL. Nothing read here can execute code.
"""

import math
import struct
import threading
import zlib
from typing import Any, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt
import zstandard

from drqn_dist.errors import FragmentError
from drqn_dist.fragment import Fragment

SCHEMA_VERSION = 2

_MAGIC = b"DRQF"
_PREFIX = struct.Struct("<4sHI")
_FIELDS = struct.Struct("<BBIII6q")
_IDS = ("first_step", "actor_id", "env_id", "episode_id", "sequence_no", "weight_version")
_ACTION_TYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "uint16", "uint32", "int64")}
_OBSERVATION_TYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "float32")}
_OBSERVATION_NAMES = tuple(_OBSERVATION_TYPES)
_FLOAT32 = _OBSERVATION_TYPES["float32"]
_MAX_DIMENSIONS = 16


class _Body(NamedTuple):
    action_type: str
    actions: bytes
    rewards: bytes
    state_steps: list[int]
    state_shape: list[int]
    states: bytes
    observations: bytes


_BODY_TYPES = [str, bytes, bytes, list, list, bytes, bytes]


class FragmentHeader(NamedTuple):
    """What a fragment says of itself before its arrays of steps; fields as in `Fragment`."""

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
    ids = [int(getattr(fragment, name)) for name in _IDS]
    shape = fragment.observations.shape[1:]
    flags = bool(fragment.terminated) | bool(fragment.truncated) << 1
    kind = _OBSERVATION_NAMES.index(fragment.observations.dtype.name)
    body = _Body(
        action_type=action_type,
        actions=fragment.actions.astype(action_type).tobytes(),
        rewards=fragment.rewards.tobytes(),
        state_steps=[int(step) for step in steps],
        state_shape=list(states[0].shape) if states else [0, 0],
        states=b"".join(state.tobytes() for state in states),
        observations=_zstd.compressor.compress(np.ascontiguousarray(fragment.observations).data),
    )
    covered = b"".join(
        (
            _FIELDS.pack(flags, kind, fragment.num_steps, len(shape), len(fragment.priorities), *ids),
            struct.pack(f"<{len(shape)}I", *shape),
            fragment.priorities.tobytes(),
            msgpack.packb(tuple(body)),
        )
    )
    return _PREFIX.pack(_MAGIC, SCHEMA_VERSION, zlib.crc32(covered)) + covered


def decode(payload: bytes, max_bytes: int) -> Fragment:
    """Unpacks what `encode` made; `max_bytes` bounds the payload and the decompressed observations.

    All arrays of the result but the actions are read-only views.

    Raises:
        FragmentError: the payload is truncated, corrupted, of another schema, larger than `max_bytes` packed or
            unpacked, or does not hold a valid fragment. Nothing larger than `max_bytes` is ever allocated.
    """
    header, end = _open(payload, max_bytes)
    body = _unpack(memoryview(payload)[end:])
    if body.action_type not in _ACTION_TYPES:
        raise FragmentError(f"actions must be one of {', '.join(_ACTION_TYPES)}, got {body.action_type!r}")
    actions = _array("actions", body.actions, _ACTION_TYPES[body.action_type], (header.num_steps,))
    fragment = Fragment(
        observations=_decompress(body.observations, header),
        actions=actions.astype(np.int64),
        rewards=_array("rewards", body.rewards, _FLOAT32, (header.num_steps,)),
        terminated=header.terminated,
        truncated=header.truncated,
        first_step=header.first_step,
        actor_id=header.actor_id,
        env_id=header.env_id,
        episode_id=header.episode_id,
        sequence_no=header.sequence_no,
        weight_version=header.weight_version,
        priorities=header.priorities,
        states=_states(body),
    )
    fragment.validate_contents()
    return fragment


def decode_header(payload: bytes, max_bytes: int) -> FragmentHeader:
    """Reads and checks what stands before the msgpack list: all that the replay needs.

    Raises:
        FragmentError: as `decode`, except for faults inside that list, which `encode` never makes and the checksum
            covers.
    """
    return _open(payload, max_bytes)[0]


def decode_rewards(payload: bytes, max_bytes: int) -> npt.NDArray[np.float32]:
    """Reads the rewards float32 [L] alone, without unpacking an observation; they may not be finite.

    Raises:
        FragmentError: as `decode`, except for faults in other arrays.
    """
    header, end = _open(payload, max_bytes)
    return _array("rewards", _unpack(memoryview(payload)[end:]).rewards, _FLOAT32, (header.num_steps,))


def _open(payload: bytes, max_bytes: int) -> tuple[FragmentHeader, int]:
    """The header, and the offset of the msgpack list."""
    if len(payload) > max_bytes:
        raise FragmentError(
            f"fragment of {len(payload):,} bytes exceeds the limit of {max_bytes:,}; "
            "shorten actor.fragment_steps or raise replay.max_fragment_bytes"
        )
    shape_at = _PREFIX.size + _FIELDS.size
    if len(payload) < shape_at:
        raise FragmentError(f"fragment is truncated: {len(payload)} bytes are shorter than its {shape_at} first ones")
    magic, schema, checksum = _PREFIX.unpack_from(payload)
    if magic != _MAGIC:
        raise FragmentError(f"not a fragment: it begins with {magic!r}, not {_MAGIC!r}")
    if schema != SCHEMA_VERSION:
        raise FragmentError(
            f"fragment has schema {schema}, but this program reads schema {SCHEMA_VERSION}; "
            "run the same version everywhere"
        )
    if zlib.crc32(memoryview(payload)[_PREFIX.size :]) != checksum:
        raise FragmentError(
            f"fragment of {len(payload):,} bytes is truncated or corrupted: its checksum does not match"
        )
    flags, kind, num_steps, dimensions, num_priorities, *ids = _FIELDS.unpack_from(payload, _PREFIX.size)
    if flags > 3 or kind >= len(_OBSERVATION_NAMES):
        raise FragmentError(f"fragment has flags {flags} and observation type {kind}, which mean nothing")
    if not 0 < num_steps <= max_bytes // 8:  # actions take eight bytes each once they are unpacked
        raise FragmentError(f"num_steps must be at least 1 and fit the limit of {max_bytes:,} bytes, got {num_steps:,}")
    if min(ids) < 0:
        raise FragmentError(f"{', '.join(_IDS)} must not be negative, got {ids}")
    priorities_at = shape_at + 4 * dimensions
    body_at = priorities_at + 4 * num_priorities
    if not 1 <= dimensions <= _MAX_DIMENSIONS or body_at > len(payload):
        raise FragmentError(
            f"{dimensions} dimensions and {num_priorities} priorities do not fit a fragment of {len(payload):,} bytes"
        )
    shape = struct.unpack_from(f"<{dimensions}I", payload, shape_at)
    if min(shape) < 1:
        raise FragmentError(f"the shape of observations must be positive, got {shape}")
    priorities = np.frombuffer(payload, _FLOAT32, num_priorities, priorities_at)
    # As Python floats: NumPy's reductions take longer for so few.
    if not all(0 <= priority < math.inf for priority in priorities.tolist()):
        raise FragmentError("priorities must be finite and not negative; the actor's Q values have diverged")
    header = FragmentHeader._make(
        (num_steps, bool(flags & 1), bool(flags & 2), *ids, priorities, shape, _OBSERVATION_NAMES[kind])
    )
    if header.raw_bytes > max_bytes:
        raise FragmentError(
            f"fragment unpacks to {header.raw_bytes:,} bytes, which exceeds the limit of {max_bytes:,}; "
            "shorten actor.fragment_steps or raise replay.max_fragment_bytes"
        )
    return header, body_at


def _unpack(packed: memoryview) -> _Body:
    try:
        fields: Any = msgpack.unpackb(packed, use_list=True)
    # Bytes with a right checksum can still be nonsense, and msgpack answers it with many kinds of exceptions.
    except Exception as error:
        raise FragmentError(f"fragment's body is not msgpack: {error}") from error
    if not isinstance(fields, list) or list(map(type, fields)) != _BODY_TYPES:
        raise FragmentError(f"fragment's body does not hold the {len(_BODY_TYPES)} fields of schema {SCHEMA_VERSION}")
    body = _Body._make(fields)
    for integers in (body.state_steps, body.state_shape):
        if not set(map(type, integers)) <= {int}:
            raise FragmentError(f"shapes and steps must be lists of integers, got {integers}")
    return body


def _decompress(frame: bytes, header: FragmentHeader) -> npt.NDArray[Any]:
    shape = (header.num_observations, *header.observation_shape)
    try:
        # zstd allocates the size that the frame declares, so this comes first; `_open` has compared raw_bytes with the
        # limit.
        declared = zstandard.frame_content_size(frame)
        if declared != header.raw_bytes:
            raise FragmentError(
                f"compressed observations hold {declared:,} bytes, but shape {shape} needs {header.raw_bytes:,}"
            )
        raw = _zstd.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FragmentError(f"compressed observations are corrupted: {error}") from error
    return _array("observations", raw, _OBSERVATION_TYPES[header.observation_type], shape)


def _states(body: _Body) -> dict[int, npt.NDArray[np.float32]]:
    shape = tuple(body.state_shape)
    if len(shape) != 2 or min(shape) < 0:
        raise FragmentError(f"state_shape must be [S, H], got {shape}")
    if len(set(body.state_steps)) != len(body.state_steps):
        raise FragmentError(f"state_steps must differ, got {body.state_steps}")
    states = _array("states", body.states, _FLOAT32, (len(body.state_steps), *shape))
    return dict(zip(body.state_steps, states, strict=True))


def _array(name: str, raw: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A read-only view of `raw`."""
    needed = math.prod(shape) * dtype.itemsize
    if len(raw) != needed:
        raise FragmentError(f"{name} of shape {shape} and type {dtype} need {needed:,} bytes, got {len(raw):,}")
    try:
        return np.frombuffer(raw, dtype).reshape(shape)
    except (ValueError, OverflowError) as error:  # an empty array of absurd shape
        raise FragmentError(f"{name} cannot have shape {shape}: {error}") from error
