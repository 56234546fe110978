"""The remote classes as plain objects, and the calls between roles with a Ray of our own."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from actors.actor import Actor
from drqn_dist.distributed import remote_replay
from drqn_dist.distributed.channels import (
    RemotePriorities,
    RemoteSink,
    RemoteSource,
    RemoteWeights,
    await_restart,
)
from drqn_dist.distributed.remote import LearnerRole
from drqn_dist.distributed.remote_replay import ReplayRole
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import FragmentError, ReplayStopped
from drqn_dist.interfaces import SHARD_STRIDE, Held, WeightSnapshot, WindowDraws
from drqn_dist.network.q_network import QNetwork
from drqn_dist.training.session import journal_folders
from learner.weight_publisher import WeightPublisher
from replay_server.make import make_replay
from replay_server.rate_limiter import Balance
from replay_server.replay import Replay
from replay_server.shards import ShardAnswer
from tests.fakes import FakeSink, FakeWeights
from tests.replay_server.fragments import cut_episode
from tests.replay_server.keeper import Keeper
from tests.replay_server.test_replay import SHAPE
from tests.replay_server.test_shards import fill, make_parts
from tests.runs import maze_config, role_processes, until


@pytest.fixture(scope="module")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Some hundred steps of fragments."""
    sink = FakeSink()
    actor = Actor(maze_config(tmp_path_factory.mktemp("unused")), 0, sink, FakeWeights())
    while len(sink.payloads) < 40:
        actor.step()
    actor.close()
    return sink.payloads


def test_a_new_replay_serves_nobody_before_it_has_its_counters(tmp_path: Path, payloads: list[bytes]) -> None:
    config = maze_config(tmp_path)
    before = ReplayRole(config, 0)
    before.begin(None)
    before.push(payloads[:10])
    first = before.pulse()
    assert first is not None
    assert first.stats.inserted_steps > 0

    after = ReplayRole(config, 0)
    assert after.pulse() is None
    pushing = threading.Thread(target=after.push, args=(payloads[10:11],))
    pushing.start()
    assert after.pulse() is None
    after.begin(first.state)
    pushing.join(timeout=10)
    second = after.pulse()
    assert second is not None
    assert second.stats.inserted_steps == first.stats.inserted_steps + second.stats.stored_steps
    after.begin(first.state)  # once begun, nothing turns the counters back
    assert after.pulse() == second


def test_a_replay_whose_node_does_not_see_the_runs_folder_says_where_its_journal_is(
    tmp_path: Path, payloads: list[bytes]
) -> None:
    config = maze_config(tmp_path)
    seen, elsewhere, closed = (tmp_path / name / "run" / "replay" / "0" for name in ("seen", "elsewhere", "closed"))
    journal_folders(config, seen.parents[1])  # as the run's own process does
    closed.parents[2].mkdir()
    (closed.parents[1]).write_text("not a folder")
    for journal, said in ((seen, ""), (elsewhere, "does not see the run's folder"), (closed, "keeps no journal in ")):
        role = ReplayRole(config, 0)
        note = role.begin(None, journal).note
        assert note.startswith(said), note
        assert ("node's disk" in note) == (journal is elsewhere), note
        role.push(payloads[:10])
        role._replay.stop()
        again = ReplayRole(config, 0)
        note = again.begin(None, journal).note
        assert ("took back " in note) == (journal is not closed)
        assert ("node's disk" in note) == (journal is elsewhere), "said again"
        again._replay.stop()


def test_a_replay_answers_what_it_is_told_of_others_and_of_the_learner(tmp_path: Path, payloads: list[bytes]) -> None:
    role = ReplayRole(maze_config(tmp_path, replay={"min_steps": 900, "shards": 2}, mode="ray", actors=2), 1)
    role.begin(None)
    role.push(payloads[:10])
    answer = role.sample([8], Held(), 3, 0.0, 64, None)
    assert answer.draws is None, "it waits for min_steps"
    assert list(answer.fresh.fragments) == payloads[:3]
    assert answer.fresh.first == SHARD_STRIDE
    held = Held(answer.fresh.log, SHARD_STRIDE, SHARD_STRIDE + 3)
    answer = role.sample([8], held, 3, 0.0, 64, Balance(900, debt=0, drawable=True))
    assert answer.draws is not None, "the other shard has been filled"
    assert list(answer.fresh.fragments) == payloads[3:6]
    assert (answer.draws.chains[:, 0] >= SHARD_STRIDE).all()


