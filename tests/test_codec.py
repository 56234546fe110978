from __future__ import annotations

import contextlib
import struct
import threading
import zlib
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from drqn_dist.codec import SCHEMA_VERSION, decode, decode_header, decode_rewards, encode
from drqn_dist.errors import FragmentError
from drqn_dist.fragment import Fragment
from tests.replay_server.fragments import make_fragment

LIMIT = 2**20
IDS = ["first_step", "actor_id", "env_id", "episode_id", "sequence_no", "weight_version"]
FIXED = ["flags", "observation_type", "num_steps", "num_dimensions", "num_priorities", *IDS]
BODY = ["action_type", "actions", "rewards", "state_steps", "state_shape", "states", "observations"]
PREFIX, HEADER = 10, 10 + 1 + 1 + 3 * 4 + 6 * 8  # bytes


def seal(covered: bytes, magic: bytes = b"DRQF", schema: int = SCHEMA_VERSION) -> bytes:
    return struct.pack("<4sHI", magic, schema, zlib.crc32(covered)) + covered


def forge(packed: bytes | None = None, **changes: Any) -> bytes:
    """A fragment whose checksum is right and whose fields are not.

    Args:
        packed: in place of the whole msgpack list.
    """
    payload = encode(full_fragment())
    shape_at, priorities_at, body_at = HEADER, HEADER + 3 * 4, HEADER + 3 * 4 + 2 * 4  # three dimensions, two windows
    fields = dict(zip(FIXED, struct.unpack("<BBIII6q", payload[PREFIX:shape_at]), strict=True))
    fields |= {"shape": payload[shape_at:priorities_at], "priorities": payload[priorities_at:body_at]}
    fields |= dict(zip(BODY, msgpack.unpackb(payload[body_at:]), strict=True))
    fields |= changes
    fixed = struct.pack("<BBIII6q", *(fields[name] for name in FIXED))
    packed = msgpack.packb([fields[name] for name in BODY]) if packed is None else packed
    return seal(fixed + fields["shape"] + fields["priorities"] + packed)


def full_fragment() -> Fragment:
    states = {step: np.full((2, 3), step + 0.25, np.float32) for step in (0, 2)}
    return make_fragment(
        4,
        windows=2,
        terminated=True,
        first_step=8,
        actor_id=3,
        env_id=5,
        episode_id=7,
        sequence_no=3 * 2**32 + 11,
        weight_version=13,
        states=states,
    )


def assert_same(one: Fragment, other: Fragment) -> None:
    for name in Fragment.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if name == "states":
            assert list(a) == list(b)
            assert all(np.array_equal(a[step], b[step]) and b[step].dtype == np.float32 for step in a)
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, name
            assert np.array_equal(a, b), name
            assert a.shape == b.shape, name
        else:
            assert a == b, name
            assert type(a) is type(b), name


@st.composite
def fragments(draw: st.DrawFn) -> Fragment:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = draw(st.integers(1, 12))
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    image = draw(st.booleans())
    observations = (
        rng.integers(0, 256, (steps + 1, *shape), np.uint8)
        if image
        else rng.normal(size=(steps + 1, *shape)).astype(np.float32)
    )
    state_shape = (draw(st.integers(0, 3)), draw(st.integers(0, 4)))
    state_steps = sorted(draw(st.sets(st.integers(0, steps - 1))))
    ids = {
        name: draw(st.integers(0, 2**63 - 1))
        for name in ("first_step", "actor_id", "env_id", "episode_id", "sequence_no", "weight_version")
    }
    return Fragment(
        observations=observations,
        actions=rng.integers(0, draw(st.sampled_from([1, 18, 2**8, 2**8 + 1, 2**16 + 1, 2**32 + 1, 2**62])), steps),
        rewards=rng.normal(size=steps).astype(np.float32),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        priorities=rng.random(draw(st.integers(0, 4))).astype(np.float32),
        states={step: rng.normal(size=state_shape).astype(np.float32) for step in state_steps},
        **ids,
    )


@settings(deadline=None, max_examples=50)
@given(fragments())
def test_decode_undoes_encode_bit_for_bit(fragment: Fragment) -> None:
    payload = encode(fragment)
    assert_same(fragment, decode(payload, LIMIT))
    assert encode(decode(payload, LIMIT)) == payload


@settings(deadline=None, max_examples=50)
@given(fragments())
def test_the_header_says_the_same_as_the_fragment(fragment: Fragment) -> None:
    header = decode_header(encode(fragment), LIMIT)
    for name in ("num_steps", "terminated", "truncated", *IDS):
        assert getattr(header, name) == getattr(fragment, name)
    assert header.priorities.tolist() == fragment.priorities.tolist()
    assert header.num_observations == len(fragment.observations)
    assert header.observation_shape == fragment.observations.shape[1:]
    assert header.observation_type == fragment.observations.dtype.name
    assert header.raw_bytes == fragment.observations.nbytes
    assert header.ends_episode == fragment.ends_episode


