"""Named configurations, each number with its source.

`drqn-dist presets` prints this table. A field that a preset does not name keeps the default of `config.py`; every
field that it changes must name its source (a test holds this).

Public implementations cited, besides the papers of `config.py`:
Acme = google-deepmind/acme, acme/agents/jax/r2d2/config.py; SEED = google-research/seed_rl,
agents/r2d2/learner.py and atari/; rlpyt = astooke/rlpyt, rlpyt/algos/dqn/r2d1.py, atari_r2d1_model.py and
atari_r2d1.py; zoo = michaelnny/deep_rl_zoo, deep_rl_zoo/r2d2/run_atari.py and drqn/run_atari.py;
dqn_zoo = google-deepmind/dqn_zoo, dqn_zoo/dqn/run_atari.py; Rainbow = Hessel et al. 2018 (arXiv:1710.02298).
"""

from dataclasses import dataclass, replace

from drqn_dist.config import ActorConfig, EnvConfig, EvalConfig, LearnerConfig, NetworkConfig, ReplayConfig, TrainConfig
from drqn_dist.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Preset:
    """A configuration, one line on what it is for, and where its numbers come from."""

    config: TrainConfig
    summary: str
    sources: dict[str, str]
    """Dotted field name, for example `learner.gamma`, to the text that names its source."""


def _each(section: str, names: str, source: str) -> dict[str, str]:
    """The same source for several settings of a section."""
    return dict.fromkeys([f"{section}.{name}" for name in names.split()], source)


_ARTICLE = "the article's Pong run"
_ARTICLE_AGENT = Preset(
    config=TrainConfig(
        preset="article",
        total_steps=2_000_000,
        env=EnvConfig(stack_frames=4),
        network=NetworkConfig(head="gru_q"),
        learner=LearnerConfig(
            batch_windows=32,
            unroll_steps=8,
            stored_state=False,
            double_q=False,
            optimizer="rmsprop",
            learning_rate=2e-4,
            optimizer_epsilon=1e-3,
            rmsprop_alpha=0.95,
            clip_gradient="value",
            clip_gradient_at=1.0,
            target_period_updates=1_000,
            publish_period_updates=1,
        ),
        replay=ReplayConfig(
            capacity_steps=100_000,
            min_steps=5_000,
            samples_per_insert=32 * 8,
            prioritized=False,
            importance_exponent=0.0,
        ),
        actor=ActorConfig(
            envs_per_actor=1,
            epsilon_low=0.01,
            epsilon_high=0.01,
            epsilon_decay="exponential",
            epsilon_decay_steps=30_000,
            weight_pull_period_steps=1,
        ),
    ),
    summary="The plain agent: a GRU with one unit per action whose state IS the Q value, so Q lies in (-1, 1). "
    "Slow on a CPU: one update of 256 steps per environment step.",
    sources={
        "total_steps": f"{_ARTICLE}: 2 million steps in 30 hours on one GPU",
        "env.stack_frames": _ARTICLE,
        "network.head": f"{_ARTICLE}: conv 32-64-64, dense 512, GRU with one unit per action",
        **_each("learner", "unroll_steps optimizer learning_rate optimizer_epsilon rmsprop_alpha", _ARTICLE),
        "learner.stored_state": "the article is silent; zero at each window's start, as in DRQN",
        "learner.double_q": f"{_ARTICLE}: max over the target network",
        **_each("learner", "clip_gradient clip_gradient_at", f"{_ARTICLE}: each entry clipped to ±1"),
        "learner.target_period_updates": f"{_ARTICLE}: every 1,000 steps, at one update per step",
        "learner.publish_period_updates": f"{_ARTICLE}: the acting network is the trained one",
        **_each("replay", "capacity_steps min_steps", _ARTICLE),
        "replay.samples_per_insert": f"{_ARTICLE}: one update of 32 x 8 steps per environment step",
        **_each("replay", "prioritized importance_exponent", f"{_ARTICLE}: uniform sampling, without weights"),
        "actor.envs_per_actor": f"{_ARTICLE}: one environment",
        **_each("actor", "epsilon_low epsilon_high", f"{_ARTICLE}: 0.01 + 0.99 exp(-step / 30,000), one rate for all"),
        **_each("actor", "epsilon_decay epsilon_decay_steps", f"{_ARTICLE}: 0.01 + 0.99 exp(-step / 30,000)"),
        "actor.weight_pull_period_steps": f"{_ARTICLE}: the acting network is the trained one",
    },
)

