"""Every setting of a run, as frozen dataclasses that refuse what cannot work.

Names carry their units: `_steps` are agent steps (one `env.step`), `_frames` emulator frames, `_updates`
learner updates, `_s` seconds, `_bytes` bytes. None means that a value is derived from others, or that there is no such
bound, as the field says. Named configurations live in `presets.py`.

Sources cited below: DQN = Mnih et al. 2015 (Nature 518); DRQN = Hausknecht & Stone 2015 (arXiv:1507.06527);
R2D2 = Kapturowski et al. 2019 (ICLR); Ape-X = Horgan et al. 2018 (arXiv:1803.00933);
PER = Schaul et al. 2016 (arXiv:1511.05952).
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from drqn_dist.errors import ConfigError, shown

_T = TypeVar("_T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class Within:
    """Bounds of a setting, both included."""

    low: float
    high: float
    none_means: str = ""
    """Where the setting may be None: what that means."""


class Bounded:
    """Settings that refuse values out of bounds when they are made."""

    _path: ClassVar[str] = ""
    """What stands before their names in messages; with `--` they are flags."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            if name.startswith("_"):
                continue
            value, flag = getattr(self, name), f"{self._path}{name}"
            flag = flag.replace("_", "-") if flag.startswith("--") else flag
            for bound in getattr(hint, "__metadata__", ()):
                if isinstance(bound, Within) and value is not None and not bound.low <= value <= bound.high:
                    or_none = f" or be None ({bound.none_means})" if bound.none_means else ""
                    raise ConfigError(
                        f"{flag} is {shown(value)}, but must lie in [{bound.low:g}, {bound.high:g}]{or_none}"
                    )
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{flag} is {value}, but must be a finite number")
            if isinstance(value, str) and not _is_text(value):
                raise ConfigError(f"{flag} is {shown(value)}, but must be text without NUL or half characters")