def test_a_call_is_tried_again_only_while_its_role_is_being_started_again() -> None:
    await_restart(ActorUnavailableError("being started", None))
    with pytest.raises(ActorDiedError):
        await_restart(ActorDiedError())


class _Answers:
    """Stands for an actor's handle: `method.remote()` answers what the method returns, through the object store."""

    def __init__(self, **methods: Any) -> None:
        for name, method in methods.items():
            setattr(self, name, _Method(method))


class _Method:
    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *arguments: Any) -> Any:
        return ray.put(self._method(*arguments))


@pytest.mark.ray
def test_an_actor_takes_the_weights_of_a_learner_that_was_set_back(local_ray: None) -> None:
    offered = {"version": 7}

    def latest(known: int) -> list[Any]:
        return [] if known == offered["version"] else [ray.put(WeightSnapshot(offered["version"], None))]  # type: ignore[arg-type]

    weights = RemoteWeights(_Answers(latest=latest))
    first = weights.latest(-1)
    assert first is not None
    assert first.version == 7
    assert weights.latest(7) is None
    offered["version"] = 3
    found: list[WeightSnapshot] = []
    until(lambda: bool(found.extend(s for s in [weights.latest(7)] if s) or found), "the older weights")
    assert found[0].version == 3


class Gate:
    """Lets nobody pass before it is open."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def passes(self, answer: Any) -> Any:
        self._opened.wait()
        return answer


@pytest.mark.ray
def test_what_is_not_acknowledged_is_counted(local_ray: None) -> None:
    gate = ray.remote(Gate).options(num_cpus=0, max_concurrency=4).remote()

    class Passes:
        def remote(self, *arguments: Any) -> Any:
            return gate.passes.remote(None)

    class Closed:
        push = update_priorities = Passes()

    pushes, priorities = RemoteSink(Closed(), limit=16), RemotePriorities([Closed()], updates_per_call=1)
    for count in (3, 2):
        pushes.push([bytes(8)] * count)
    priorities.update_priorities(np.array([1, 2]), np.array([0.1, 0.2]))
    assert (pushes.unacknowledged, priorities.unacknowledged) == (5, 1), "fragments, and calls"
    ray.get(gate.open.remote())
    until(lambda: (pushes.unacknowledged, priorities.unacknowledged) == (0, 0), "all to be acknowledged")
    ray.kill(gate)


@pytest.mark.ray
def test_an_actor_takes_weights_at_the_first_step_at_which_they_are_there_and_has_one_request_under_way(
    local_ray: None, tmp_path: Path
) -> None:
    config = maze_config(tmp_path, actor={"weight_pull_period_steps": 4})
    network = QNetwork(config.network, env_spec(config.env), 1)
    gate = ray.remote(Gate).options(num_cpus=0, max_concurrency=2).remote()
    known_versions: list[int] = []
    answers: list[Any] = []

    class Latest:
        def remote(self, known: int) -> Any:
            known_versions.append(known)
            answer = [ray.put(WeightSnapshot(len(known_versions), network.to_vector()))]
            answers.append(ray.put(answer) if known < 0 else gate.passes.remote(answer))
            return answers[-1]

    class Learner:
        latest = Latest()

    def version_after_a_step() -> int:
        actor.step()
        return actor.take_stats().weight_version

    actor = Actor(config, 0, FakeSink(), RemoteWeights(Learner()))
    assert [version_after_a_step() for _ in range(9)] == [1] * 9
    assert known_versions == [-1, 1], "the request of step 4 is still under way at step 8"
    ray.get(gate.open.remote())
    ray.wait([answers[1]])
    assert version_after_a_step() == 2, "three steps before the next period begins"
    assert known_versions == [-1, 1]
    assert [version_after_a_step() for _ in range(2)] == [2, 2]
    assert known_versions == [-1, 1]
    version_after_a_step()
    assert known_versions == [-1, 1, 2], "step 12 asks anew"
    actor.close()


@pytest.mark.ray
def test_a_version_is_stored_once_and_only_as_long_as_it_is_the_newest(local_ray: None, tmp_path: Path) -> None:
    network = QNetwork(maze_config(tmp_path).network, env_spec(maze_config(tmp_path).env), 1)
    learner: Any = object.__new__(LearnerRole)
    learner._begun, learner._ref, learner._publisher = True, None, WeightPublisher()

    def held() -> set[str]:
        core: Any = ray._private.worker.global_worker.core_worker  # type: ignore[attr-defined]
        return {key.decode() for key in core.get_all_reference_counts()}

    ids = []
    for version in range(1, 6):
        learner._publisher.publish(network, version)
        (reference,) = learner.latest(version - 1)
        (again,) = learner.latest(-1)
        assert reference == again
        assert ray.get(reference).version == version
        ids.append(reference.hex())
        del reference, again
        assert held() & set(ids) == {ids[-1]}
    assert learner.latest(5) == []


@pytest.mark.ray
def test_priorities_of_several_updates_go_in_one_call_in_their_order(local_ray: None) -> None:
    calls: list[tuple[list[int], list[float]]] = []
    replay = _Answers(update_priorities=lambda ids, priorities: calls.append((ids.tolist(), priorities.tolist())))
    sink = RemotePriorities([replay], updates_per_call=2)
    for ids in ([1, 2], [2, 3], [4, 5]):
        sink.update_priorities(np.array(ids), np.array(ids) / 10 + len(calls))
    assert calls == [([1, 2, 2, 3], [0.1, 0.2, 0.2, 0.3])]
    sink.update_priorities(np.array([6, 7]), np.array([0.6, 0.7]))
    assert calls[1] == ([4, 5, 6, 7], [1.4, 1.5, 0.6, 0.7])
    assert sink.unacknowledged == 0, "both were answered, though nobody has waited for them"


@pytest.fixture(scope="module")
def replay(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    config = maze_config(tmp_path_factory.mktemp("unused"))
    (handle,) = remote_replay.start_replay(config, "test-remote")
    yield handle
    ray.kill(handle)
    until(lambda: not role_processes("Replay"), "the replay to end")


def _begun(replay: Any) -> bool:
    """Whether a replay that is being started again could be told to begin."""
    try:
        ray.get(replay.begin.remote(None), timeout=60)
    except ActorUnavailableError:
        return False
    return True


@pytest.mark.ray
def test_pushes_are_bounded_and_a_refused_one_says_what_is_wrong(replay: Any, payloads: list[bytes]) -> None:
    sink = RemoteSink(replay, limit=4)
    for first in range(0, 9, 3):
        sink.push(payloads[first : first + 3])
        assert sum(len(call) for _, call in sink._in_flight) <= 4
    sink.push([payloads[9][:-5], payloads[10]])
    sink.push(payloads[11:13])
    with pytest.raises(FragmentError) as refused:
        sink.push(payloads[13:15])
    assert "Traceback" not in str(refused.value)


@pytest.mark.ray
def test_more_fragments_than_may_be_in_flight_go_in_several_calls(local_ray: None) -> None:
    calls: list[list[bytes]] = []
    sink = RemoteSink(_Answers(push=calls.append), limit=4)
    sink.push([bytes([i]) for i in range(10)])
    assert [b"".join(call) for call in calls] == [bytes(range(4)), bytes(range(4, 8)), bytes(range(8, 10))]
    assert sink.unacknowledged == 0, "all were answered, though nobody has waited for them"


@pytest.mark.ray
def test_draws_through_ray_are_those_of_the_same_replay_here(
    local_ray: None, tmp_path: Path, payloads: list[bytes]
) -> None:
    config = maze_config(tmp_path, mode="ray", replay={"rate_tolerance_steps": 10**6})  # nobody blocks
    others = len(role_processes("Replay"))
    (replay,) = remote_replay.start_replay(config, "test-of-draws")
    twin = make_replay(config, 0)  # of the same seed, hence with the same draws
    sources = [RemoteSource([handle], 8, 8, seed=0) for handle in (replay, _Answers(sample=twin.sample))]
    there, here = Keeper(fresh_limit=3, room=20), Keeper(fresh_limit=3, room=20)
    sizes = []
    for payload in payloads[:30]:
        ray.get(replay.push.remote([payload]))
        twin.push(payload)
    for number in range(40):
        if number % 4 == 0:
            ray.get(replay.push.remote([payloads[30 + number // 4]]))
            twin.push(payloads[30 + number // 4])
        drawn, expected = sources[0].sample(2, there), sources[1].sample(2, here)
        assert (drawn is None) == (expected is None) == (number == 0), "the first call only asks what there is"
        assert there.kept() == here.kept()
        if drawn is not None and expected is not None:
            assert len(drawn.ids) == 2 * 8
            for field in fields(WindowDraws):
                np.testing.assert_array_equal(getattr(drawn, field.name), getattr(expected, field.name), field.name)
            sizes.append(len(drawn.unheld))
            assert there.read(drawn) == here.read(expected)
    ((_, log),) = there.logs[0].items()
    assert log == list(enumerate(payloads)), "each once, in order"
    assert sum(sizes) > 0, "a learner with room for half of it is sent the rest as it is drawn"
    ray.kill(replay)
    until(lambda: len(role_processes("Replay")) == others, "the replay to end")


@pytest.mark.ray
def test_priorities_go_to_the_shard_that_holds_the_window(local_ray: None) -> None:
    calls: list[tuple[int, list[int], list[float]]] = []

    def note(shard: int) -> Any:
        return lambda ids, priorities: calls.append((shard, ids.tolist(), priorities.tolist()))

    sink = RemotePriorities([_Answers(update_priorities=note(shard)) for shard in range(3)], updates_per_call=1)
    sink.update_priorities(np.array([2 * SHARD_STRIDE + 7, 5, 2 * SHARD_STRIDE]), np.array([0.1, 0.2, 0.3]))
    assert calls == [(0, [5], [0.2]), (2, [2 * SHARD_STRIDE + 7, 2 * SHARD_STRIDE], [0.1, 0.3])]


@pytest.mark.ray
def test_a_dead_shard_leaves_the_other_to_serve_and_is_drawn_from_again_when_it_is_back(
    local_ray: None, tmp_path: Path, payloads: list[bytes]
) -> None:
    config = maze_config(tmp_path, actors=2, replay={"rate_tolerance_steps": 10**6, "shards": 2, "min_steps": 100})
    others = len(role_processes("Replay"))
    shards = remote_replay.start_replay(config, "test-of-shards")
    for number, payload in enumerate(payloads):
        ray.get(shards[number % 2].push.remote([payload]))
    source = RemoteSource(shards, batch_windows=16, unroll_steps=8, seed=0)
    keeper = Keeper(shards=2)

    def drawn_from() -> set[int]:
        draws = source.sample(2, keeper)
        if draws is None:
            return set()
        keeper.read(draws)
        return set((draws.ids // SHARD_STRIDE).tolist())

    until(lambda: drawn_from() == {0, 1}, "both to be drawn from")
    ray.kill(shards[1], no_restart=False)
    until(lambda: drawn_from() == {0}, "the other one to serve alone")
    until(lambda: _begun(shards[1]), "Ray to start the shard again")
    for payload in payloads[1::2]:
        ray.get(shards[1].push.remote([payload]))
    until(lambda: drawn_from() == {0, 1}, "the new shard to be drawn from")
    # What the new shard holds came again, as another log.
    assert [[payload for _, payload in log] for log in keeper.logs[1].values() if log] == [payloads[1::2]] * 2
    assert [len(log) for log in keeper.logs[0].values()] == [len(payloads[::2])]
    for shard in shards:
        ray.kill(shard)
    until(lambda: len(role_processes("Replay")) == others, "the shards to end")


@pytest.mark.ray
def test_a_shard_that_nobody_feeds_does_not_hold_up_the_others(local_ray: None) -> None:
    """Its own debt would forbid every draw; that of the whole allows them, and it must hear of that."""
    parts = make_parts(2, min_steps=40, tolerance=128)
    source, keeper = RemoteSource([_Answers(sample=part.sample) for part in parts], 16, 4, seed=0), Keeper(shards=2)
    fill(parts, envs=[0, 1, 2, 3])

    def feed() -> None:
        with contextlib.suppress(ReplayStopped):
            for env in itertools.count(4):
                for piece in cut_episode(SHAPE, 40, np.random.default_rng(env), (env, 0, 0)):
                    parts[1].push(piece.payload)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        drawn = [draws for draws in (source.sample(2, keeper) for _ in range(21)) if draws is not None]
        assert [len(draws.ids) for draws in drawn] == [2 * 16] * 20, "the first call only asks what there is"
        assert {int(shard) for draws in drawn for shard in draws.ids // SHARD_STRIDE} == {0, 1}
    finally:
        for part in parts:
            part.stop()
        feeder.join(10)
    assert not feeder.is_alive()


class _Hesitating:
    """A shard whose rate limiter lets a call through only at the second try; notes what it was asked."""

    def __init__(self, part: Replay, refusals: int) -> None:
        self._part, self._left = part, refusals
        self.asked: list[tuple[int, Held, int]] = []

    def sample(self, counts: Sequence[int], held: Held, fresh_limit: int, *rest: Any) -> ShardAnswer:
        self.asked.append((sum(counts), held, fresh_limit))
        answer = self._part.sample(counts, held, fresh_limit, *rest)
        if answer.draws is None or not self._left:
            return answer
        self._left -= 1
        return replace(answer, draws=None)


@pytest.mark.ray
def test_a_shard_that_gave_its_part_sends_no_more_fragments_until_all_have_given_theirs(local_ray: None) -> None:
    """They could drive out what the windows read that it has given."""
    parts = make_parts(2)
    fill(parts)
    prompt, late = _Hesitating(parts[0], refusals=0), _Hesitating(parts[1], refusals=3)
    keeper = Keeper(shards=2, fresh_limit=5, room=10)
    source = RemoteSource([_Answers(sample=shard.sample) for shard in (prompt, late)], 16, 4, seed=0)
    assert source.sample(1, keeper) is None
    prompt.asked.clear()
    late.asked.clear()
    draws = source.sample(1, keeper)
    assert draws is not None
    mine, others = (int((draws.ids // SHARD_STRIDE == shard).sum()) for shard in range(2))
    assert mine + others == 16
    # The late one takes in five more with each try; the other goes on hearing what was counted, and nothing else.
    assert [(count, limit) for count, _, limit in prompt.asked] == [(mine, 5), (0, 0), (0, 0), (0, 0)]
    assert [(count, limit) for count, _, limit in late.asked] == [(others, 5)] * 4
    assert [held.end - SHARD_STRIDE for _, held, _ in late.asked] == [5, 10, 15, 20]
    keeper.read(draws)  # nothing that they read was driven out meanwhile


class _Mortal:
    """A filled shard in a process of its own that dies when it is asked, if it is told to."""

    def __init__(self, shard: int) -> None:
        parts = make_parts(2)
        fill(parts)
        self._part, self._dies = parts[shard], False

    def sample(self, *arguments: Any) -> ShardAnswer:
        if self._dies:
            os._exit(1)
        return self._part.sample(*arguments)

    def die_at_next(self) -> None:
        self._dies = True


@pytest.mark.ray
def test_what_others_drew_is_dropped_when_a_shard_dies_in_the_midst_of_a_call(local_ray: None) -> None:
    keeper = Keeper(shards=2)
    untyped: Any = ray
    handles = [untyped.remote(_Mortal).remote(shard) for shard in range(2)]
    source = RemoteSource(handles, 16, 4, seed=0)

    def drawn_from() -> set[int]:
        draws = source.sample(2, keeper)
        return set() if draws is None else set((draws.ids // SHARD_STRIDE).tolist())

    until(lambda: drawn_from() == {0, 1}, "both to be drawn from")
    ray.get(handles[1].die_at_next.remote())
    assert source.sample(2, keeper) is None
    until(lambda: drawn_from() == {0}, "the other to serve alone")
    ray.kill(handles[0])

    def gone() -> bool:
        try:
            source.sample(2, keeper)
        except ActorDiedError:
            return True
        return False

    until(gone, "word that no shard is left")


@pytest.mark.ray
def test_pushes_to_a_replay_that_dies_are_sent_again(replay: Any, payloads: list[bytes]) -> None:
    before = ray.get(replay.pulse.remote()).stats
    sink = RemoteSink(replay, limit=16)
    sink.push(payloads[15:17])
    until(lambda: bool(role_processes("Replay")), "the replay's process")
    (process,) = role_processes("Replay")
    process.kill()
    process.wait(30)
    for first in (17, 20):  # as many as fit in flight: the next would wait for the new replay to begin
        sink.push(payloads[first : first + 3])

    until(lambda: _begun(replay), "Ray to start the replay again")
    sink.push(payloads[23:31])
    while sink._in_flight:
        sink._settle()
    pulse = ray.get(replay.pulse.remote())
    # The first two may have been stored, and acknowledged, before the death.
    assert before.fragments > 0
    assert pulse.stats.fragments - len(payloads[17:31]) in (0, 2)
    assert pulse.stats.duplicates == 0