_DQN = Preset(
    config=TrainConfig(
        preset="dqn",
        env=EnvConfig(stack_frames=4, life_loss_ends_episode=True),
        network=NetworkConfig(core="none", head="linear"),
        learner=LearnerConfig(
            batch_windows=32,
            unroll_steps=1,
            stored_state=False,
            double_q=False,
            learning_rate=6.25e-5,
            optimizer_epsilon=1.5e-4,
            target_period_updates=10_000,
        ),
        replay=ReplayConfig(
            capacity_steps=1_000_000,
            min_steps=50_000,
            samples_per_insert=32 / 4,
            prioritized=False,
            importance_exponent=0.0,
        ),
        actor=ActorConfig(epsilon_low=0.1, epsilon_high=0.1, epsilon_decay="linear", epsilon_decay_steps=250_000),
        eval=EvalConfig(epsilon=0.05),
    ),
    summary="The memoryless baseline: DQN (Mnih et al. 2015) on four stacked frames, with Adam.",
    sources={
        "env.stack_frames": "DQN; dqn_zoo: 4",
        "env.life_loss_ends_episode": "DQN; dqn_zoo: yes",
        **_each("network", "core head", "DQN; dqn_zoo: no recurrence, no dueling"),
        **_each("learner", "unroll_steps stored_state", "DQN; dqn_zoo: single transitions, no state"),
        "learner.double_q": "DQN; dqn_zoo: single",
        **_each("learner", "learning_rate optimizer_epsilon", "Rainbow: Adam (DQN, dqn_zoo: RMSprop 2.5e-4)"),
        "learner.target_period_updates": "DQN: 10,000 updates (dqn_zoo: 40,000 frames = 2,500 updates; zoo: 2,000)",
        **_each("replay", "capacity_steps min_steps", "DQN; dqn_zoo: 1,000,000, and 5 % of them first"),
        "replay.samples_per_insert": "DQN; dqn_zoo: one update of 32 every 4 agent steps",
        **_each("replay", "prioritized importance_exponent", "DQN; dqn_zoo: uniform sampling, which needs no weights"),
        **_each("actor", "epsilon_low epsilon_high", "DQN; dqn_zoo: final rate 0.1, one for all"),
        **_each(
            "actor", "epsilon_decay epsilon_decay_steps", "DQN: linear over 1,000,000 frames = 250,000 agent steps"
        ),
        "eval.epsilon": "DQN; dqn_zoo: 0.05",
    },
)

_DRQN = Preset(
    config=replace(
        _DQN.config,
        preset="drqn",
        env=EnvConfig(stack_frames=1, life_loss_ends_episode=True),
        network=NetworkConfig(core="lstm", core_units=512, head="linear"),
        learner=replace(
            _DQN.config.learner,
            unroll_steps=10,
            learning_rate=2.5e-4,
            optimizer_epsilon=1e-8,
            clip_gradient="value",
            clip_gradient_at=10.0,
        ),
        replay=replace(_DQN.config.replay, capacity_steps=400_000, samples_per_insert=32 * 10 / 4),
    ),
    summary="Hausknecht & Stone 2015: one frame, LSTM 512, 10 unrolled steps from a zero state. For the paper's "
    "flickering games add --env.flicker-probability 0.5. The paper's optimizer is ADADELTA (rate 0.1); here Adam.",
    sources=_DQN.sources
    | {
        "env.stack_frames": "DRQN: one frame",
        "env.life_loss_ends_episode": "DQN, whose settings DRQN keeps",
        "network.core": "DRQN; the paper feeds the convolutions straight into it, here a dense layer lies between",
        "network.head": "DRQN",
        "learner.unroll_steps": "DRQN: 10",
        "learner.stored_state": "DRQN: bootstrapped random updates start from zero",
        "learner.double_q": "DRQN",
        "learner.learning_rate": "zoo (Adam 2.5e-4); the paper's ADADELTA 0.1 is not offered",
        "learner.optimizer_epsilon": "zoo: Adam's default",
        "learner.clip_gradient": "DRQN: clipped to a value of 10 (zoo clips the norm at 10)",
        "replay.capacity_steps": "DRQN: 400,000",
        "replay.samples_per_insert": "DQN: one update every 4 steps, DRQN: of 32 x 10 steps",
    },
)

