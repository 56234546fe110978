"""What a finished or running run has learnt: scores of whole games, a video, a policy for a loop of one's own."""

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.evaluator import Evaluator
from actors.policy import RecurrentPolicy
from drqn_dist.checkpoint import weights_sha256
from drqn_dist.config import EnvConfig, TrainConfig
from drqn_dist.envs.make import SingleEnv, describe_single, env_spec, make_render_env
from drqn_dist.errors import CheckpointError, ConfigError
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.experiments.video import write_video
from drqn_dist.fragment import Observations
from drqn_dist.interfaces import EnvSpec, WeightSnapshot
from drqn_dist.network.q_network import QNetwork
from drqn_dist.seeding import EVALUATION_SEED, derive_seed
from learner.train_state import load_network


@dataclass(frozen=True)
class Agent:
    """What a run's newest checkpoint holds for playing."""

    config: TrainConfig
    spec: EnvSpec
    network: QNetwork
    updates: int
    """Learner updates behind the network."""
    weights_sha256: str


def load_agent(run: Path, env: EnvConfig | None = None) -> Agent:
    """Loads the newest checkpoint of a run.

    Args:
        env: to play in another environment than that of the training, with observations and actions of the same shape.

    Raises:
        RunFolderError: it is no run folder.
        EnvError: its environment cannot be made here.
        CheckpointError: it has no readable checkpoint, or that belongs to another network.
    """
    folder = open_run(run)
    checkpoint = folder.checkpoints.latest()
    if checkpoint is None:
        raise CheckpointError(f"{run} holds no checkpoint yet; let it train longer")
    config = folder.config if env is None else replace(folder.config, env=env)
    spec = env_spec(config.env)
    network = QNetwork(config.network, spec, config.env.stack_frames)
    try:
        load_network(network, checkpoint.tensors, "network.")
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    return Agent(config, spec, network, checkpoint.updates, weights_sha256(checkpoint.tensors))


