"""The actor: steps its environments, cuts fragments, pushes them."""

import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from actors.fragment_buffer import FragmentBuffer
from actors.policy import RecurrentPolicy
from drqn_dist.codec import encode
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import make_batch_env
from drqn_dist.interfaces import BatchEnv, FragmentSink, WeightSource
from drqn_dist.metrics import Stopwatch
from drqn_dist.network.q_network import QNetwork
from drqn_dist.qlearning.exploration import decayed_epsilon, epsilon_ladder
from drqn_dist.seeding import derive_seed
from drqn_dist.state import State, together

_ROWS = ("observations", "rewards", "begins", "idle", "scores", "lengths")
"""What is kept of each environment from step to step."""
_COUNTS = ("steps_before", "batched_steps", "version")


@dataclass(frozen=True)
class Episode:
    """A finished game."""

    score: float
    """Unclipped sum of rewards."""
    steps: int
    epsilon: float
    """Exploration rate of its environment when it ended."""


@dataclass
class ActorStats:
    """What an actor did since it was last asked."""

    agent_steps: int = 0
    fragments: int = 0
    """Pushed ones."""
    weight_version: int = -1
    epsilon: float = 1.0
    """Mean over its environments, now."""
    episodes: list[Episode] = field(default_factory=list)
    policy_s: float = 0.0
    env_s: float = 0.0
    build_s: float = 0.0
    encode_s: float = 0.0
    push_s: float = 0.0
    weights_s: float = 0.0
    index: int = -1
    """Of the actor."""
    wall_s: float = 0.0
    """Since it was last asked."""
    cpu_s: float = 0.0
    """CPU seconds of its process, all threads, since then."""
    told_s: float = 0.0
    """When it was asked, in seconds since 1970."""