def _is_text(value: str) -> bool:
    """Whether it could name a file."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(inner) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or isinstance(value, float | str)


@dataclass(frozen=True)
class EnvConfig(Bounded):
    """Which environment, and how its observations and rewards are made."""

    _path = "env."
    id: str = "ALE/Pong-v5"
    """Any Atari game as ALE/<Game>-v5, or any registered Gymnasium id, or module:Env-v0."""
    frame_skip: Annotated[int, Within(1, 100)] = 4
    """Atari: emulator frames per agent step (DQN: 4)."""
    stack_frames: Annotated[int, Within(1, 64)] = 1
    """Consecutive observations stacked into one network input (DQN: 4, DRQN: 1)."""
    height_px: Annotated[int, Within(1, 4096)] = 84
    """Atari: observation height in pixels (DQN: 84)."""
    width_px: Annotated[int, Within(1, 4096)] = 84
    """Atari: observation width in pixels (DQN: 84)."""
    sticky_action_probability: Annotated[float, Within(0, 1)] = 0.0
    """Atari: probability of repeating the previous action (Machado et al. 2018 recommend 0.25)."""
    noop_max_steps: Annotated[int, Within(0, 10_000)] = 30
    """Atari: at most this many no-op actions after a reset (DQN: 30)."""
    full_action_set: bool = False
    """Atari: all 18 actions instead of the game's minimal set."""
    life_loss_ends_episode: bool = False
    """Atari: a lost life ends the learning episode while the game goes on (DQN: yes, R2D2: no)."""
    max_episode_frames: Annotated[int, Within(1, 10**9)] = 108_000
    """Atari: an episode is truncated after this many emulator frames (DQN: 108,000 = 30 minutes)."""
    flicker_probability: Annotated[float, Within(0, 1)] = 0.0
    """Images: each observation is blanked whole with this probability (DRQN: 0.5)."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Gymnasium: keyword arguments for the environment's constructor."""
    wrappers: list[str] = field(default_factory=list)
    """Gymnasium: wrappers around it, the innermost first, as module:Class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.id), "env.id is empty; name an environment, for example ALE/Pong-v5")
        _require(
            _is_plain(self.kwargs),
            f"env.kwargs is {shown(self.kwargs)}, but must hold what JSON can: texts, numbers of at most 64 bits, "
            "true, false, null, lists and tables",
        )
        _require(
            not (self.wrappers and self.id.startswith("ALE/")),
            f"env.wrappers is {self.wrappers}, but Atari games are stepped by their emulator's own vector environment, "
            "which takes none; preprocessing is set by the other settings of env",
        )


@dataclass(frozen=True)
class NetworkConfig(Bounded):
    """The Q network: torso → core → head."""

    _path = "network."
    torso: Literal["auto", "nature", "small", "mlp"] = "auto"
    """nature: conv 32-64-64 (DQN); small: conv 16-32-32; mlp: two layers; auto: nature for images, mlp otherwise."""
    torso_units: Annotated[int, Within(1, 65_536)] = 512
    """Width of the torso's last layer, and of the MLP's layers (DQN: 512)."""
    core: Literal["gru", "lstm", "none"] = "gru"
    """Recurrent core; none makes it a plain DQN."""
    core_units: Annotated[int, Within(1, 65_536)] = 512
    """Hidden size of the core (DRQN, R2D2: 512). Ignored by core none and by head gru_q."""
    core_norm: bool = False
    """LayerNorm before and after the core, which steadies a GRU (`results/studies`). Ignored by core none."""
    head: Literal["linear", "dueling", "gru_q"] = "dueling"
    """gru_q: the article's GRU whose hidden state is the Q value itself, which confines Q to (-1, 1)."""
    head_units: Annotated[int, Within(0, 65_536)] = 0
    """Width of one hidden layer in the head, or in each dueling stream (R2D2: 512); 0 = none."""
    last_action_and_reward: bool = False
    """Feed the previous action (one-hot) and reward into the core (R2D2: yes)."""
    center_pixels: bool = False
    """Images: subtract the per-pixel mean of the first stored frames, measured once before the first update."""
    standardize_vectors: bool = False
    """Vectors: subtract the mean of each number and divide by its deviation, both of the first stored observations,
    measured once before the first update. Among hundreds of one-hot numbers the few that ever change get their say."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the torso, and of the core on a CPU; the rest stays fp32. auto: bf16 where the hardware has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.head != "gru_q" or self.core == "gru",
            f"network.head gru_q needs network.core gru, not {self.core}: there the GRU is the Q value",
        )
        _require(
            self.head != "gru_q" or not self.core_norm,
            "network.core_norm does not go with network.head gru_q, whose core's output is the Q value",
        )


@dataclass(frozen=True)
class LearnerConfig(Bounded):
    """How Q values are learnt from windows."""

    _path = "learner."
    batch_windows: Annotated[int, Within(1, 65_536)] = 32
    """Windows per update (DRQN: 32, R2D2: 64)."""
    unroll_steps: Annotated[int, Within(1, 100_000)] = 10
    """Trained steps per window, N_seq (DRQN: 10, R2D2: 80 with overlap 40)."""
    burn_in_steps: Annotated[int, Within(0, 100_000)] = 0
    """Steps unrolled before them without gradient (R2D2: 40)."""
    stored_state: bool = True
    """Windows start from the state the actor had (R2D2), otherwise from zero (DRQN)."""
    n_step: Annotated[int, Within(1, 10_000)] = 1
    """Steps summed before bootstrapping (R2D2: 5)."""
    gamma: Annotated[float, Within(0, 1)] = 0.99
    """Discount per agent step (R2D2: 0.997)."""
    double_q: bool = True
    """The online network picks the action that the target network values (van Hasselt et al. 2016)."""
    rescale_values: bool = False
    """Learn h(Q) with h(x) = sign(x)(sqrt(|x|+1) - 1) + 0.001 x (R2D2: yes)."""
    reward_scale: Annotated[float, Within(1e-9, 1e9)] = 1.0
    """Rewards are multiplied by this before anything is learnt from them: gradients of small ones drown in
    optimizer_epsilon. Scores stay as they are."""
    clip_rewards: bool = True
    """Learn from rewards clipped to [-1, 1], once scaled (DQN: yes, R2D2: no); scores are always unclipped."""
    loss: Literal["huber", "squared"] = "huber"
    """Loss of one temporal-difference error (DQN: Huber, R2D2: squared)."""
    loss_over_time: Literal["mean", "sum"] = "mean"
    """A batch's loss: the mean over all trained steps, or the sum over a window's steps and the mean over windows
    (R2D2 in Acme, SEED RL and deep_rl_zoo: sum); clip_gradient_at and optimizer_epsilon belong to one of them."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Optimizer (DQN: RMSprop, R2D2: Adam)."""
    learning_rate: Annotated[float, Within(1e-12, 10)] = 1e-4
    """Step size of the optimizer."""
    learning_rate_halving_updates: Annotated[int | None, Within(1, 10**12, "it stays")] = None
    """The step size halves, smoothly, with every so many updates, so that a policy settles; None: it stays."""
    optimizer_epsilon: Annotated[float, Within(1e-20, 1)] = 1e-5
    """Added to the optimizer's denominator (R2D2: 1e-3)."""
    rmsprop_alpha: Annotated[float, Within(0, 1)] = 0.95
    """RMSprop's smoothing (DQN: 0.95)."""
    clip_gradient: Literal["norm", "value", "none"] = "norm"
    """Clip the gradient by its global norm, each entry by value, or not at all."""
    clip_gradient_at: Annotated[float, Within(1e-9, 1e9)] = 10.0
    """Bound used by clip_gradient (Wang et al. 2016: norm 10; the article: value 1)."""
    target_period_updates: Annotated[int, Within(1, 10**9)] = 500
    """The target network is copied every this many updates (R2D2: 2,500)."""
    publish_period_updates: Annotated[int, Within(1, 10**9)] = 20
    """New weights are offered to the actors every this many updates."""
    batches_per_draw: Annotated[int, Within(1, 1024)] = 2
    """Batches drawn in one call, times the number of shards (Ray mode); up to twice as many wait at the learner. More
    make fewer calls to the replay, but what waits was drawn with older priorities."""
    probe_period_updates: Annotated[int | None, Within(1, 10**12, "never")] = 1_000
    """Every so many updates the learner measures how stale stored states are and how many greedy actions an update
    changes, for about the time of five updates and of playing four episodes; None: never."""
    frame_store: Literal["auto", "device", "host"] = "auto"
    """Where the learner keeps decoded frames: auto takes its device if they all fit there, else host memory, and where
    they fit in neither the newest part of them; device and host ask for one place."""
    frame_store_bytes: Annotated[int | None, Within(0, 2**50)] = None
    """Memory for decoded frames; None: a part of what is free. What does not fit is sent again when it is drawn."""
    device: str = "auto"
    """auto (a GPU where one is free), cpu, cuda, or in serial mode cuda:N."""
    torch_threads: Annotated[int, Within(1, 1024)] = 1
    """CPU threads of one training step."""

    def learning_rate_at(self, updates: int) -> float:
        """The step size after so many updates; a function of them alone, so that a resumed run goes on alike."""
        if self.learning_rate_halving_updates is None:
            return self.learning_rate
        return float(self.learning_rate * 0.5 ** (updates / self.learning_rate_halving_updates))


