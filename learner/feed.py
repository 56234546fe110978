"""From the replay to batches that only need to be gathered: fragments are decoded once, windows are found by index."""

import queue
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drqn_dist.codec import decode
from drqn_dist.config import NetworkConfig, TrainConfig
from drqn_dist.errors import FragmentError
from drqn_dist.fragment import Fragment
from drqn_dist.interfaces import EnvSpec, Fresh, Held, WindowDraws, WindowSource
from drqn_dist.network.torso import ConvTorso, MlpTorso
from drqn_dist.qlearning.priority import importance_weights
from drqn_dist.seeding import derive_seed
from drqn_dist.state import State
from learner.fragment_table import FragmentTable, Placement, Windows, check_fragment
from learner.frame_store import FrameStore, Gathered, Staged, StorePlan, state_shape
from learner.windows import pack, rows_of

PROBED_WINDOWS = 4
"""At most so many windows of a probed batch come with their episode's past,"""
PROBED_STEPS = 4_000
"""and only such as lie in so many first steps of an episode: their past is kept and unrolled."""
WAITING_DRAWS = 1
"""Prepared draws that may wait for the learner; one more is being prepared."""


class Past(NamedTuple):
    """An episode from its start to the last trained step of one of a batch's windows: a long window of its own."""

    window: int
    """Which one of the batch."""
    places: Tensor
    """int64 [W + 4, 1], as for `Batch`."""
    gathered: Gathered | None
    """As for `Batch`."""


class Batch(NamedTuple):
    """One batch, ready to be trained on."""

    places: Tensor
    """int64 [W + 4, B], see `windows.pack`; in pinned memory beside a GPU."""
    weights: Tensor
    """float32 [B], importance weights; likewise."""
    gathered: Gathered | None
    """What the windows read, where the store lies in host memory; pinned beside a GPU."""
    ids: npt.NDArray[np.int64]
    """int64 [B]"""
    weight_versions: npt.NDArray[np.int64]
    """int64 [B], of the policy that acted at the window's start."""
    inserted_steps: int
    pasts: list[Past] | None = None
    """Of the few batches whose windows are to be probed, for some of those that do not begin with their episode."""


@dataclass
class _Prepared:
    """What one draw amounts to: first the fragments are written, then its batches can be gathered."""

    staged: list[Staged] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)