class Actor:
    """N environments, one policy. `index` fixes its rungs of the ε ladder and its random streams for good."""

    def __init__(
        self,
        config: TrainConfig,
        index: int,
        sink: FragmentSink,
        weights: WeightSource,
        agent_steps_before: int = 0,
        incarnation: int = 0,
        env: BatchEnv | None = None,
    ) -> None:
        """
        Args:
            index: 0 … config.actors - 1.
            agent_steps_before: steps of the whole run before this actor began (a resume or a replacement).
            incarnation: how often an actor of this index was started before, over the life of the run.
            env: environments to step instead of those that the configuration names.

        Raises:
            EnvError: the environment is unknown or not supported.
        """
        torch.set_num_threads(config.actor.torch_threads)
        self._config = config
        self._index = index
        self._sink, self._weights = sink, weights
        n = config.actor.envs_per_actor
        self._env = env or make_batch_env(
            config.env, n, config.actor.env_threads, derive_seed(config.seed, "actor", index, incarnation)
        )
        spec = self._env.spec
        # The first pull replaces these random weights; their seed matters only until then.
        torch.manual_seed(derive_seed(config.seed, "network"))
        network = QNetwork(config.network, spec, config.env.stack_frames)
        rng = np.random.default_rng(derive_seed(config.seed, "actor", index, incarnation, 1))
        self.policy = RecurrentPolicy(network, spec, config.env.stack_frames, n, rng)
        self._buffer = FragmentBuffer(config, spec, index, n, incarnation)
        self._rungs = epsilon_ladder(
            index * n, n, config.total_envs, config.actor.epsilon_low, config.actor.epsilon_high
        )
        self._steps_before = agent_steps_before
        self._batched_steps = 0
        self._push_period = config.push_period
        self._version = -1
        self._observations = self._env.reset(derive_seed(config.seed, "environment", index, incarnation))
        self._rewards = np.zeros(n, np.float32)
        self._begins = np.ones(n, np.bool_)
        self._idle = np.zeros(n, np.bool_)
        self._scores = np.zeros(n, np.float64)
        self._lengths = np.zeros(n, np.int64)
        self._stats = ActorStats()
        self._watch = Stopwatch()

    @property
    def batched_steps(self) -> int:
        """So far; may be asked from another thread."""
        return self._batched_steps

    def step(self) -> int:
        """One batched environment step; now and then pushes the fragments completed so far (and may block there).

        Returns:
            Agent steps taken: one per environment that was not just being reset.
        """
        stats, start = self._stats, time.perf_counter()
        due = self._batched_steps % self._config.actor.weight_pull_period_steps == 0
        if due or self._weights.pending or self._version < 0:
            self._pull_weights()
        pulled = time.perf_counter()
        decision = self.policy.act(self._observations, self._begins, self._rewards, self._epsilons())
        acted = time.perf_counter()
        version = max(self._version, 0)  # until the first weights come, those of no update at all
        self._buffer.observe(self._observations, decision.q_values, decision.states, self._begins, version)
        due = (self._batched_steps + 1) % self._push_period == 0
        fragments = self._buffer.take() if due else []
        built = time.perf_counter()
        payloads = [encode(fragment) for fragment in fragments]
        encoded = time.perf_counter()
        if payloads:
            self._sink.push(payloads)
            stats.fragments += len(payloads)
        pushed = time.perf_counter()
        batch = self._env.step(decision.actions)
        stepped = time.perf_counter()

        ended = batch.terminated | batch.truncated
        active = ~self._idle
        self._buffer.add(decision.actions, batch, active)
        self._scores[active] += batch.rewards[active]
        self._lengths[active] += 1
        self._finish_games(batch.reset_pending & active)
        # A row that was idle has just been reset: its observation begins an episode. A lost life ends the
        # learning episode without a reset: the observation that ended it begins the next one.
        self._begins = self._idle | (ended & ~batch.reset_pending & active)
        self._idle = batch.reset_pending & active
        self._observations, self._rewards = batch.observations, batch.rewards
        self._batched_steps += 1

        taken = int(active.sum())
        stats.agent_steps += taken
        stats.weights_s += pulled - start
        stats.policy_s += acted - pulled
        stats.build_s += built - acted + time.perf_counter() - stepped
        stats.encode_s += encoded - built
        stats.push_s += pushed - encoded
        stats.env_s += stepped - pushed
        return taken

    def run(self, seconds: float) -> ActorStats:
        """Steps for about this long and answers what was done; the unit in which an actor is driven remotely."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.step()
        return self.take_stats()

    def take_stats(self) -> ActorStats:
        """Statistics since the last call."""
        stats, self._stats = self._stats, ActorStats()
        stats.weight_version = self._version
        stats.epsilon = float(self._epsilons().mean())
        stats.index = self._index
        stats.wall_s, stats.cpu_s = self._watch.lap()
        stats.told_s = time.time()
        return stats

    def get_state(self) -> State:
        """All that outlives a step, and what `take_stats` would answer but for its times."""
        values = {name: getattr(self, f"_{name}") for name in _COUNTS}
        stats = self._stats
        counted = {"agent_steps": stats.agent_steps, "fragments": stats.fragments}
        values["stats"] = counted | {"episodes": [asdict(episode) for episode in stats.episodes]}
        return together(
            actor=State({name: getattr(self, f"_{name}").copy() for name in _ROWS}, values),
            env=self._env.get_state(),
            policy=self.policy.get_state(),
            buffer=self._buffer.get_state(),
        )

    def set_state(self, state: State) -> None:
        """Goes on, bit for bit, as the actor whose state that is, of the same configuration and index; its incarnation
        and the steps before it are the saved ones. Its environments play their episodes again, which takes a while.

        After an error it is of no use: then a new actor with the next incarnation takes its place, as after a failure.

        Raises:
            EnvNotRestoredError: an environment did not come back as it was.
            CheckpointError, FragmentError: the state belongs to another configuration.
        """
        self._env.set_state(state.part("env"))
        self.policy.set_state(state.part("policy"))
        self._buffer.set_state(state.part("buffer"))
        own = state.part("actor")
        self._observations = np.empty_like(self._observations)  # the present one is the environment's
        for name in _ROWS:
            own.fill(name, getattr(self, f"_{name}"))
        for name in _COUNTS:
            setattr(self, f"_{name}", own.number(name))
        stats = State(values=own.values["stats"])
        self._stats = ActorStats(stats.number("agent_steps"), stats.number("fragments"))
        self._stats.episodes = [Episode(**episode) for episode in stats.values["episodes"]]

    def close(self) -> None:
        self._env.close()

    def _epsilons(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        # The other actors are taken to be as fast as this one.
        steps = self._steps_before + self._batched_steps * self._config.total_envs
        actor = self._config.actor
        return decayed_epsilon(self._rungs, steps, actor.epsilon_decay, actor.epsilon_decay_steps)

    def _pull_weights(self) -> None:
        snapshot = self._weights.latest(self._version)
        if snapshot is not None:
            self.policy.network.load_vector(snapshot.vector)
            self._version = snapshot.version

    def _finish_games(self, over: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        if not over.any():
            return
        epsilons = self._epsilons()
        for i in np.flatnonzero(over):
            self._stats.episodes.append(Episode(float(self._scores[i]), int(self._lengths[i]), float(epsilons[i])))
        self._scores[over], self._lengths[over] = 0.0, 0