def test_views_that_are_not_contiguous_are_packed_as_seen() -> None:
    frames = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(5, 2, 6)
    fragment = make_fragment(observations=frames[:, 0, ::2], states={0: np.arange(8, dtype=np.float32).reshape(4, 2).T})
    assert_same(fragment, decode(encode(fragment), LIMIT))


def test_numpy_scalars_are_packed_like_numbers() -> None:
    fragment = make_fragment(actor_id=np.int64(3), terminated=np.bool_(True), states={})
    assert encode(fragment) == encode(make_fragment(actor_id=3, terminated=True))


def test_actions_take_the_smallest_type() -> None:
    sizes = {
        high: len(encode(make_fragment(100, actions=np.full(100, high))))
        for high in (255, 256, 65_535, 65_536, 2**32 - 1, 2**32)
    }
    assert sizes[256] - sizes[255] >= 100
    assert abs(sizes[65_535] - sizes[256]) < 10
    assert sizes[65_536] - sizes[65_535] >= 200
    assert sizes[2**32] - sizes[2**32 - 1] >= 390


def test_still_frames_shrink_to_a_few_bytes() -> None:
    frames = np.broadcast_to(np.random.default_rng(0).integers(0, 256, (1, 84, 84), np.uint8), (33, 1, 84, 84))
    assert len(encode(make_fragment(32, observations=frames))) < 84 * 84 + 33 * 40


@pytest.mark.parametrize("read", [decode, decode_header])
def test_any_single_flipped_bit_is_detected(read: Any) -> None:
    payload = encode(full_fragment())
    for bit in range(8 * len(payload)):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FragmentError):
            read(bytes(flipped), LIMIT)


@pytest.mark.parametrize("read", [decode, decode_header])
def test_every_truncation_and_any_addition_is_detected(read: Any) -> None:
    payload = encode(full_fragment())
    for length in range(len(payload)):
        with pytest.raises(FragmentError):
            read(payload[:length], LIMIT)
    with pytest.raises(FragmentError, match="checksum"):
        read(payload + b"\0", LIMIT)


@pytest.mark.parametrize("schema", [0, SCHEMA_VERSION + 1])
def test_another_schema_is_refused_by_its_number(schema: int) -> None:
    with pytest.raises(FragmentError, match=f"schema {schema}, but this program reads schema {SCHEMA_VERSION}"):
        decode(seal(encode(full_fragment())[PREFIX:], schema=schema), LIMIT)


def test_bytes_of_something_else_are_refused() -> None:
    with pytest.raises(FragmentError, match="PK"):
        decode(seal(bytes(100), magic=b"PK\3\4"), LIMIT)


def test_a_fragment_larger_than_the_limit_is_refused_packed_or_unpacked() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 1000), np.uint8)
    packed = encode(make_fragment(observations=noise))
    with pytest.raises(FragmentError, match=r"fragment of 5,\d+ bytes exceeds the limit of 4,999"):
        decode(packed, 4999)
    still = encode(make_fragment(observations=np.zeros((5, 1000), np.uint8)))
    assert decode(still, 5000).observations.nbytes == 5000
    for read in (decode, decode_header):
        with pytest.raises(FragmentError, match="unpacks to 5,000 bytes"):
            read(still, 4999)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(2**28))
    for observations in (bomb, bomb[:64]):
        with pytest.raises(FragmentError, match="hold 268,435,456 bytes"):
            decode(forge(observations=observations), LIMIT)
    # A frame that does not declare its size cannot be trusted with an allocation either.
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5 * 9))
    with pytest.raises(FragmentError, match="hold"):
        decode(forge(observations=unsized), LIMIT)
    with pytest.raises(FragmentError, match="exceeds the limit"):
        decode(forge(shape=np.full(3, 2**32 - 1, np.uint32).tobytes()), LIMIT)


