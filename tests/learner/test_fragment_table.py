"""Table and store together, against plain episodes: random fragments, evictions, draws, limits and rings."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from drqn_dist.codec import decode_header, encode
from drqn_dist.config import TrainConfig
from drqn_dist.errors import DrqnError, FragmentError
from drqn_dist.fragment import Fragment
from drqn_dist.interfaces import SHARD_STRIDE, EnvSpec, Fresh, WindowDraws
from drqn_dist.network.torso import make_torso
from learner.feed import Intake
from learner.fragment_table import FAR, Capacity, FragmentTable, Windows
from learner.frame_store import FrameStore, Staged, StorePlan
from learner.windows import pack, rows_of
from replay_server.replay import Replay
from tests.tiny import tiny_config

SPEC = EnvSpec((2,), "float32", num_actions=5, frames_per_step=1)
BATCH, MOST_BATCHES = 6, 3


def random_config(rng: np.random.Generator) -> TrainConfig:
    unroll = int(rng.integers(1, 7))
    stride = int(rng.integers(1, unroll + 1))
    return tiny_config(
        env={"stack_frames": int(rng.integers(1, 4))},
        network={"core_units": 2, "last_action_and_reward": bool(rng.integers(2))},
        learner={
            "batch_windows": BATCH,
            "unroll_steps": unroll,
            "burn_in_steps": int(rng.integers(0, 6)),
            "n_step": int(rng.integers(1, 4)),
            "stored_state": bool(rng.integers(3)),
        },
        replay={"window_stride_steps": stride, "capacity_steps": 150},
        actor={"fragment_steps": stride * int(rng.integers(1, 4)), "envs_per_actor": 1},
    )


def action_at(episode: int, step: Any) -> Any:
    return (3 * episode + step) % 5


def reward_at(episode: int, step: Any) -> Any:
    return episode + step / 64


def version_of(episode: int, first_step: int) -> int:
    return 1000 * episode + first_step


class Game:
    """Episodes in which everything tells its own number and step, cut into fragments that come in any order."""

    def __init__(self, config: TrainConfig, rng: np.random.Generator) -> None:
        self._shape, self._stored, self._rng = config.window, config.learner.stored_state, rng
        self._pending: list[bytes] = []
        self._sequence_no = 0
        self.lengths: list[int] = []
        self.terminated: list[bool] = []

    def next(self) -> bytes:
        while len(self._pending) < 5:
            self._play()
        return self._pending.pop(int(self._rng.integers(5)))

    def _play(self) -> None:
        episode, length = len(self.lengths), int(self._rng.choice([1, 2, 3, 9, 24, 40]))
        self.lengths.append(length)
        self.terminated.append(bool(self._rng.integers(2)))
        for first in range(0, length, self._shape.fragment):
            count = min(self._shape.fragment, length - first)
            ends = first + count == length
            steps = range(first, first + count)
            states = [s for s in steps if self._stored and self._shape.needs_state_at(s)]
            fragment = Fragment(
                observations=np.array([[episode, s] for s in (*steps, first + count)], np.float32),
                actions=np.array([action_at(episode, s) for s in steps], np.int64),
                rewards=np.array([reward_at(episode, s) for s in steps], np.float32),
                terminated=ends and self.terminated[episode],
                truncated=ends and not self.terminated[episode],
                first_step=first,
                actor_id=0,
                env_id=0,
                episode_id=episode,
                sequence_no=self._sequence_no,
                weight_version=version_of(episode, first),
                priorities=np.ones(-(-count // self._shape.stride), np.float32),
                states={s - first: np.array([[episode, s]], np.float32) for s in states},
            )
            self._sequence_no += 1
            self._pending.append(encode(fragment))


@dataclass
class Drawn:
    """A draw whose fragments are not written yet, and whose batches are not gathered."""

    staged: list[Staged]
    windows: Windows
    draws: WindowDraws
    episodes: list[tuple[int, int]]
    """Number and length of each window's episode."""


