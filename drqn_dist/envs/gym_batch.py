"""Any registered Gymnasium environment with Discrete or few MultiDiscrete actions, stepped as a batch."""

import difflib
import pkgutil
from array import array
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
from drqn_dist.envs.replayed import check_replayed
from drqn_dist.envs.spaces import Observations, action_decoder, observation_encoder
from drqn_dist.errors import EnvError, EnvFailedError
from drqn_dist.interfaces import EnvSpec, StepBatch
from drqn_dist.seeding import row_seeds
from drqn_dist.state import State, joined, split, together


class GymBatch:
    """N copies of one Gymnasium environment as a `BatchEnv`, stepped one after the other, or shared out among threads.

    Every episode of every row begins with a seed of its own, from a stream of its row's. So a state is the seed and the
    actions of each episode under way, and restoring one costs as many steps. An environment, or a wrapper, that keeps
    something from one episode to the next (running means of observations, say) does not come back by that.

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
        self._rows = rows = [
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
        self._id = config.id
        self._played = [array("i") for _ in rows]
        """Actions of each row's episode."""
        self._over = np.zeros(num_envs, np.bool_)
        self.num_envs = num_envs
        self.spec = EnvSpec(self._encoder.shape, self._encoder.dtype, self._actions.num_actions, frames_per_step=1)

    def reset(self, seed: int) -> Observations:
        seeds = row_seeds(seed, self.num_envs)

        def reset(group: SyncVectorEnv[Any, Any], seeds: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
            observations, _ = group.reset(seed=seeds.tolist())
            return (self._encoder.encode(observations),)

        (self._observations,) = self._for_each_group(reset, seeds)
        self._over[:] = False
        for played in self._played:
            del played[:]
        return self._observations

    def step(self, actions: npt.NDArray[np.int64]) -> StepBatch:
        def step(group: SyncVectorEnv[Any, Any], actions: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
            observations, *rest, _ = group.step(self._actions.decode(actions))
            return (self._encoder.encode(observations), *rest)

        observations, rewards, terminated, truncated = self._for_each_group(step, actions)
        for played, action, was_over in zip(self._played, actions.tolist(), self._over.tolist(), strict=True):
            if was_over:
                del played[:]
            else:
                played.append(action)
        self._observations, self._over = observations, terminated | truncated
        return StepBatch(
            observations=observations,
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            reset_pending=self._over.copy(),
        )

    def get_state(self) -> State:
        now = State({"observations": self._observations.copy(), "over": self._over.copy()})
        rows = State(values={"rows": [row.where() for row in self._rows]})
        return together(now=now, rows=rows, played=State(joined(self._played, "int32")))

    def set_state(self, state: State) -> None:
        wheres, played, now = state.part("rows").values["rows"], split(state.part("played")), state.part("now")
        observations, over = np.empty_like(self._observations), np.empty_like(self._over)
        now.fill("observations", observations)
        now.fill("over", over)

        def replay(group: SyncVectorEnv[Any, Any], rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
            through = [self._rows[i].replay(wheres[i], self._actions.decode(played[i].astype(np.int64))) for i in rows]
            # This shows the vector environment where its rows stand, and which of them it is to reset.
            group.reset()
            shown, _, terminated, truncated, _ = group.step(self._actions.decode(np.zeros(len(rows), np.int64)))
            return np.array(through), self._encoder.encode(shown), terminated | truncated

        through, shown, ended = self._for_each_group(replay, np.arange(self.num_envs))
        self._played = [array("i", actions.tolist()) for actions in played]
        self._observations, self._over = shown, ended
        check_replayed(self._id, through & (ended == over), shown, observations)

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
    """Seeds every episode, plays one again, and says of an environment that raises which one it was, and on what."""

    def __init__(self, env: gymnasium.Env[Any, Any], raised: str, which: str) -> None:
        super().__init__(env)
        self._raised, self._which = raised, which
        self._episodes = self._episode_steps = self._steps = 0
        self._seed = 0
        """Of the episode under way."""
        self._stream = np.random.default_rng()
        self._replayed: tuple[Any, Any, bool, bool, dict[str, Any]] | None = None
        """What the next call of `step` answers, without a step, as the end of `replay`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self._replayed is not None:
            return self._replayed[0], {}
        if seed is None:
            self._seed = int(self._stream.integers(2**31))
        else:
            # Not the seed alone: the environment's own generator would begin with the same numbers.
            self._seed, self._stream = seed, np.random.default_rng([seed, 1])
        return self._begin(options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._replayed is not None:
            answer, self._replayed = self._replayed, None
            return answer
        self._steps, self._episode_steps = self._steps + 1, self._episode_steps + 1
        try:
            return self.env.step(action)
        except Exception as error:
            where = f"step {self._episode_steps} of episode {self._episodes} (step {self._steps} of all)"
            raise self._failed(error, f"{where}, action {action}") from error

    def where(self) -> dict[str, Any]:
        """JSON-able; with the actions of its episode, where this row stands."""
        counts = {"episodes": self._episodes, "steps": self._steps}
        return {"seed": self._seed, "stream": self._stream.bit_generator.state} | counts

    def replay(self, where: dict[str, Any], actions: npt.NDArray[Any]) -> bool:
        """Plays an episode again. The next `reset` and the `step` after it show where it stands, and do nothing.

        Returns:
            False where the environment raised, or ended the episode before the last action.
        """
        self._seed, self._stream.bit_generator.state = int(where["seed"]), where["stream"]
        try:
            answer, through = self._at_its_beginning(), not len(actions)
            for played, action in enumerate(actions):
                if answer[2] or answer[3]:
                    break
                answer, through = self.step(action), played + 1 == len(actions)
        except EnvFailedError:
            answer, through = self._at_its_beginning(), False
        self._episodes, self._steps, self._replayed = int(where["episodes"]), int(where["steps"]), answer
        return through

    def _at_its_beginning(self) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, info = self._begin(None)
        return observation, 0.0, False, False, info

    def _begin(self, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        self._episodes, self._episode_steps = self._episodes + 1, 0
        try:
            return self.env.reset(seed=self._seed, options=options)
        except Exception as error:
            raise self._failed(error, f"reset before episode {self._episodes}") from error

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