def evaluate(
    run: str | Path,
    episodes: int = 20,
    seed: int = EVALUATION_SEED,
    video: Path | None = None,
    env: EnvConfig | None = None,
) -> dict[str, Any]:
    """Plays whole games with a run's newest checkpoint, greedily but for `eval.epsilon`.

    Args:
        run: the run's folder.
        episodes: at least 1.
        seed: of the games; the same seed and weights give the same scores.
        video: one more episode is played and written to this MP4 file, all or nothing.
        env: another environment to play in, see `load_agent`.

    Returns:
        mean_return, std_return (of the population), median_return (all unclipped), episodes, scores (one for each),
        cut_short (games that eval.max_steps ended or did not let begin), env, weights_sha256.

    Raises:
        ConfigError: there is no episode to play, the seed is negative, or the environment cannot be made or filmed.
        RunFolderError: the run or the video file cannot be used.
        CheckpointError: there is no checkpoint that fits.
    """
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(f"{name} is {value}, but must be at least {least}")
    agent = load_agent(Path(run), env)
    torch.set_num_threads(agent.config.actor.torch_threads)  # more of them only wait for each other in small batches
    if video is not None:  # first, so that a file that cannot be written is known before the long part
        write_video(video, _pictures(agent, seed), describe_single(agent.config.env).steps_per_s)
        print(f"wrote {video}", file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with (
        closing(Evaluator(agent.config, episodes)) as evaluator,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("episodes", total=episodes)
        weights = WeightSnapshot(agent.updates, agent.network.to_vector())
        played = evaluator.evaluate(weights, seed, lambda games: progress.update(bar, completed=games.episodes))
        scores = played.scores
    return {
        "mean_return": float(np.mean(scores)),
        "std_return": float(np.std(scores)),
        "median_return": float(np.median(scores)),
        "episodes": len(scores),
        "scores": [float(score) for score in scores],
        "cut_short": played.cut_short,
        "env": agent.config.env.id,
        "weights_sha256": agent.weights_sha256,
    }


class Policy:
    """An agent with memory that plays one environment, in a loop of the caller's own (the README has an example).

    Feed it every observation of an episode once and in order: its memory, and its stack of frames if the run uses
    one, live here. Used from one thread.
    """

    def __init__(self, agent: Agent, epsilon: float = 0.0, seed: int = 0) -> None:
        self.spec = agent.spec
        self._single: SingleEnv = describe_single(agent.config.env)
        rng = np.random.default_rng(seed)
        self._policy = RecurrentPolicy(agent.network, agent.spec, agent.config.env.stack_frames, 1, rng)
        self._epsilons = np.array([epsilon])
        self._q_values = np.full(agent.spec.num_actions, np.nan, np.float32)
        self.reset()

    @property
    def q_values(self) -> npt.NDArray[np.float32]:
        """float32 [A]: values of all actions at the last observation (before any, NaN)."""
        return self._q_values

    def reset(self) -> None:
        """Forgets the past: the next observation begins an episode."""
        self._begins = np.ones(1, np.bool_)

    def act(self, observation: Any, last_reward: float = 0.0) -> Any:
        """Chooses an action.

        Args:
            observation: one, unstacked, either in the run's encoding (`spec`: uint8 [C, H, W] for images, float32 [D]
                for vectors) or as the Gymnasium environment gives it (uint8 [H, W] or [H, W, C], any vector, a
                Discrete number, a tuple or dict of vectors and numbers). For an Atari run: uint8 [H, W] or
                [1, H, W] grey, of the run's size.
            last_reward: unclipped, of the step before; ignored after `reset`. Matters only to networks with
                `last_action_and_reward`.

        Returns:
            The action as the environment takes it: a number, or int64 [D] of a MultiDiscrete space.

        Raises:
            ValueError: the observation has another shape or, for images, type.
        """
        action = self._single.actions.decode(np.array([self.act_number(observation, last_reward)]))[0]
        return int(action) if np.ndim(action) == 0 else action

    def act_number(self, observation: Any, last_reward: float = 0.0) -> int:
        """The same action by its number, 0 to `spec.num_actions` - 1."""
        rewards = np.array([last_reward], np.float32)
        decision = self._policy.act(self._encode(observation), self._begins, rewards, self._epsilons)
        self._begins = np.zeros(1, np.bool_)
        self._q_values = decision.q_values[0]
        return int(decision.actions[0])

    def _encode(self, observation: Any) -> Observations:
        """[1, *spec.observation_shape]"""
        if self._single.encode_one is not None and isinstance(observation, tuple | dict):
            return self._single.encode_one(observation)
        raw = np.asarray(observation)
        encoded: Observations = raw[None]
        if not self.spec.is_image or raw.dtype == np.uint8:
            if raw.shape == self.spec.observation_shape and raw.dtype == self.spec.observation_dtype:
                return encoded
            if raw.shape == self._single.raw_shape:
                return self._single.encode(encoded)
        raise ValueError(
            f"the observation is {raw.dtype} {list(raw.shape)}, but this run takes {self.spec.observation_dtype} "
            f"{list(self.spec.observation_shape)}, or {list(self._single.raw_shape)} as the environment gives it"
        )


def load_policy(run: str | Path, epsilon: float = 0.0, seed: int = 0) -> Policy:
    """The policy of a run's newest checkpoint.

    Args:
        run: the run's folder.
        epsilon: probability of a random action.
        seed: of those random actions.

    Raises:
        RunFolderError, EnvError, CheckpointError: as `load_agent`.
    """
    return Policy(load_agent(Path(run)), epsilon, seed)


def _pictures(agent: Agent, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Plays one whole game, or `eval.max_steps` of it; uint8 [H, W, 3] before each step and at the end."""
    config = agent.config
    policy = Policy(agent, config.eval.epsilon, derive_seed(seed, "evaluation", 4))
    with closing(make_render_env(config.env, derive_seed(config.seed, "evaluation", 5))) as env:
        observations = env.reset(derive_seed(seed, "evaluation", 6))
        yield env.render()
        reward, over = 0.0, False
        while not over:
            action = policy.act_number(observations[0], reward)
            batch = env.step(np.array([action]))
            observations, reward = batch.observations, float(batch.rewards[0])
            if batch.terminated[0] or batch.truncated[0]:
                policy.reset()
            yield env.render()
            if batch.reset_pending[0]:
                return