@dataclass(frozen=True)
class ReplayConfig(Bounded):
    """What the replay keeps, and how windows are drawn from it."""

    _path = "replay."
    capacity_steps: Annotated[int, Within(1, 10**10)] = 100_000
    """Agent steps kept; the oldest fragments go first."""
    capacity_bytes: Annotated[int, Within(1, 2**50)] = 4 * 1024**3
    """Compressed bytes kept, whichever bound is reached first."""
    min_steps: Annotated[int, Within(1, 10**10)] = 5_000
    """Agent steps stored before the first update."""
    samples_per_insert: Annotated[float, Within(1e-6, 1e6)] = 8.0
    """Replay ratio: steps trained per step inserted (DQN: 8 = one batch of 32 every 4 steps)."""
    rate_tolerance_steps: Annotated[int | None, Within(1, 10**10, "automatic")] = None
    """Inserted steps that either side may run ahead of that ratio; None: automatic."""
    window_stride_steps: Annotated[int | None, Within(1, 100_000, "automatic")] = None
    """Distance between the starts of neighbouring windows (R2D2: 40); None: unroll_steps, no overlap."""
    prioritized: bool = True
    """Draw windows in proportion to priority, otherwise uniformly (PER)."""
    priority_exponent: Annotated[float, Within(0, 4)] = 0.6
    """Exponent on priorities (PER: 0.6, R2D2: 0.9)."""
    priority_eta: Annotated[float, Within(0, 1)] = 0.9
    """A window's priority is eta * max|td| + (1 - eta) * mean|td| (R2D2: 0.9)."""
    initial_priority: Literal["actor", "largest"] = "actor"
    """New windows enter with the actor's own estimate (Ape-X, R2D2), or with the largest priority of late (PER), which
    draws each of them soon and so learns more from fresh experience."""
    importance_exponent: Annotated[float, Within(0, 4)] = 0.4
    """Exponent of the importance weights (PER: 0.4 to 1, R2D2: 0.6); 0 turns them off."""
    shards: Annotated[int, Within(1, 4096)] = 1
    """Processes that hold equal parts of the capacity, fed by the actors in turn (Ray mode)."""
    max_fragment_bytes: Annotated[int, Within(1, 2**32 - 1)] = 64 * 1024**2
    """A pushed fragment larger than this, packed or unpacked, is refused."""
    journal: bool = True
    """Keep what is stored in the run folder as well, so that a restarted replay, or a resumed run, has it back."""
    journal_sync_s: Annotated[float, Within(0.01, 3600)] = 1.0
    """Seconds after which what was written is on the disk: what a machine that loses power can lose. What ends the
    process alone loses nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.min_steps <= self.capacity_steps,
            f"replay.min_steps ({self.min_steps:,}) exceeds replay.capacity_steps ({self.capacity_steps:,}): "
            "training would never start",
        )


@dataclass(frozen=True)
class ActorConfig(Bounded):
    """How experience is gathered."""

    _path = "actor."
    envs_per_actor: Annotated[int, Within(1, 65_536)] = 16
    """Environments stepped as one batch by each actor."""
    env_threads: Annotated[int, Within(1, 1024)] = 1
    """Threads that step the environments of each actor. Outside Atari they only help where an environment computes
    outside Python; where it does not, more actors do."""
    torch_threads: Annotated[int, Within(1, 1024)] = 1
    """CPU threads of each actor's network."""
    fragment_steps: Annotated[int | None, Within(1, 1_000_000, "automatic")] = None
    """Agent steps per pushed fragment; None: the smallest multiple of the window stride of at least 32 steps."""
    epsilon_low: Annotated[float, Within(0, 1)] = 0.01
    """Lowest rung of the geometric ladder of exploration rates (Ape-X: 0.4^8)."""
    epsilon_high: Annotated[float, Within(0, 1)] = 0.4
    """Highest rung (Ape-X: 0.4)."""
    epsilon_decay: Literal["none", "linear", "exponential"] = "none"
    """How every environment's rate falls from 1 to its rung, by agent steps of the whole run."""
    epsilon_decay_steps: Annotated[int, Within(1, 10**12)] = 20_000
    """linear: rate = max(rung, 1 - step / this); exponential: rung + (1 - rung) exp(-step / this)."""
    push_period_steps: Annotated[int | None, Within(1, 1_000_000, "automatic")] = None
    """Batched environment steps between two pushes; what was completed meanwhile goes in one call, whose price hardly
    depends on what it carries. None: half a fragment; in serial mode, where a call costs nothing, 1."""
    max_pushes_in_flight: Annotated[int, Within(1, 100_000)] = 32
    """Fragments sent but not yet acknowledged, per actor; beyond that the actor waits."""
    weight_pull_period_steps: Annotated[int, Within(1, 10**9)] = 20
    """Batched environment steps between two requests for newer weights; an answer is used as soon as it is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.epsilon_low <= self.epsilon_high,
            f"actor.epsilon_low ({self.epsilon_low}) exceeds actor.epsilon_high ({self.epsilon_high})",
        )
        _require(
            self.epsilon_low > 0 or self.epsilon_high == 0,
            "actor.epsilon_low is 0: a geometric ladder cannot start there; use a small positive rate, "
            "or set actor.epsilon_high to 0 as well",
        )


@dataclass(frozen=True)
class EvalConfig(Bounded):
    """Greedy evaluation beside training."""

    _path = "eval."
    period_updates: Annotated[int | None, Within(1, 10**12, "never")] = 5_000
    """An evaluation starts every this many updates, unless the previous one still runs; None: never, but at the end."""
    episodes: Annotated[int, Within(1, 1_000_000)] = 20
    """Episodes of one evaluation."""
    settled_evaluations: Annotated[int, Within(1, 10_000)] = 5
    """So many evaluations in a row must reach stop_at_return on average; a single one may be lucky."""
    settled_training_return: float | None = None
    """The last 20 training games of environments that explore little must reach this on average, too, before
    stop_at_return ends a run. None: they do not matter."""
    final_episodes: Annotated[int | None, Within(1, 1_000_000, "as many as the others")] = None
    """Episodes of the evaluation that confirms stop_at_return or ends a run; None: as many as the others have."""
    envs: Annotated[int | None, Within(1, 65_536, "automatic")] = None
    """Environments stepped as one batch, each plays an equal share; None: one per episode, at most 32."""
    max_steps: Annotated[int, Within(1, 10**9)] = 27_000
    """Agent steps after which a game that does not end counts as it stands (Atari's usual half an hour)."""
    epsilon: Annotated[float, Within(0, 1)] = 0.0
    """Exploration rate while evaluating (DQN: 0.05)."""


@dataclass(frozen=True)
class WindowShape:
    """How episodes are cut, in agent steps; drawn in ARCHITECTURE.md.

    Window k trains the steps [k·stride, k·stride + unroll). Its burn-in holds the steps before them, at most
    `burn_in` and none before the episode; its tail holds `n_step` more observations.
    """

    burn_in: int
    unroll: int
    n_step: int
    stride: int
    fragment: int
    history: int
    """Steps before a window's first one that its inputs need (frame stack, last action)."""

    @property
    def total(self) -> int:
        """Observations of a window: burn-in + unroll + n-step tail."""
        return self.burn_in + self.unroll + self.n_step

    @property
    def burst(self) -> int:
        """The most steps that an environment's actor completes at once: a fragment, and at an episode's end also what
        was held back because windows reach into it."""
        return self.fragment + self.unroll - self.stride

    @property
    def most_fragments(self) -> int:
        """The most fragments that one window reads, whatever its alignment.

        The last observation needs no step of its own: step t brings the observations t and t + 1.
        """
        steps = self.history + self.total - 1
        return 1 if steps == 1 else (steps - 2) // self.fragment + 2

    def needs_state_at(self, step: int) -> bool:
        """Whether some window starts at this episode step, so that the actor must store its state there."""
        return step == 0 or (step + self.burn_in) % self.stride == 0


@dataclass(frozen=True)
class TrainConfig(Bounded):
    """A whole run."""

    preset: str = "drqn"
    """The named configuration this one started from; see `drqn-dist presets`."""
    mode: Literal["ray", "serial"] = "ray"
    """ray: one process per role; serial: one process, no Ray, bit-for-bit repeatable (on a CPU)."""
    seed: Annotated[int, Within(0, 2**31 - 1)] = 0
    """Seed of everything random in the run."""
    actors: Annotated[int | None, Within(1, 100_000, "auto")] = 1
    """Actor processes; None (auto on the command line): as many as the cluster, or this machine, has CPUs for now. An
    actor without a CPU waits for one, which an autoscaler sees. Serial mode steps that many actors in turn."""
    total_steps: Annotated[int, Within(1, 10**15)] = 10_000_000
    """Stop after this many agent steps of all actors together."""
    minutes: Annotated[float | None, Within(1e-3, 10**7, "no bound")] = None
    """Stop after this much wall-clock time; None: no bound."""
    stop_at_return: Annotated[float | None, Within(-1e12, 1e12)] = None
    """Stop once training has settled there: the last eval.settled_evaluations reach this on average, and so do other
    games with the weights that are the result."""
    address: str | None = None
    """Ray cluster to join (auto, host:port, ray://host:port); none: a Ray of the run's own, guarded by a token."""
    run_dir: str = "runs"
    """Folder that receives the run's folder <env>__<preset>__<seed>__<time>."""
    log_period_s: Annotated[float, Within(0.01, 86_400)] = 5.0
    """Seconds between two lines of metrics."""
    checkpoint_period_s: Annotated[float, Within(0.01, 10**7)] = 120.0
    """Seconds between two checkpoints; one more is written at the end."""
    checkpoints_kept: Annotated[int, Within(1, 10_000)] = 2
    """Newest checkpoints kept on disk."""
    env: EnvConfig = field(default_factory=EnvConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = self.window
        _require(
            shape.stride <= shape.unroll,
            f"replay.window_stride_steps ({shape.stride}) exceeds learner.unroll_steps ({shape.unroll}): "
            "steps between two windows would never be trained",
        )
        _require(
            shape.fragment % shape.stride == 0,
            f"actor.fragment_steps ({shape.fragment}) must be a multiple of the window stride ({shape.stride})",
        )
        _require(
            (self.actor.push_period_steps or 1) <= shape.fragment,
            f"actor.push_period_steps ({self.actor.push_period_steps}) exceeds actor.fragment_steps "
            f"({shape.fragment}): complete fragments would wait for others",
        )
        _require(
            shape.total < self.replay.capacity_steps,
            f"a window of {shape.total:,} steps (burn-in {shape.burn_in} + unroll {shape.unroll} + n-step "
            f"{shape.n_step}) does not fit a replay of {self.replay.capacity_steps:,} steps; "
            "raise replay.capacity_steps or shorten the window",
        )
        if self.actors is None:
            return
        shards = self.replay.shards if self.mode == "ray" else 1
        _require(
            shards <= self.actors,
            f"replay.shards ({shards:,}) exceeds actors ({self.actors:,}): nobody would feed some of them",
        )
        # Fragments of all environments arrive in turn, and the oldest is evicted first.
        envs = -(-self.actors // shards) * self.actor.envs_per_actor
        spread = (shape.most_fragments - 1) * envs + 1
        _require(
            spread * shape.fragment <= self.replay.capacity_steps // shards,
            f"a window can lie in {shape.most_fragments} fragments of {shape.fragment:,} steps, and those of "
            f"{envs:,} environments arrive in between, so that {spread:,} fragments = "
            f"{spread * shape.fragment:,} steps must fit the replay, but replay.capacity_steps is "
            f"{self.replay.capacity_steps:,}{f' in {shards} shards' if shards > 1 else ''}: windows would be evicted "
            "before they can be drawn; raise it, or lower actors, actor.envs_per_actor or actor.fragment_steps",
        )

    @property
    def window(self) -> WindowShape:
        """The window's measures, with automatic values filled in."""
        stride = self.replay.window_stride_steps or self.learner.unroll_steps
        fragment = self.actor.fragment_steps or stride * max(1, -(-32 // stride))
        return WindowShape(
            burn_in=self.learner.burn_in_steps,
            unroll=self.learner.unroll_steps,
            n_step=self.learner.n_step,
            stride=stride,
            fragment=fragment,
            history=max(self.env.stack_frames - 1, int(self.network.last_action_and_reward)),
        )

    @property
    def push_period(self) -> int:
        """Batched steps between two pushes, with its automatic value filled in."""
        automatic = 1 if self.mode == "serial" else max(1, self.window.fragment // 2)
        return self.actor.push_period_steps or automatic

    @property
    def batches_per_draw(self) -> int:
        """Batches of one call for samples, to all shards at once; one in serial mode."""
        return 1 if self.mode == "serial" else self.learner.batches_per_draw * self.replay.shards

    @property
    def num_actors(self) -> int:
        """Actors; as if there were one while their number is automatic."""
        return self.actors or 1

    @property
    def total_envs(self) -> int:
        """Environments of all actors together."""
        return self.num_actors * self.actor.envs_per_actor

    @property
    def rate_tolerance_steps(self) -> int:
        """Slack of the rate limiter in inserted steps, with its automatic value filled in.

        All environments of an actor cut their fragments at about the same moment, and the learner takes whole
        batches, several at once from shards; the automatic slack is four times what one such burst amounts to.
        """
        if self.replay.rate_tolerance_steps is not None:
            return self.replay.rate_tolerance_steps
        batch = self.learner.batch_windows * self.learner.unroll_steps / self.replay.samples_per_insert
        return 4 * int(max(self.total_envs * self.window.burst, batch * self.batches_per_draw, 1))


def from_dict(cls: type[_T], values: Mapping[str, Any], path: str = "") -> _T:
    """Rebuilds a configuration from what `dataclasses.asdict` made of it.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type; the message names it.
    """
    _require(isinstance(values, Mapping), f"{path or 'the whole'} is {shown(values)}, but must be a table of settings")
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown setting {path}{unknown[0][:100]}; known: {', '.join(sorted(known))}")
    return cls(**{name: _read(hints[name], value, f"{path}{name}") for name, value in values.items()})


def _read(hint: Any, value: Any, name: str) -> Any:
    """The value as a field of this type takes it. Types other than those of settings pass as they are."""
    optional = get_origin(hint) is UnionType and NoneType in get_args(hint)
    if optional:
        if value is None:
            return None
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        hint = kinds[0] if len(kinds) == 1 else hint
    if dataclasses.is_dataclass(hint):
        _require(isinstance(value, Mapping), f"{name} must be a table of settings, not {shown(value)}")
        return from_dict(hint, value, f"{name}.")  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        _require(value in get_args(hint), f"{name} is {shown(value)}; choose one of {', '.join(get_args(hint))}")
    elif get_origin(hint) is dict:
        _require(isinstance(value, Mapping), f"{name} is {shown(value)}, but must be a table")
        return {key: _read(get_args(hint)[1], inner, f"{name}.{key}") for key, inner in value.items()}
    elif get_origin(hint) is list:
        _require(isinstance(value, list | tuple), f"{name} is {shown(value)}, but must be a list")
        return [_read(get_args(hint)[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    elif hint in (int, float, bool, str):
        number = hint is float and isinstance(value, int) and not isinstance(value, bool)
        exact = isinstance(value, hint) and (hint is not int or not isinstance(value, bool))
        wanted = f"{hint.__name__}{' or None' if optional else ''}"
        _require(number or exact, f"{name} is {shown(value)}, but must be of type {wanted}")
        try:
            return hint(value)
        except OverflowError as error:
            raise ConfigError(f"{name} is {shown(value)}, which is too large") from error
    return value


def setting(config: TrainConfig, name: str) -> Any:
    """The value of, for example, `learner.gamma`."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def with_settings(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The configuration with other values of some settings, by names such as `learner.gamma`.

    Raises:
        ConfigError: such a configuration cannot work.
    """
    changed = dataclasses.asdict(config)
    for name, value in values.items():
        *sections, last = name.split(".")
        place = changed
        for section in sections:
            place = place[section]
        place[last] = value
    return from_dict(TrainConfig, changed)


def differences(first: TrainConfig, second: TrainConfig) -> list[str]:
    """Dotted names of the settings in which two configurations differ, in order of declaration."""
    return list(_differences(first, second, ""))


def _differences(first: Any, second: Any, prefix: str) -> Iterator[str]:
    for name in (f.name for f in dataclasses.fields(first)):
        one, other = getattr(first, name), getattr(second, name)
        if dataclasses.is_dataclass(one):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield prefix + name