@pytest.mark.parametrize("read", [decode, decode_header])
@pytest.mark.parametrize(
    "changes",
    [
        {"flags": 4},
        {"flags": 255},
        {"observation_type": 2},
        {"num_steps": 0},
        {"num_steps": 2**32 - 1},
        {"num_dimensions": 0},
        {"num_dimensions": 17},
        {"num_dimensions": 2**32 - 1},
        {"num_priorities": 2**32 - 1},
        *({name: -1} for name in IDS),
        {"priorities": np.array([1, np.nan], np.float32).tobytes()},
        {"priorities": np.array([np.nan, 1], np.float32).tobytes()},
        {"priorities": np.array([1, np.inf], np.float32).tobytes()},
        {"priorities": np.array([-1, 1], np.float32).tobytes()},
        {"shape": np.array([3, 0, 3], np.uint32).tobytes()},
        {"shape": np.array([2**20, 1, 1], np.uint32).tobytes()},
    ],
    ids=str,
)
def test_a_forged_header_is_refused_although_the_checksum_is_right(read: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(FragmentError):
        read(forge(**changes), LIMIT)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 5},
        {"num_steps": 3},
        {"observation_type": 1},
        {"shape": np.array([3, 3, 3], np.uint32).tobytes()},
        {"num_dimensions": 2},
        {"num_dimensions": 4},
        {"num_priorities": 1},
        {"num_priorities": 3},
        {"priorities": b"abc"},
        {"priorities": b""},
        {"action_type": "float64"},
        {"action_type": "O"},
        {"actions": b""},
        {"actions": b"123"},
        {"action_type": "int64", "actions": np.array([0, 0, 0, -1]).tobytes()},
        {"rewards": b"1234"},
        {"rewards": np.full(4, np.nan, np.float32).tobytes()},
        {"state_steps": [0]},
        {"state_steps": [0, 0]},
        {"state_steps": [0, 4]},
        {"state_steps": [0, "2"]},
        {"state_steps": [0, [1]]},
        {"state_shape": [2]},
        {"state_shape": [3, 3]},
        {"state_shape": [-2, -3]},
        {"state_shape": [2.0, 3]},
        {"state_shape": [0, 2**63], "states": b""},
        {"state_shape": [0, 2**64 - 1], "states": b""},
        {"observations": b""},
        {"observations": b"not a zstd frame"},
        {"observations": zstandard.compress(bytes(45))[:-3]},
        {"observations": zstandard.compress(bytes(45)) + b"more"},
        {"observations": [1]},
    ],
    ids=str,
)
def test_what_does_not_fit_the_header_is_refused_although_the_checksum_is_right(changes: dict[str, Any]) -> None:
    with pytest.raises(FragmentError):
        decode(forge(**changes), LIMIT)


def test_the_forge_is_sound() -> None:
    assert_same(full_fragment(), decode(forge(), LIMIT))


@settings(deadline=None, max_examples=50)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(seal)))
def test_arbitrary_bytes_raise_nothing_else(payload: bytes) -> None:
    with pytest.raises(FragmentError):
        decode(payload, LIMIT)
    with contextlib.suppress(FragmentError):
        decode_header(payload, LIMIT)


_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


_SMALL_OR_ANY = st.integers(0, 6) | st.integers(0, 2**32 - 1)
_HEADER_JUNK = st.fixed_dictionaries(
    {},
    optional={
        "flags": st.integers(0, 255),
        "observation_type": st.integers(0, 255),
        "num_steps": _SMALL_OR_ANY,
        "num_dimensions": _SMALL_OR_ANY,
        "num_priorities": _SMALL_OR_ANY,
        "shape": st.binary(max_size=20),
        "priorities": st.binary(max_size=20),
    }
    | {name: st.integers(-(2**63), 2**63 - 1) for name in IDS},
)


@settings(deadline=None, max_examples=100)
@given(_HEADER_JUNK, st.dictionaries(st.sampled_from(BODY), _JUNK, max_size=4))
def test_junk_in_any_field_decodes_to_a_valid_fragment_or_raises_a_fragment_error(
    header: dict[str, Any], body: dict[str, Any]
) -> None:
    payload = forge(**header, **body)
    with contextlib.suppress(FragmentError):
        decode(payload, LIMIT).validate()
    with contextlib.suppress(FragmentError):
        decode_header(payload, LIMIT)


@settings(deadline=None, max_examples=50)
@given(_JUNK)
def test_a_body_of_junk_raises_a_fragment_error(junk: Any) -> None:
    with pytest.raises(FragmentError, match="7 fields"):
        decode(forge(packed=msgpack.packb(junk)), LIMIT)


def test_the_header_is_read_without_the_body() -> None:
    whole, alone = decode_header(forge(), LIMIT), decode_header(forge(packed=b""), LIMIT)
    assert alone.priorities.tolist() == whole.priorities.tolist()
    assert alone._replace(priorities=whole.priorities) == whole


def test_encode_refuses_an_invalid_fragment() -> None:
    with pytest.raises(FragmentError, match="not finite"):
        encode(make_fragment(rewards=np.full(4, np.nan, np.float32)))
    with pytest.raises(FragmentError, match="share one shape"):
        encode(make_fragment(states={0: np.zeros((1, 2), np.float32), 1: np.zeros((1, 3), np.float32)}))
    with pytest.raises(FragmentError, match="sequence_no"):
        encode(make_fragment(sequence_no=2**63))


def test_threads_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(0)
    originals = [make_fragment(16, observations=rng.integers(0, 9, (17, 84, 84), np.uint8)) for _ in range(4)]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            copy = decode(encode(originals[number]), LIMIT)
            if not np.array_equal(copy.observations, originals[number].observations):
                wrong.append(number)

    threads = [threading.Thread(daemon=True, target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert wrong == []


def test_rewards_alone_need_no_observation() -> None:
    fragment = full_fragment()
    assert decode_rewards(encode(fragment), LIMIT).tolist() == fragment.rewards.tolist()
    assert decode_rewards(forge(observations=b"no zstd frame"), LIMIT).tolist() == fragment.rewards.tolist()
    for wrong in (forge(rewards=b"123"), forge(packed=b"\xc1"), encode(fragment)[:-1]):
        with pytest.raises(FragmentError):
            decode_rewards(wrong, LIMIT)