_R2D2 = Preset(
    config=TrainConfig(
        preset="r2d2",
        actors=8,
        total_steps=2_500_000_000,
        env=EnvConfig(stack_frames=4),
        network=NetworkConfig(core="lstm", core_units=512, head="dueling", head_units=512, last_action_and_reward=True),
        learner=LearnerConfig(
            batch_windows=64,
            unroll_steps=80,
            burn_in_steps=40,
            n_step=5,
            gamma=0.997,
            rescale_values=True,
            clip_rewards=False,
            loss="squared",
            loss_over_time="sum",
            learning_rate=1e-4,
            optimizer_epsilon=1e-3,
            clip_gradient_at=40.0,
            target_period_updates=2_500,
        ),
        replay=ReplayConfig(
            capacity_steps=4_000_000,
            min_steps=50_000,
            samples_per_insert=1.5,
            window_stride_steps=40,
            priority_exponent=0.9,
            importance_exponent=0.6,
        ),
        actor=ActorConfig(envs_per_actor=32, epsilon_low=0.4**8, epsilon_high=0.4, weight_pull_period_steps=400),
    ),
    summary="Kapturowski et al. 2019, for one machine with a GPU: 8 actors x 32 environments stand for the paper's "
    "256 actors, so the ε ladder keeps its 256 rungs.",
    sources={
        "actors": "R2D2: 256 actors of one environment; here 8 processes of 32 (zoo: 16 actors, Acme: 256 rungs)",
        "total_steps": "R2D2: 10 billion frames = 2.5 billion agent steps",
        "env.stack_frames": "R2D2; SEED atari/r2d2_main.py, rlpyt: 4 (zoo: 1)",
        "network.core": "R2D2; SEED, rlpyt: LSTM 512",
        **_each("network", "head head_units", "R2D2; SEED, rlpyt: dueling, 512 in each stream"),
        "network.last_action_and_reward": "R2D2; SEED, rlpyt: both enter the LSTM",
        "learner.batch_windows": "R2D2; Acme, SEED: 64 (rlpyt, zoo: 32)",
        "learner.unroll_steps": "R2D2; Acme, rlpyt, zoo: 80 (SEED: 100)",
        **_each("learner", "burn_in_steps n_step gamma", "R2D2; Acme, SEED, rlpyt, zoo: 40, 5, 0.997"),
        "learner.rescale_values": "R2D2; Acme (rlax), SEED, zoo: h with ε = 1e-3 (rlpyt: 1e-2)",
        "learner.clip_rewards": "R2D2; Acme, rlpyt, zoo: unclipped",
        "learner.loss": "R2D2; SEED: squared (rlpyt: Huber)",
        "learner.loss_over_time": "Acme, SEED, zoo: summed over a window, averaged over windows; the paper is silent",
        "learner.learning_rate": "R2D2; rlpyt, zoo: Adam 1e-4 (SEED: 4.8e-4, Acme: 1e-3)",
        "learner.optimizer_epsilon": "R2D2; SEED, rlpyt: 1e-3 (zoo: 1e-4)",
        "learner.clip_gradient_at": "SEED, zoo: norm 40 (rlpyt: 80); the paper names none",
        "learner.target_period_updates": "R2D2; Acme, rlpyt: 2,500 (zoo: 1,500, SEED: 400)",
        "replay.capacity_steps": "R2D2; rlpyt r2d1_long: 4 million (Acme: 100,000 windows, the same at stride 40)",
        "replay.min_steps": "rlpyt: 50,000; the paper names none",
        "replay.samples_per_insert": "SEED: 1.5, from R2D2 section 2.3: 5 updates/s of 64 x 80, 256 actors at "
        "260 frames/s (rlpyt reads 0.8 there)",
        "replay.window_stride_steps": "R2D2; Acme, rlpyt: 40",
        **_each("replay", "priority_exponent priority_eta", "R2D2; Acme, SEED, rlpyt, zoo: 0.9"),
        "replay.importance_exponent": "R2D2; Acme, SEED, rlpyt, zoo: 0.6",
        "actor.envs_per_actor": "ours: 8 x 32 = the paper's 256 environments",
        **_each("actor", "epsilon_low epsilon_high", "Ape-X, R2D2; SEED, rlpyt (comment): 0.4^8 to 0.4"),
        "actor.weight_pull_period_steps": "R2D2; Acme, zoo: 400",
    },
)

