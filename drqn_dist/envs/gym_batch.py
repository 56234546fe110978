"""Any registered Gymnasium environment with Discrete or few MultiDiscrete actions, stepped as a batch."""

import difflib
import pkgutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from drqn_dist.config import EnvConfig
from drqn_dist.envs.atari import atari_ids
from drqn_dist.envs.spaces import Observations, action_decoder, observation_encoder
from drqn_dist.errors import EnvError, EnvFailedError
from drqn_dist.interfaces import EnvSpec, StepBatch
from drqn_dist.seeding import row_seeds


class GymBatch:
    """N copies of one Gymnasium environment as a `BatchEnv`, stepped one after the other, or shared out among threads.

    Args:
        config: `id` may be `module:Env-v0`, then the module is imported first; `kwargs` go to the constructor.
        num_envs: N.
        num_threads: at most so many; one steps in the caller's thread.
        render_mode: passed to the constructor; None for speed.

    Raises:
        EnvError: the id is unknown, its module is missing, the constructor failed, or a space is not supported.
    """

    def __init__(self, config: EnvConfig, num_envs: int, num_threads: int = 1, render_mode: str | None = None) -> None:
        first = make_one(config, render_mode)
        try:
            self._encoder = observation_encoder(first.observation_space, config.id)
            self._actions = action_decoder(first.action_space, config.id)
        except EnvError:
            first.close()
            raise
        rest = [make_one(config, render_mode) for _ in range(num_envs - 1)]
        rows = [
            _Row(env, f"{config.id} raised", f"environment {i} of {num_envs}") for i, env in enumerate([first, *rest])
        ]
        self._groups = [
            SyncVectorEnv(
                [lambda env=env: env for env in group],  # type: ignore[misc]
                copy=True,
                autoreset_mode=AutoresetMode.NEXT_STEP,
            )
            for group in _split(rows, num_threads)
        ]
        self._sizes = [group.num_envs for group in self._groups]
        # One for each group: many environments bear no change of thread.
        self._threads = [ThreadPoolExecutor(1) for _ in self._groups] if len(self._groups) > 1 else []
        self.num_envs = num_envs
        self.spec = EnvSpec(self._encoder.shape, self._encoder.dtype, self._actions.num_actions, frames_per_step=1)

    def reset(self, seed: int) -> Observations:
        seeds = row_seeds(seed, self.num_envs)

        def reset(group: SyncVectorEnv[Any, Any], seeds: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
            observations, _ = group.reset(seed=seeds.tolist())
            return (self._encoder.encode(observations),)

        return self._for_each_group(reset, seeds)[0]

    def step(self, actions: npt.NDArray[np.int64]) -> StepBatch:
        def step(group: SyncVectorEnv[Any, Any], actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
            observations, *rest, _ = group.step(self._actions.decode(actions))
            return (self._encoder.encode(observations), *rest)

        observations, rewards, terminated, truncated = self._for_each_group(step, actions)
        return StepBatch(
            observations=observations,
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            reset_pending=terminated | truncated,
        )

    def render(self) -> npt.NDArray[np.uint8]:
        """The picture uint8 [H, W, 3] of the first row; needs `render_mode="rgb_array"`."""
        return np.asarray(self._groups[0].render()[0], dtype=np.uint8)

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()
        for group in self._groups:
            group.close()

    def _for_each_group(
        self,
        do: Callable[[SyncVectorEnv[Any, Any], npt.NDArray[Any]], tuple[npt.NDArray[Any], ...]],
        rows: npt.NDArray[Any],
    ) -> list[npt.NDArray[Any]]:
        """Each group's answers to its part of [N, ...], put together again."""
        parts = np.split(rows, np.cumsum(self._sizes)[:-1])
        if not self._threads:
            return list(do(self._groups[0], parts[0]))
        under_way = [
            thread.submit(do, group, part)
            for thread, group, part in zip(self._threads, self._groups, parts, strict=True)
        ]
        answers = [answer.result() for answer in under_way]
        return [np.concatenate(answer) for answer in zip(*answers, strict=True)]


def _split(rows: list["_Row"], groups: int) -> list[list["_Row"]]:
    """Into at most so many groups whose sizes differ by one at most, in order."""
    edges = np.linspace(0, len(rows), min(groups, len(rows)) + 1).astype(int)
    return [rows[first:end] for first, end in pairwise(edges)]


class _Row(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Says of an environment that raises which one it was, and on what it did."""

    def __init__(self, env: gymnasium.Env[Any, Any], raised: str, which: str) -> None:
        super().__init__(env)
        self._raised, self._which = raised, which
        self._episodes = self._episode_steps = self._steps = 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        self._episodes, self._episode_steps = self._episodes + 1, 0
        try:
            return self.env.reset(**options)
        except Exception as error:
            raise self._failed(error, f"reset before episode {self._episodes}") from error

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps, self._episode_steps = self._steps + 1, self._episode_steps + 1
        try:
            return self.env.step(action)
        except Exception as error:
            where = f"step {self._episode_steps} of episode {self._episodes} (step {self._steps} of all)"
            raise self._failed(error, f"{where}, action {action}") from error

    def _failed(self, error: Exception, where: str) -> EnvFailedError:
        return EnvFailedError(f"{self._raised} {type(error).__name__}: {error}; {self._which}, {where}")


def make_one(config: EnvConfig, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """One environment with its wrappers.

    Raises:
        EnvError: it cannot be made.
    """
    spec = gymnasium.registry.get(config.id)
    if spec is not None and str(spec.entry_point).startswith("ale_py"):
        raise EnvError(f"{config.id} is an old spelling of an Atari game; games are spelt ALE/Pong-v5 here")
    extra: dict[str, Any] = {}
    if render_mode is not None:
        with closing(make_one(config, None)) as plain:
            modes = plain.metadata.get("render_modes", [])
        if render_mode not in modes:
            raise EnvError(f"{config.id} cannot be recorded: it has no render mode {render_mode}, only {modes}")
        extra = {"render_mode": render_mode}
    try:
        # The passive checker would look at every observation again, and warn of things that work.
        env = gymnasium.make(config.id, disable_env_checker=True, **extra, **config.kwargs)
        for name in config.wrappers:
            env = pkgutil.resolve_name(name)(env)
        return env
    except Exception as error:  # whatever a third party's constructor raises
        raise EnvError(_explanation(config, error)) from error


def _explanation(config: EnvConfig, error: Exception) -> str:
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        return f"{config.id} needs a package that is not installed: {_first_line(error)}"
    if isinstance(error, ModuleNotFoundError):
        module = error.name or config.id.split(":")[0]
        return f"{config.id} needs the module {module!r}, which is not installed; install the package that holds it"
    if isinstance(error, gymnasium.error.Error) and config.id not in gymnasium.registry:
        return f"unknown environment {config.id!r}{_suggestion(config.id)}"
    if isinstance(error, EnvError):
        return f"{config.id}: {error}"
    given = f"env.kwargs {config.kwargs}" + (f" and env.wrappers {config.wrappers}" if config.wrappers else "")
    return f"{config.id} could not be made with {given}: {type(error).__name__}: {_first_line(error)}"


def _suggestion(env_id: str) -> str:
    ours = [name for name, spec in gymnasium.registry.items() if not str(spec.entry_point).startswith("ale_py")]
    by_lower = {name.lower(): name for name in (*ours, *atari_ids())}
    close = difflib.get_close_matches(env_id.split(":")[-1].lower(), by_lower, n=3)
    if close:
        return f"; did you mean {' or '.join(by_lower[name] for name in close)}?"
    return "; name a registered Gymnasium environment, ALE/<Game>-v5 or module:Env-v0"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