class Rig:
    """A table and a store behind one or two replays; what is drawn is written and gathered some draws later."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.config = config = random_config(rng)
        self.shape = shape = config.window
        self.limit = int(rng.integers(1, 7))
        self.shards = int(rng.integers(1, 3))
        fragments = int(rng.choice([2 * (self.limit + 2), 3 * (self.limit + 2), 120]))
        states = shape.fragment // shape.stride if config.learner.stored_state else 0
        capacity = Capacity(
            rows=fragments * (shape.fragment + 1),
            states=fragments * states,
            fragments=4 * fragments,
            extra_fragments=MOST_BATCHES * BATCH * shape.most_fragments,
        )
        self.ring_fragments = fragments
        self.table = FragmentTable(shape, self.shards, capacity, config.learner.stored_state)
        self.store = FrameStore(
            self.table.num_rows, self.table.num_states, (2,), torch.float32, (1, 2), torch.device("cpu")
        )
        plan = StorePlan("device", capacity, self.limit, 0, complete=False)
        self.intake = Intake(config, SPEC, make_torso(config.network, (2,)), self.table, plan)
        self.games = [Game(config, rng) for _ in range(self.shards)]
        self.replays = [self._replay(shard) for shard in range(self.shards)]
        self.waiting: deque[Drawn] = deque()
        self.pushed = self.checked = self.drawn_held = self.drawn_unheld = 0

    def _replay(self, shard: int) -> Replay:
        # Half as much in each of two shards, yet every one can hold a window.
        config = replace(self.config.replay, capacity_steps=150 * self.shards)
        return Replay(config, self.shape, BATCH, 10**9, shard, shard=shard, shards=self.shards)

    def push(self) -> None:
        shard = int(self.rng.integers(self.shards))
        assert self.replays[shard].push(self.games[shard].next())
        self.pushed += 1

    def restart(self) -> None:
        shard = int(self.rng.integers(self.shards))
        self.replays[shard] = self._replay(shard)
        self.games[shard] = Game(self.config, self.rng)

    def draw(self) -> None:
        shard, limit = int(self.rng.integers(self.shards)), int(self.rng.integers(0, self.limit + 1))
        counts = [BATCH] * int(self.rng.integers(1, MOST_BATCHES + 1))
        answer = self.replays[shard].sample(counts, self.table.held(shard, limit), limit, timeout_s=0.0)
        assert len(answer.fresh.fragments) <= limit
        self.intake.receive(answer.fresh, shard)
        draws = answer.draws
        if draws is None:
            return  # what came waits for the next draw
        self.intake.receive_unheld(draws)
        self.drawn_held += len(draws.unheld) == 0
        self.drawn_unheld += len(draws.unheld) > 0
        store = self.replays[shard]._store
        episodes = [decode_header(store[int(s)].payload, 2**20).episode_id for s in draws.chains[:, 0]]
        lengths = [self.games[shard].lengths[e] for e in episodes]
        ends = [self.games[shard].terminated[e] for e in episodes]
        windows = self.table.locate(draws)
        self.check_facts(windows, draws, episodes, lengths, ends)
        self.waiting.append(Drawn(self.intake.take(), windows, draws, list(zip(episodes, lengths, strict=True))))

    def gather(self) -> None:
        """Writes the oldest draw and reads its batches: what comes later has been placed, but is not written."""
        drawn = self.waiting.popleft()
        for staged in drawn.staged:
            self.store.write(staged)
        count = len(drawn.draws.ids) // BATCH
        for k, places in enumerate(torch.from_numpy(pack(drawn.windows, count))):
            gathered = self.store.gather(*rows_of(places))
            for row in range(BATCH):
                i = k * BATCH + row
                (episode, length), start = drawn.episodes[i], int(drawn.draws.starts[i])
                self.check_window(gathered, row, episode, length, start)
                self.checked += 1

    def check_facts(
        self, windows: Windows, draws: WindowDraws, episodes: list[int], lengths: list[int], ends: list[bool]
    ) -> None:
        shape = self.shape
        for i, (episode, length, start) in enumerate(zip(episodes, lengths, draws.starts.tolist(), strict=True)):
            began = max(0, start - shape.burn_in)
            assert windows.first_steps[i] == start - shape.burn_in
            assert windows.weight_versions[i] == version_of(episode, began - began % shape.fragment)
            if length <= start + shape.unroll + shape.n_step - 1:
                assert windows.steps_left[i] == length - start
                assert windows.terminated[i] == ends[i]
            else:
                assert windows.steps_left[i] in (length - start, FAR)

    def check_window(self, gathered: Any, row: int, episode: int, length: int, start: int) -> None:
        shape = self.shape
        steps = np.arange(-shape.history, shape.total) + start - shape.burn_in
        shown = np.clip(steps, 0, length)
        assert (gathered.frames[:, row].numpy() == np.stack([np.full_like(shown, episode), shown], 1)).all()
        # Of the last observation nothing else is read.
        actions, rewards = gathered.actions[:-1, row].numpy(), gathered.rewards[:-1, row].numpy()
        inside = (steps >= 0) & (steps < length)
        assert (actions == action_at(episode, steps[:-1]))[inside[:-1]].all()
        assert (rewards == reward_at(episode, steps[:-1]))[inside[:-1]].all()
        assert not rewards[steps[:-1] >= length].any()
        began = max(0, start - shape.burn_in)
        stored = self.config.learner.stored_state and began > 0
        assert gathered.state[0, row].tolist() == ([episode, began] if stored else [0, 0])


def run(rig: Rig) -> None:
    for _ in range(100):
        for _ in range(int(rig.rng.integers(0, 4))):
            rig.push()
        rig.draw()
        if rig.rng.random() < 0.02:
            rig.restart()
        while len(rig.waiting) > int(rig.rng.integers(0, 4)):
            rig.gather()


def test_every_located_window_equals_its_episode_whatever_comes_goes_and_waits() -> None:
    rigs = [Rig(seed) for seed in range(20)]
    for rig in rigs:
        run(rig)
        assert rig.checked > 500
    # All cases have really come about, and rings were filled several times over.
    assert {rig.shards for rig in rigs} == {1, 2}
    assert {rig.config.learner.stored_state for rig in rigs} == {True, False}
    assert sum(rig.drawn_held for rig in rigs) > 200
    assert sum(rig.drawn_unheld for rig in rigs) > 200
    assert sum(rig.pushed > 5 * rig.shards * rig.ring_fragments for rig in rigs) > 5


def full_fragment(config: TrainConfig, number: int, steps: int | None = None) -> Fragment:
    """Fragment `number` of an endless episode, or its last one."""
    length = config.window.fragment
    count, first = steps or length, number * length
    return Fragment(
        observations=np.array([[0, first + k] for k in range(count + 1)], np.float32),
        actions=np.zeros(count, np.int64),
        rewards=np.zeros(count, np.float32),
        terminated=steps is not None,
        truncated=False,
        first_step=first,
        actor_id=0,
        env_id=0,
        episode_id=0,
        sequence_no=number,
        weight_version=0,
        priorities=np.ones(1, np.float32),
        states={k: np.array([[0, first + k]], np.float32) for k in range(count)},
    )


SMALL = tiny_config(network={"core_units": 2}, learner={"unroll_steps": 4}, actor={"fragment_steps": 4})


def small_table(fragments: int = 6, extra: int = 2, shards: int = 1) -> FragmentTable:
    return FragmentTable(SMALL.window, shards, Capacity(5 * fragments, fragments, 4 * fragments, extra), True)


def one_window(serial: int, start: int, unheld: list[int] | None = None) -> WindowDraws:
    return WindowDraws(
        ids=np.array([0]),
        probabilities=np.array([1.0]),
        starts=np.array([start]),
        chains=np.array([[serial, -1]]),
        population=1,
        inserted_steps=0,
        unheld=np.array(unheld or [], np.int64),
        unheld_fragments=(),
    )


def test_a_ring_promises_what_it_will_still_hold_and_keeps_the_promise() -> None:
    table = small_table(fragments=6)
    table.begin(0, log=7, first=0)
    for number in range(20):
        held = table.held(0, more=1)
        table.place(0, full_fragment(SMALL, number))
        for serial in range(held.first, number + 1):
            assert table.locate(one_window(serial, 4 * serial)).rows[0, 0] == 5 * (serial % 6)
        # 5 rows each of 30: with two more to come, 4 of the 6 may stay.
        assert (held.log, held.end - held.first) == (7, min(number, 4))


def test_an_episode_is_followed_back_to_its_start_where_all_of_it_is_kept() -> None:
    table = small_table(fragments=6)
    table.begin(0, log=1, first=0)
    for number in range(4):
        table.place(0, full_fragment(SMALL, number))
    whole = table.since_start(8, np.array([2, 3]))
    assert whole is not None
    assert whole.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13]  # a fragment has five rows, its last one apart
    for number in range(4, 7):
        table.place(0, full_fragment(SMALL, number))
    assert table.since_start(8, np.array([2, 3])) is None, "the first fragment was driven out"


def test_an_episode_whose_fragments_came_in_another_order_or_with_a_gap_is_not_followed() -> None:
    table = small_table(fragments=6)
    table.begin(0, log=1, first=0)
    for number in (1, 0, 2, 3):
        table.place(0, full_fragment(SMALL, number))
    assert table.since_start(12, np.array([3, -1])) is None, "what came right before the third is not the second"
    # The window itself may be read in whatever order it came,
    found = table.since_start(0, np.array([1, 0]))
    assert found is not None
    assert found.tolist() == [5, 6, 7, 8]
    for number in (4, 5, 6):
        table.place(0, full_fragment(SMALL, number))
    # but not when one of its fragments, here the first that came, has been driven out.
    assert table.since_start(0, np.array([1, 0])) is None


def test_fragments_of_every_shard_have_their_own_rows() -> None:
    table = small_table(fragments=6, shards=3)
    rows = []
    for shard in range(3):
        first = shard * SHARD_STRIDE
        table.begin(shard, log=1, first=first)
        rows.append([table.place(shard, full_fragment(SMALL, number)).row for number in range(3)])
        assert table.locate(one_window(first + 2, 8)).rows[0].tolist() == [rows[shard][2] + k for k in range(5)]
    assert rows == [[0, 5, 10], [30, 35, 40], [60, 65, 70]]


def test_another_log_or_a_gap_forgets_all_that_was_kept() -> None:
    for log, first in ((2, 3), (1, 5)):
        table = small_table()
        table.begin(0, log=1, first=0)
        for number in range(3):
            table.place(0, full_fragment(SMALL, number))
        table.begin(0, log=1, first=3)  # the next ones: nothing is forgotten
        assert table.locate(one_window(0, 0)).rows[0, 0] == 0
        table.begin(0, log, first)
        held = table.held(0, 1)
        assert (held.log, held.first, held.end) == (log, first, first)
        with pytest.raises(DrqnError, match="reads fragment 2, which the learner neither keeps nor was sent"):
            table.locate(one_window(2, 8))


def test_a_window_of_a_fragment_that_is_not_here_is_refused() -> None:
    table = small_table()
    table.begin(0, log=1, first=0)
    for number in range(9):
        table.place(0, full_fragment(SMALL, number))
    assert table.locate(one_window(8, 32)).rows[0, 0] == 10
    for serial in (0, 2, 9, SHARD_STRIDE - 1):  # driven out, not there yet
        with pytest.raises(DrqnError, match=f"reads fragment {serial}, which the learner neither keeps nor was sent"):
            table.locate(one_window(serial, 4 * serial))


def test_what_came_along_with_a_draw_is_there_for_this_draw_alone() -> None:
    table = small_table(fragments=6, extra=2)
    table.begin(0, log=1, first=100)
    table.begin_extra(np.array([3, 5]))
    placed = [table.place_extra(i, full_fragment(SMALL, number)) for i, number in enumerate((3, 5))]
    assert [p.row for p in placed] == [30, 35]
    assert table.num_rows == 30 + 2 * 5
    assert table.locate(one_window(5, 20)).rows[0].tolist() == [35, 36, 37, 38, 39]
    table.begin_extra(np.array([4]))
    table.place_extra(0, full_fragment(SMALL, 4))
    assert table.locate(one_window(4, 16)).rows[0, 0] == 30
    for serial in (3, 5):
        with pytest.raises(DrqnError, match=f"reads fragment {serial}"):
            table.locate(one_window(serial, 4 * serial))
    with pytest.raises(DrqnError, match="a draw brings 3 fragments, but there is room for 2"):
        table.begin_extra(np.array([1, 2, 3]))


def test_no_fragment_is_split_by_the_rings_end() -> None:
    table = small_table(fragments=6)
    table.begin(0, log=1, first=0)
    rows = [table.place(0, full_fragment(SMALL, number, steps=3)).row for number in range(9)]
    # 4 rows each of 30: the eighth would cross the end.
    assert rows == [0, 4, 8, 12, 16, 20, 24, 0, 4]


def receive(fragment: Fragment, config: TrainConfig = SMALL, spec: EnvSpec = SPEC) -> None:
    capacity = Capacity(100, 20, 40, 4)
    table = FragmentTable(config.window, 1, capacity, config.learner.stored_state)
    torso = make_torso(config.network, spec.observation_shape)
    intake = Intake(config, spec, torso, table, StorePlan("device", capacity, 4, 0, complete=False))
    intake.receive(Fresh(1, 0, (encode(fragment),)), 0)


def test_a_fragment_without_the_state_with_which_a_window_begins_is_refused() -> None:
    whole = full_fragment(SMALL, 1)
    receive(whole)
    with pytest.raises(
        FragmentError, match=r"lacks the recurrent state before its step 0 \(episode step 4 of environment 0\)"
    ):
        receive(replace(whole, states={1: whole.states[1]}))
    zeros = tiny_config(learner={"unroll_steps": 4, "stored_state": False}, actor={"fragment_steps": 4})
    receive(replace(whole, states={}), zeros)


def test_a_core_without_memory_needs_no_stored_states() -> None:
    config = tiny_config(network={"core": "none"}, learner={"unroll_steps": 4}, actor={"fragment_steps": 4})
    assert config.learner.stored_state
    draws = FragmentTable(config.window, 1, Capacity(100, 0, 40, 4), stored_states=False)
    assert len(draws.state_steps(full_fragment(config, 1))) == 0


@pytest.mark.parametrize(
    ("changes", "shape"), [({"core_units": 9}, r"\(1, 9\)"), ({"core": "lstm", "core_units": 2}, r"\(2, 2\)")]
)
def test_a_state_of_another_core_is_refused(changes: dict[str, Any], shape: str) -> None:
    config = tiny_config(network=changes, learner={"unroll_steps": 4}, actor={"fragment_steps": 4})
    with pytest.raises(FragmentError, match=rf"stored state has shape \(1, 2\), but this run's core needs {shape}"):
        receive(full_fragment(SMALL, 1), config)


@pytest.mark.parametrize("spec", [replace(SPEC, observation_shape=(4,)), replace(SPEC, observation_dtype="uint8")])
def test_observations_of_another_environment_are_refused(spec: EnvSpec) -> None:
    with pytest.raises(FragmentError, match=r"float32 observations of shape \(2,\), but this run's environment gives"):
        receive(full_fragment(SMALL, 1), spec=spec)


def test_actions_of_another_environment_are_refused() -> None:
    fragment = replace(full_fragment(SMALL, 1), actions=np.array([0, 1, 2, 3]))
    receive(fragment, spec=replace(SPEC, num_actions=4))
    with pytest.raises(FragmentError, match="action 3, but this run's environment has 3 actions"):
        receive(fragment, spec=replace(SPEC, num_actions=3))


def test_a_corrupted_fragment_and_one_above_the_limit_are_refused() -> None:
    payload = bytearray(encode(full_fragment(SMALL, 1)))
    capacity = Capacity(100, 20, 40, 4)
    plan = StorePlan("device", capacity, 4, 0, complete=False)
    torso = make_torso(SMALL.network, (2,))
    intake = Intake(SMALL, SPEC, torso, small_table(), plan)
    payload[-1] ^= 1
    with pytest.raises(FragmentError, match="checksum"):
        intake.receive(Fresh(1, 0, (bytes(payload),)), 0)
    payload[-1] ^= 1
    strict = replace(SMALL, replay=replace(SMALL.replay, max_fragment_bytes=100))
    with pytest.raises(FragmentError, match="exceeds the limit of 100"):
        Intake(strict, SPEC, torso, small_table(), plan).receive(Fresh(1, 0, (bytes(payload),)), 0)
