"""A discrete-event model of the pipeline, fed by a profile.

::

    actor ─ cycle of one fragment's steps ─▶ link ─▶ rate limiter ─▶ replay shard
      ▲      on its node's cores              (bounded in flight)        │ sample
      │                                                                  ▼
    node's copy of the weights ◀─ link ◀─ learner ◀─ ready batches ◀─ loader: decode

One event stands for a whole push period of all of an actor's environments, not for a step: all that an actor does
between two pushes is one job on its node's cores, and a push carries as many fragments as are completed in it. Means
and variations are those of the profile; sums of many steps are gamma distributed. Processes share the cores of their
node evenly (`parts.Cores`). Shards share one rate limiter, as those of the replay together hold the ratio of the whole,
and each gives an equal part of a batch.

Not modelled: memory, the object store's limits, failures, evaluations, episodes' ends (but for the mean length of
fragments).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field, replace

import numpy as np
import simpy

from drqn_dist.config import TrainConfig
from drqn_dist.scaling.parts import Cores, Limiter, Link, Meter, Server, Steps
from drqn_dist.scaling.profile import Profile
from drqn_dist.scaling.settings import LONGEST_S, ClusterShape, point_config

BALANCED = 0.02
"""In a steady state samples per insert are off the replay ratio by less than this share."""
BURSTS = 1_000
"""Pushes, of all actors together, that a prediction is taken over, at least."""
UPDATES = 500
"""The same for updates, where there is a learner."""
CYCLES = 10
"""The same for the cycles of an actor that nobody holds up."""
NEARLY = 0.9
"""Share of the rate limiter's tolerance at which the side that is ahead will soon wait."""
PRIORITY_CALLS = 16
"""Calls with priorities under way before the learner waits, as in `channels`."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of a steady state."""

    actors: int
    envs_per_actor: int
    learner: bool
    agent_steps_per_s: float
    updates_per_s: float
    policy_lag: float
    """Updates between the acting policy and the learner."""
    push_s: float
    """Mean seconds from a push until it is acknowledged: links, rate limiter, queue, service."""
    actors_blocked: float
    """Share of the actors' time in which they wait because too many pushes are in flight."""
    learner_waits: float
    """Share of the learner's time without a batch."""
    use: dict[str, float] = field(default_factory=dict)
    """Share of time in which something is busy: actor cores, head cores, replay shard, loader, learner, head link."""
    simulated_s: float = 0.0
    settled: bool = True
    """False where a steady state was not reached in LONGEST_S simulated seconds."""


def simulate(
    profile: Profile, actors: int, envs_per_actor: int, cluster: ClusterShape, learner: bool = True, seed: int = 0
) -> Prediction:
    """Predicts the steady state of so many actors on such a cluster."""
    return _Pipeline(profile, actors, envs_per_actor, cluster, learner and profile.trains, seed).run()


def one_machine(profile: Profile) -> ClusterShape:
    """The machine that was measured."""
    return ClusterShape(head_cores=profile.cores, node_cores=0)


class _Node:
    """A machine: its cores, its link, and its copy of the weights."""

    def __init__(self, env: simpy.Environment, profile: Profile, cluster: ClusterShape, cores: int) -> None:
        left = max(0.1, cores - profile.costs.other_cores)
        self.cores = Cores(env, left, profile.crowding)
        self.num_cores = left
        bandwidth, latency = cluster.link_gbit_per_s * 1e9 / 8, cluster.latency_ms / 1e3
        self.out, self.into = Link(env, bandwidth, latency), Link(env, bandwidth, 0.0)
        self.weights: list[tuple[float, int]] = [(-np.inf, 0)]
        """When which version came, in order."""
        self.actors = 0