_OURS_CARTPOLE = "ours, tried on this CartPole with one CPU core"
_R2D2_SMALL = Preset(
    config=replace(
        _R2D2.config,
        preset="r2d2-small",
        actors=1,
        total_steps=200_000,
        minutes=15.0,
        log_period_s=2.0,
        env=EnvConfig(id="drqn_dist/PositionOnlyCartPole-v0"),
        network=replace(
            _R2D2.config.network,
            torso="mlp",
            torso_units=64,
            core="gru",
            core_units=64,
            core_norm=True,
            head_units=64,
            precision="fp32",
        ),
        learner=replace(
            _R2D2.config.learner,
            batch_windows=32,
            unroll_steps=20,
            burn_in_steps=10,
            gamma=0.99,
            learning_rate=5e-4,
            learning_rate_halving_updates=1_500,
            target_period_updates=50,
            publish_period_updates=10,
        ),
        replay=replace(
            _R2D2.config.replay,
            capacity_steps=100_000,
            min_steps=2_000,
            samples_per_insert=16.0,
            window_stride_steps=10,
        ),
        actor=ActorConfig(
            envs_per_actor=16, fragment_steps=20, epsilon_low=0.01, epsilon_high=0.4, weight_pull_period_steps=10
        ),
        eval=EvalConfig(period_updates=250, episodes=20, final_episodes=100),
    ),
    summary="All of R2D2, but for a GRU between two LayerNorms, in minutes on two CPU cores: CartPole without "
    "velocities, windows a quarter as long. "
    "Compare --network.core none.",
    sources=_R2D2.sources
    | {
        "actors": "ours: a small machine",
        "total_steps": f"{_OURS_CARTPOLE}: 500 comes by three quarters of them on nine seeds of ten; the rest shows "
        "whether it stays",
        **dict.fromkeys(("minutes", "log_period_s"), "ours: a short run, and a bound for small machines"),
        "env.id": "POPGym (Morad et al. 2023): velocities must be remembered; episodes of 500 steps hold 50 windows",
        "env.stack_frames": "ours: none; the core is to remember",
        "network.torso": "ours: two numbers need no convolution",
        **_each("network", "torso_units core_units head_units", "ours: small and fast (R2D2: 512)"),
        **_each(
            "network",
            "core core_norm",
            "ours (R2D2: an LSTM): results/studies/masked-cartpole, 500 of 500 on ten seeds of ten; without LayerNorm "
            "232 to 500, an LSTM 460 to 500 on five",
        ),
        "network.precision": "ours: velocities are small differences of positions; in fp32 seed 0 of an LSTM stayed at "
        "500, in bf16 it fell back once",
        "learner.batch_windows": f"{_OURS_CARTPOLE}: R2D2's 64 learnt no faster by the clock (one run each, LSTM)",
        **_each("learner", "unroll_steps burn_in_steps", "R2D2: 80 and 40; a quarter"),
        "learner.gamma": "ours: 0.99 (R2D2: 0.997); a pole falls within some tens of steps",
        **dict.fromkeys(
            ("learner.learning_rate", "learner.target_period_updates", "replay.capacity_steps"),
            f"{_OURS_CARTPOLE}: 5e-4, 50 and 100,000 came to stay near 500; 1e-3 (Acme), 100 and 50,000 fell back more "
            "often (one run each, LSTM)",
        ),
        "learner.learning_rate_halving_updates": f"{_OURS_CARTPOLE}: without it one run (LSTM) stood at 500 from "
        "update 3,000 on and at 161 in its last evaluation",
        "learner.publish_period_updates": "ours: every 400 agent steps",
        "replay.min_steps": "ours: a hundred random episodes",
        "replay.samples_per_insert": "ours: the environment costs more than the network",
        "replay.window_stride_steps": "R2D2: half of the unroll, so that windows overlap",
        **_each("actor", "envs_per_actor epsilon_low", "ours: enough kinds of play for one process"),
        "actor.fragment_steps": "ours: one unroll",
        "actor.weight_pull_period_steps": "ours: every 160 agent steps of the 16 environments",
        "eval.period_updates": "ours: the run is short",
        "eval.final_episodes": "ours: what a result is told by",
    },
)