class Intake:
    """Decodes what comes from the replay and finds its place; a `FragmentInbox`. Used from one thread."""

    def __init__(
        self, config: TrainConfig, spec: EnvSpec, torso: ConvTorso | MlpTorso, table: FragmentTable, plan: StorePlan
    ) -> None:
        self._spec, self._torso, self._table = spec, torso, table
        self._max_bytes = config.replay.max_fragment_bytes
        self._state_shape = state_shape(config, spec)
        self._limit = plan.fresh_limit
        self._staged: list[Staged] = []
        self._sums: tuple[Tensor, Tensor, int] = (torch.zeros(()), torch.zeros(()), 0)
        """Sum of frames, of their squares, and their number; replaced as a whole, because another thread reads it."""
        self._measures = measures_frames(config.network)

    @property
    def fresh_limit(self) -> int:
        return self._limit

    def held(self, shard: int) -> Held:
        return self._table.held(shard, self._limit)

    def receive(self, fresh: Fresh, shard: int) -> None:
        """
        Raises:
            FragmentError: a fragment is corrupt, or does not fit this run's environment or network.
        """
        self._table.begin(shard, fresh.log, fresh.first)
        fragments = [self._decode(payload) for payload in fresh.fragments]
        self._stage(fragments, [self._table.place(shard, fragment) for fragment in fragments])

    def receive_unheld(self, draws: WindowDraws) -> None:
        """Takes in the fragments that came along with a draw, for this draw alone."""
        self._table.begin_extra(draws.unheld)
        fragments = [self._decode(payload) for payload in draws.unheld_fragments]
        self._stage(fragments, [self._table.place_extra(i, fragment) for i, fragment in enumerate(fragments)])

    def take(self) -> list[Staged]:
        """What has been decoded since the last call, in order."""
        staged, self._staged = self._staged, []
        return staged

    def measured(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of all frames so far, float32 [*folded_shape] each; from now on they are no
        longer measured. May be called from another thread."""
        self._measures = False
        total, squares, count = self._sums
        mean = total / max(1, count)
        return mean.float(), (squares / max(1, count) - mean.square()).clamp(min=0).sqrt().float()

    def _decode(self, payload: bytes) -> Fragment:
        fragment = decode(payload, self._max_bytes)
        spec = self._spec
        if (
            fragment.observations.shape[1:] != spec.observation_shape
            or fragment.observations.dtype != spec.observation_dtype
        ):
            raise FragmentError(
                f"a fragment holds {fragment.observations.dtype} observations of shape "
                f"{fragment.observations.shape[1:]}, but this run's environment gives "
                f"{spec.observation_dtype} {spec.observation_shape}"
            )
        if int(fragment.actions.max()) >= spec.num_actions:
            raise FragmentError(
                f"a fragment holds action {int(fragment.actions.max())}, but this run's environment has "
                f"{spec.num_actions} actions"
            )
        check_fragment(fragment, self._table.state_steps(fragment), self._state_shape)
        return fragment

    def _stage(self, fragments: list[Fragment], placements: list[Placement]) -> None:
        if not fragments:
            return
        rows, actions, rewards, state_rows, states = [], [], [], [], []
        for fragment, placement in zip(fragments, placements, strict=True):
            rows.append(np.arange(placement.row, placement.row + fragment.num_steps + 1))
            actions += [fragment.actions, _NO_ACTION]
            rewards += [fragment.rewards, _NO_REWARD]
            steps = self._table.state_steps(fragment)
            state_rows.append(np.arange(placement.state_row, placement.state_row + len(steps)))
            states += [fragment.states[step] for step in steps]
        frames = torch.from_numpy(np.concatenate([fragment.observations for fragment in fragments]))
        folded = self._torso.fold(frames)
        if self._measures:
            total, squares, count = self._sums
            exact = folded.double()
            self._sums = (total + exact.sum(0), squares + exact.square().sum(0), count + len(folded))
        kept = np.stack(states) if states else np.zeros((0, *self._state_shape), np.float32)
        self._staged.append(
            Staged(
                rows=torch.from_numpy(np.concatenate(rows)),
                frames=folded,
                actions=torch.from_numpy(np.concatenate(actions)),
                rewards=torch.from_numpy(np.concatenate(rewards)),
                state_rows=torch.from_numpy(np.concatenate(state_rows)),
                states=torch.from_numpy(kept),
            )
        )


def measures_frames(config: NetworkConfig) -> bool:
    """Whether the network wants to know what frames are like on average."""
    return config.center_pixels or config.standardize_vectors


_NO_ACTION, _NO_REWARD = np.zeros(1, np.int64), np.zeros(1, np.float32)


def _pinned(tensor: Tensor) -> Tensor:
    """A copy that a GPU can fetch by itself; of nothing there is none."""
    return tensor.pin_memory() if tensor.numel() else tensor


class Feed:
    """Gives the learner one batch after the other.

    ::

        source.sample → decode, fold, find places ─▶ queue ─▶ write into the store → batch, batch, …
        '------ the feeding thread, or in turn ------'        '------ the learner's thread ------'

    What a draw brings is written when its first batch is asked for: after the batches before it were gathered, so that
    no fragment is overwritten which one of them reads. A store in host memory is the feeding thread's alone, which
    gathers there too.
    """

    def __init__(
        self,
        config: TrainConfig,
        spec: EnvSpec,
        source: WindowSource,
        torso: ConvTorso | MlpTorso,
        plan: StorePlan,
        device: torch.device,
        threaded: bool,
    ) -> None:
        """
        Args:
            torso: folds frames; its weights are not used.
            threaded: a thread prepares the next draws while the present batches train.
        """
        shards = config.replay.shards if config.mode == "ray" else 1
        slots, units = state_shape(config, spec)
        self._remembers = slots > 0
        self._rng = np.random.default_rng(derive_seed(config.seed, "learner", 1))
        self.table = FragmentTable(config.window, shards, plan.capacity, config.learner.stored_state and slots > 0)
        self._gathers = plan.place == "host"
        self._pins = device.type == "cuda"
        probe = torso.fold(torch.zeros(1, *spec.observation_shape, dtype=getattr(torch, spec.observation_dtype)))
        place = torch.device("cpu") if plan.place == "host" else device
        self.store = FrameStore(
            self.table.num_rows, self.table.num_states, tuple(probe.shape[1:]), probe.dtype, (slots, units), place
        )
        self._source, self.intake = source, Intake(config, spec, torso, self.table, plan)
        self._batches, self._windows = config.batches_per_draw, config.learner.batch_windows
        self._exponent = config.replay.importance_exponent
        self._ready: deque[Batch] = deque()
        self._period = config.learner.probe_period_updates
        self._burn_in = config.learner.burn_in_steps
        self._made = 0
        """Batches so far."""
        self._queue: queue.Queue[_Prepared | BaseException] = queue.Queue(WAITING_DRAWS)
        self._failed: BaseException | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
            self._thread.start()

    def next(self) -> Batch:
        """The next batch; waits for it. Raises what the feeding thread raised."""
        while not self.wait(1.0):
            pass
        return self._ready.popleft()

    def wait(self, timeout_s: float) -> bool:
        """Whether, after about this long at most, `next` answers at once."""
        if not self._ready:
            if self._thread is None:
                self._admit(self._prepare())
            else:
                try:
                    item = self._failed or self._queue.get(timeout=timeout_s)
                except queue.Empty:
                    return False
                if isinstance(item, BaseException):
                    self._failed = item  # every later call fails alike, and none hangs
                    raise item
                self._admit(item)
        return bool(self._ready)

    @property
    def waiting(self) -> int:
        """Prepared draws."""
        return self._queue.qsize()

    def get_state(self) -> State:
        """What a feed of the same draws needs to prepare the same batches; between two draws, without a thread."""
        assert not self._ready
        return State(values={"rng": self._rng.bit_generator.state, "made": self._made})

    def set_state(self, state: State) -> None:
        """Goes on as the feed whose state that is."""
        self._rng.bit_generator.state = state.values["rng"]
        self._made = state.number("made")

    def close(self) -> None:
        """Stops the thread, after the call that it waits for."""
        self._stopped.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                self._thread.join(timeout=0.05)

    def _work(self) -> None:
        torch.set_num_threads(1)
        try:
            while not self._stopped.is_set():
                self._queue.put(self._prepare())
        except BaseException as error:
            self._queue.put(error)

    def _prepare(self) -> _Prepared:
        draws = self._source.sample(self._batches, self.intake)
        if draws is not None:
            self.intake.receive_unheld(draws)
        prepared = _Prepared(self.intake.take())
        if self._gathers:
            for staged in prepared.staged:
                self.store.write(staged)
            prepared.staged = []
        elif self._pins:
            prepared.staged = [Staged(*map(_pinned, staged)) for staged in prepared.staged]
        if draws is not None:
            prepared.batches = self._batches_of(draws)
        return prepared

    def _batches_of(self, draws: WindowDraws) -> list[Batch]:
        windows = self.table.locate(draws)
        count = len(draws.ids) // self._windows
        places = torch.from_numpy(pack(windows, count))
        shape = (count, self._windows)
        probabilities = draws.probabilities.reshape(shape)
        weights = torch.from_numpy(importance_weights(probabilities, draws.population, self._exponent))
        if self._pins:
            places, weights = places.pin_memory(), weights.pin_memory()
        ids, versions = draws.ids.reshape(shape), windows.weight_versions.reshape(shape)
        batches = []
        for k in range(count):
            gathered = None
            if self._gathers:
                gathered = self.store.gather(*rows_of(places[k]))
                if self._pins:
                    gathered = Gathered(*map(_pinned, gathered))
            batch = Batch(places[k], weights[k], gathered, ids[k], versions[k], draws.inserted_steps)
            self._made += 1
            if self._period is not None and self._made % self._period == 0:
                batch = batch._replace(pasts=self._pasts_of(draws, windows, k * self._windows))
            batches.append(batch)
        return batches

    def _pasts_of(self, draws: WindowDraws, windows: Windows, first: int) -> list[Past]:
        """Of some windows of the batch whose windows are numbered from `first` on in its draw, chosen at random:
        where a window stands in its batch tells its age. A burn-in that begins with the episode begins from the true
        state: such windows cannot be stale, and are left out."""
        pasts: list[Past] = []
        for window in self._rng.permutation(self._windows if self._remembers else 0).tolist():
            n = first + window
            rows = None
            if self._burn_in < draws.starts[n] < PROBED_STEPS:
                rows = self.table.since_start(int(draws.starts[n]), draws.chains[n])
            if rows is not None:
                places = torch.from_numpy(np.concatenate([rows, np.zeros(4, np.int64)])[:, None])
                gathered = self.store.gather(*rows_of(places)) if self._gathers else None
                pasts.append(Past(window, places, gathered))
            if len(pasts) == PROBED_WINDOWS:
                break
        return pasts

    def _admit(self, prepared: _Prepared) -> None:
        for staged in prepared.staged:
            self.store.write(staged)
        self._ready.extend(prepared.batches)