class _Pipeline:
    def __init__(
        self, profile: Profile, actors: int, envs: int, cluster: ClusterShape, learner: bool, seed: int
    ) -> None:
        self._profile, self._costs, self._sizes, self._price = profile, profile.costs, profile.sizes, profile.shard
        self._cluster, self._learns, self._envs = cluster, learner, envs
        self._config = _widened(profile.config, actors, envs)
        self._rng = np.random.default_rng(seed)
        self._env = simpy.Environment()
        self._head = _Node(self._env, profile, cluster, cluster.head_cores or profile.cores)
        self._nodes = self._spread(actors)
        window, learning = self._config.window, self._config.learner
        self._batch_steps = learning.batch_windows * window.unroll
        self._ratio = self._config.replay.samples_per_insert if learner else 0.0
        self._in_flight = self._config.actor.max_pushes_in_flight
        self._cycle_steps, self._fragments = profile.burst(envs)
        self._burst = min(self._fragments, float(self._in_flight))
        cycle = self._cycle_steps * self._step_s(envs)
        crowd = max(1.0, max(node.actors / node.num_cores for node in self._nodes))
        self._cycle_s = cycle * crowd + self._costs.actor_idle_s * self._cycle_steps
        num_shards = cluster.shards or profile.config.replay.shards
        self._shards = [Server(self._env, self._head.cores) for _ in range(num_shards)]
        least = max(self._burst * self._sizes.fragment_steps, self._batch_steps / self._ratio if learner else 0.0)
        self._limiter = Limiter(self._env, self._ratio, max(self._config.rate_tolerance_steps, least))
        self._ready: simpy.Container = simpy.Container(self._env)
        self._free: simpy.Container = simpy.Container(self._env, init=learning.prefetch_batches + 1)
        self._priorities: simpy.Container = simpy.Container(self._env, init=PRIORITY_CALLS)
        self._published = self._env.event()
        self._updates = self._version = 0
        self._blocked, self._loading, self._waiting, self._training = (Meter(self._env) for _ in range(4))
        self._limited = Meter(self._env)
        self._totals: dict[str, float] = dict.fromkeys(("steps", "cycles", "lag", "pushes", "push_s"), 0.0)

    def run(self) -> Prediction:
        env = self._env
        homes = [node for node in self._nodes for _ in range(node.actors)]
        for index, node in enumerate(homes):
            env.process(self._actor(node, self._shards[index % len(self._shards)]))
        loaders = self._cluster.loaders or self._config.learner.loaders
        if self._learns:
            env.process(self._learner())
            for _ in range(loaders):
                env.process(self._loader())
            for node in self._nodes:
                if node is not self._head:
                    env.process(self._fetch_weights(node))
        env.run(until=CYCLES * self._cycle_s + (20 * self._costs.learner_s if self._learns else 0.0))
        # Until then pushes may have met a shorter queue than it will be.
        turn = len(homes) * self._in_flight / self._burst
        while self._totals["pushes"] < turn and env.now < LONGEST_S:
            env.run(until=env.now + CYCLES * self._cycle_s)
        spent, seconds, settled = self._window()
        while not settled and env.now < LONGEST_S:
            spent, seconds, settled = self._window()
        actors = len(homes)
        return Prediction(
            actors=actors,
            envs_per_actor=self._envs,
            learner=self._learns,
            agent_steps_per_s=spent["steps"] / seconds,
            updates_per_s=spent["updates"] / seconds,
            policy_lag=spent["lag"] / max(1.0, spent["cycles"]),
            push_s=spent["push_s"] / max(1.0, spent["pushes"]),
            actors_blocked=spent["blocked"] / (seconds * actors),
            learner_waits=spent["waiting"] / seconds if self._learns else 0.0,
            use={
                "actor cores": spent["actor cores"] / seconds / sum(node.num_cores for node in self._nodes),
                "head cores": spent["head cores"] / seconds / self._head.num_cores,
                "replay shard": spent["shards"] / seconds / len(self._shards),
                "loader": spent["loading"] / seconds / loaders,
                "learner": spent["training"] / seconds,
                "head link": max(spent["link in"], spent["link out"]) / seconds,
            },
            simulated_s=seconds,
            settled=settled,
        )

    def _window(self) -> tuple[dict[str, float], float, bool]:
        """What happened in the time of enough pushes and updates, its seconds, and whether it was a steady state. If
        not, one side was ahead, as a rate limiter lets it be for a while: it is taken to where that side has to wait.
        """
        env, before, began = self._env, self._state(), self._env.now
        debt = self._limiter.debt
        enough = False
        while not enough and env.now - began < LONGEST_S:
            env.run(until=env.now + CYCLES * self._cycle_s)
            enough = self._totals["pushes"] >= before["pushes"] + BURSTS
            enough &= not self._learns or self._updates >= before["updates"] + UPDATES
        spent = {name: value - before[name] for name, value in self._state().items()}
        sampled, due = spent["updates"] * self._batch_steps, spent["steps"] * self._ratio
        balanced = not self._learns or abs(sampled - due) < BALANCED * due
        if not balanced and abs(moved := self._limiter.debt - debt) > 1 - NEARLY:
            self._limiter.drive(NEARLY if moved > 0 else -NEARLY)
        return spent, env.now - began, enough and balanced

    def _state(self) -> dict[str, float]:
        return self._totals | {
            "updates": float(self._updates),
            "blocked": self._blocked.seconds,
            "loading": self._loading.seconds - self._limited.seconds / len(self._shards),
            "waiting": self._waiting.seconds,
            "training": self._training.seconds,
            "actor cores": sum(node.cores.busy() for node in self._nodes),
            "head cores": self._head.cores.busy(),
            "shards": sum(shard.busy.seconds for shard in self._shards),
            "link in": self._head.into.busy_s,
            "link out": self._head.out.busy_s,
        }

    def _spread(self, actors: int) -> list[_Node]:
        """Nodes with their numbers of actors."""
        cluster = self._cluster
        if not cluster.node_cores:
            self._head.actors = actors
            return [self._head]
        each = cluster.actors_per_node or cluster.node_cores
        nodes = [_Node(self._env, self._profile, cluster, cluster.node_cores) for _ in range(-(-actors // each))]
        for index in range(actors):
            nodes[index % len(nodes)].actors += 1
        return nodes

    def _step_s(self, envs: int) -> float:
        return self._costs.actor_fixed_s + envs * self._costs.actor_per_env_s

    def _draw(self, mean: float, cv: float) -> float:
        if cv <= 0 or mean <= 0:
            return mean
        return float(self._rng.gamma(1 / cv**2, mean * cv**2))

    def _actor(self, node: _Node, shard: Server) -> Steps:
        env, totals, steps = self._env, self._totals, self._cycle_steps
        in_flight: simpy.Container = simpy.Container(env, init=self._in_flight)
        work, idle = steps * self._step_s(self._envs), steps * self._costs.actor_idle_s
        cv = self._costs.actor_cv / max(1.0, steps) ** 0.5
        pull = self._config.actor.weight_pull_period_steps / steps
        yield env.timeout(self._rng.random() * self._cycle_s)
        began, cycle_s = env.now, self._cycle_s
        while True:
            yield node.cores.run(self._draw(work, cv))
            if idle:
                yield env.timeout(idle)
            # Weights serve from one pull to the next, so that on average half a period has passed since they came.
            age = pull * cycle_s / 2
            totals["lag"] += self._updates - self._version_at(node, env.now - age)
            totals["cycles"] += 1
            left = self._fragments
            while left > 1e-9:
                burst = min(left, self._burst)
                self._blocked.enter()
                yield in_flight.get(burst)
                self._blocked.leave()
                env.process(self._push(node, shard, burst, in_flight))
                left -= burst
            began, cycle_s = env.now, env.now - began  # waits for the replay included

    def _push(self, node: _Node, shard: Server, fragments: float, in_flight: simpy.Container) -> Steps:
        env, began = self._env, self._env.now
        size = fragments * self._sizes.fragment_bytes
        yield env.timeout(self._costs.call_s / 2 + self._transfer_s(node, self._head, size))
        if self._learns:
            yield self._limiter.insert(fragments * self._sizes.fragment_steps)
        yield from shard.serve(self._price.push_call_s + fragments * self._price.push_s)
        yield env.timeout(self._costs.call_s / 2 + (self._cluster.latency_ms / 1e3 if node is not self._head else 0.0))
        self._totals["push_s"] += env.now - began
        self._totals["pushes"] += 1
        self._totals["steps"] += fragments * self._sizes.fragment_steps
        yield in_flight.put(fragments)

    def _loader(self) -> Steps:
        env, count, arrived = self._env, self._profile.batches_per_call, 0
        while True:
            yield self._free.get(1)
            if not arrived:
                self._loading.enter()
                yield env.timeout(self._costs.call_s)
                if len(self._shards) == 1:
                    yield from self._sample(self._shards[0], count)
                else:
                    yield env.all_of([env.process(self._sample(shard, count)) for shard in self._shards])
                yield self._head.cores.run(count * self._costs.loader_s)
                yield env.timeout(self._costs.call_s)
                self._loading.leave()
                arrived = count
            arrived -= 1
            yield self._ready.put(1)

    def _sample(self, shard: Server, batches: int) -> Steps:
        share = 1 / len(self._shards)
        for _ in range(batches):
            self._limited.enter()
            yield self._limiter.sample(self._batch_steps * share)
            self._limited.leave()
            yield from shard.serve(self._price.sample_s * share)

    def _learner(self) -> Steps:
        env, config = self._env, self._config.learner
        update_s = self._costs.learner_s / self._cluster.learner_speedup
        while True:
            self._waiting.enter()
            yield self._ready.get(1)
            self._waiting.leave()
            self._training.enter()
            yield self._head.cores.run(self._draw(update_s, self._costs.learner_cv))
            self._training.leave()
            self._updates += 1
            if self._updates % config.publish_period_updates == 0:
                self._version = self._updates
                self._head.weights.append((env.now, self._version))
                self._published.succeed()
                self._published = env.event()
            if self._price.priorities_s and self._updates % self._profile.batches_per_call == 0:
                yield self._priorities.get(1)
                env.process(self._send_priorities())
            yield self._free.put(1)

    def _send_priorities(self) -> Steps:
        for shard in self._shards:
            yield from shard.serve(self._price.priorities_s / len(self._shards))
        yield self._priorities.put(1)

    def _fetch_weights(self, node: _Node) -> Steps:
        """One copy of each version for the node, when one of its actors asks; its next one comes while another is
        under way only after that."""
        pull_s = self._config.actor.weight_pull_period_steps / self._cycle_steps * self._cycle_s
        while True:
            if node.weights[-1][1] == self._version:
                yield self._published
            version = self._version
            yield self._env.timeout(self._transfer_s(self._head, node, self._sizes.weight_bytes))
            node.weights.append((self._env.now, version))
            yield self._env.timeout(pull_s / node.actors)

    def _transfer_s(self, source: _Node, target: _Node, size: float) -> float:
        """Seconds from sending until arrival: a message passes both links at once, the slower one decides."""
        return 0.0 if source is target else max(source.out.delay(size), target.into.delay(size))

    def _version_at(self, node: _Node, when: float) -> int:
        """The version that the node held then."""
        return node.weights[max(0, bisect.bisect_right(node.weights, when, key=lambda entry: entry[0]) - 1)][1]


def _widened(config: TrainConfig, actors: int, envs: int) -> TrainConfig:
    """The configuration with so many actors, and a replay with room for the fragments of all of them."""
    roomy = replace(config, replay=replace(config.replay, capacity_steps=10**10))
    return point_config(roomy, actors, envs, learner=True)