_OURS = "ours, tried on Pong with one CPU core"
_PONG_CPU = Preset(
    config=TrainConfig(
        preset="pong-cpu",
        minutes=60.0,
        stop_at_return=18.5,
        env=EnvConfig(height_px=64, width_px=48, stack_frames=2, max_episode_frames=40_000),
        network=NetworkConfig(torso="small", torso_units=256, core="lstm", core_units=128, center_pixels=True),
        learner=LearnerConfig(
            batch_windows=32,
            unroll_steps=10,
            n_step=5,
            gamma=0.98,
            learning_rate=5e-4,
            optimizer_epsilon=1e-5,
            target_period_updates=250,
        ),
        replay=ReplayConfig(
            capacity_steps=160_000,
            min_steps=20_000,
            samples_per_insert=4.0,
            priority_exponent=0.6,
            initial_priority="largest",
            importance_exponent=0.4,
        ),
        actor=ActorConfig(
            envs_per_actor=64,
            fragment_steps=20,
            max_pushes_in_flight=64,
            weight_pull_period_steps=5,
            epsilon_low=0.01,
            epsilon_high=0.2,
            epsilon_decay="linear",
            epsilon_decay_steps=100_000,
        ),
        eval=EvalConfig(
            period_updates=500, episodes=2, max_steps=4_000, settled_training_return=17.0, final_episodes=20
        ),
    ),
    summary="Pong on two CPU cores within an hour; what `make pong` runs.",
    sources={
        "minutes": "ours: the hour that this preset is tuned for",
        "stop_at_return": "ours: it wins nearly every rally; a perfect game is 21",
        "env.height_px": f"{_OURS}: the ball stays clearly visible at 64, hardly at 42",
        "env.width_px": "ours: as many screen pixels to one as in height; 64 take a third more work",
        "env.stack_frames": f"{_OURS}: costs next to nothing and shows the ball's direction at once",
        "env.max_episode_frames": "ours: five times a good game; a half-learnt greedy policy can rally for ever",
        **_each("network", "torso torso_units", f"{_OURS}: the Nature torso gets too few updates by the clock"),
        "network.core": "ours: on a CPU an update is up to a quarter faster than with a GRU, whose kernel is not fused",
        "network.core_units": _OURS,
        "network.center_pixels": f"{_OURS}: the loss falls at 20 to 30 thousand steps instead of 60 to 120 thousand",
        "learner.batch_windows": "ours: batches of 32 x 10 settle at +19, those of 8 x 10 jump by ten points between "
        "evaluations for a quarter of an hour",
        "learner.n_step": f"{_OURS}: 5 was faster than 3",
        "learner.gamma": f"{_OURS}: 0.98; 0.99 was slower",
        "learner.learning_rate": f"{_OURS}: 5e-4; 3e-4 was slower, 1e-3 no faster; halved with time, three runs in "
        "six did not reach +18.5",
        "learner.target_period_updates": f"{_OURS}: 250; 1,000 was slower",
        **_each("replay", "capacity_steps min_steps", "ours: recent play; first some dozen games"),
        "replay.samples_per_insert": "ours: 4 with batches of 32 x 10; fewer learn more slowly by the clock, and more "
        "train on what is known already",
        "replay.initial_priority": "ours: with the actor's estimate one run stood at -17.5 after 13,000 updates, where "
        "others were at -11",
        **_each("replay", "priority_exponent importance_exponent", f"{_OURS}; PER"),
        "actor.envs_per_actor": "ours: more kinds of play in a batch, and fewer calls for each step",
        **_each("actor", "fragment_steps max_pushes_in_flight", "ours: two windows, one push for each environment"),
        "actor.weight_pull_period_steps": "ours: about twice a second",
        "actor.epsilon_low": "ours: with 0.001 rallies that never end are not broken; other games did not confirm it",
        "actor.epsilon_high": f"{_OURS}: 0.2 in the run that came furthest",
        **_each("actor", "epsilon_decay epsilon_decay_steps", _OURS),
        "eval.period_updates": "ours: two or three a minute; without sticky actions a greedy policy's games are nearly "
        "all the same one, whose score changes with every update, so five evaluations in a row decide",
        "eval.episodes": "ours: five evaluations count together, and twenty other games confirm them; five games "
        "each took a sixth of two cores",
        "eval.max_steps": "ours: twice a good game; half-learnt policies rally for ever, and took a quarter of a core",
        "eval.settled_training_return": "ours: with up to one random action in twenty, a settled policy still gets it",
        "eval.final_episodes": "ours: what a result is told by",
    },
)

_LAB = "ours, tried on Pong with one H100 and 16 cores, in one process"
_PONG_GPU = Preset(
    config=replace(
        _PONG_CPU.config,
        preset="pong-gpu",
        total_steps=30_000_000,
        minutes=15.0,
        stop_at_return=18.0,
        actors=12,
        log_period_s=2.0,
        env=replace(_PONG_CPU.config.env, width_px=64),
        learner=replace(_PONG_CPU.config.learner, learning_rate_halving_updates=60_000, batches_per_draw=8),
        actor=replace(_PONG_CPU.config.actor, envs_per_actor=12, max_pushes_in_flight=12),
        eval=replace(_PONG_CPU.config.eval, period_updates=1_000),
    ),
    summary="Pong in minutes on one GPU with 16 cores: pong-cpu with twelve actors.",
    sources=_PONG_CPU.sources
    | {
        **dict.fromkeys(("minutes", "log_period_s"), f"{_LAB}: settled after two minutes"),
        "total_steps": "ours: minutes end a run, not steps",
        "stop_at_return": "ours: half a point below pong-cpu's, so that fewer tries are refused, each some seconds",
        "actors": "ours: 12 of 16 cores; learner, replay, evaluator and the driver have the rest",
        "env.width_px": f"{_LAB}: 64",
        "learner.learning_rate_halving_updates": f"{_LAB}: +20 at two minutes with 10,000 and without; "
        "with 20,000, three seeds of pong-cpu in six could not be lifted any more",
        "learner.batches_per_draw": "ours: a call to the replay for eight updates, some hundred calls a second fewer",
        **_each(
            "actor", "envs_per_actor max_pushes_in_flight", "ours: with 256 (as in the lab) each game takes a minute"
        ),
        "eval.period_updates": "ours: every few seconds",
    },
)

_GRIDWORLD = Preset(
    config=TrainConfig(
        preset="gridworld",
        total_steps=150_000,
        minutes=5.0,
        stop_at_return=0.99,
        log_period_s=2.0,
        env=EnvConfig(id="drqn_dist/GridWorld-v0"),
        network=NetworkConfig(torso="mlp", torso_units=64, core="gru", core_units=64),
        learner=LearnerConfig(
            batch_windows=32, unroll_steps=16, n_step=5, gamma=0.9, learning_rate=1e-3, target_period_updates=100
        ),
        replay=ReplayConfig(capacity_steps=20_000, min_steps=1_000, samples_per_insert=16.0),
        actor=ActorConfig(
            envs_per_actor=8,
            fragment_steps=16,
            epsilon_low=0.05,
            epsilon_high=0.3,
            epsilon_decay="linear",
            epsilon_decay_steps=10_000,
        ),
        eval=EvalConfig(period_updates=200, episodes=100),
    ),
    summary="A small maze in which places look alike: memory solves it in minutes on a CPU; "
    "compare --network.core none.",
    sources={
        "total_steps": "ours: enough to solve the maze several times over",
        **dict.fromkeys(("minutes", "log_period_s"), "ours: a short run, and a bound for small machines"),
        "stop_at_return": "ours: the optimum is 1, and without memory 0.5",
        "env.id": "the partially observable GridWorld of this project",
        "network.torso": "ours: nine cells need no convolution",
        **_each("network", "torso_units core_units", "ours: small and fast"),
        "learner.unroll_steps": "ours: about the length of a good episode",
        "learner.n_step": "ours: one step carries the reward back too slowly",
        "learner.gamma": "ours: short paths must be worth more than long ones",
        **_each("learner", "learning_rate target_period_updates", "ours: small network, short horizon"),
        **_each("replay", "capacity_steps min_steps", "ours: small and fast"),
        "replay.samples_per_insert": "ours: the environment costs more than the network",
        **_each("actor", "envs_per_actor fragment_steps", "ours: small and fast; a fragment is one window"),
        **_each("actor", "epsilon_low epsilon_high", "ours: mazes need exploration throughout"),
        **_each("actor", "epsilon_decay epsilon_decay_steps", "ours: some hundreds of episodes"),
        **_each("eval", "period_updates episodes", "ours: run and episodes are short; the goal's side is random"),
    },
)

PRESETS: dict[str, Preset] = {
    preset.config.preset: preset
    for preset in (_PONG_CPU, _PONG_GPU, _GRIDWORLD, _DRQN, _R2D2, _R2D2_SMALL, _DQN, _ARTICLE_AGENT)
}
"""All named configurations, by name."""


def preset(name: str) -> TrainConfig:
    """The configuration called `name`.

    Raises:
        ConfigError: there is none; the message names those that come close.
    """
    if name in PRESETS:
        return PRESETS[name].config
    raise ConfigError(f"unknown preset {name!r}; {did_you_mean(name, PRESETS)}known: {', '.join(PRESETS)}")
