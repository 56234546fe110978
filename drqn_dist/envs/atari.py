"""Atari games through ale-py's native vector environment."""

import difflib
from typing import Any

import numpy as np
import numpy.typing as npt
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv

from drqn_dist.config import EnvConfig
from drqn_dist.errors import EnvError, EnvFailedError
from drqn_dist.interfaces import EnvSpec, StepBatch
from drqn_dist.seeding import row_seeds

PREFIX = "ALE/"
SUFFIX = "-v5"
SCREEN_HEIGHT_PX = 210
SCREEN_WIDTH_PX = 160
_TWO_PLAYERS_ONLY = frozenset({"combat", "joust", "maze_craze", "warlords"})


def atari_ids() -> list[str]:
    """Every game, as `ALE/<Game>-v5`."""
    return [PREFIX + name + SUFFIX for name in _roms_by_name()]


def _roms_by_name() -> dict[str, str]:
    """`MsPacman` → `ms_pacman`, the spelling that ale-py wants."""
    return {rom.title().replace("_", ""): rom for rom in roms.get_all_rom_ids() if rom not in _TWO_PLAYERS_ONLY}


def _rom_of(env_id: str) -> str:
    games = _roms_by_name()
    name = env_id.removeprefix(PREFIX).removesuffix(SUFFIX)
    if env_id == PREFIX + name + SUFFIX and name in games:
        return games[name]
    by_lower = {game.lower(): game for game in games}
    close = difflib.get_close_matches(name.split("-")[0].lower().replace("_", ""), by_lower, n=3)
    hint = " or ".join(PREFIX + by_lower[game] + SUFFIX for game in close) or "for example ALE/Pong-v5"
    raise EnvError(f"unknown Atari game {env_id!r}; did you mean {hint}? ({len(games)} games are known)")


class LifeWatch:
    """Sees lost lives in the counters of N games.

    ale-py's own life_loss_info puts lost lives and lost games into one flag. With that flag off, its `terminated` is
    exactly the end of a game, and lost lives are found here.
    """

    def __init__(self, lives: npt.NDArray[np.int32]) -> None:
        """Every game begins with `lives` int32 [N]."""
        self._lives = lives.copy()

    def lost(self, lives: npt.NDArray[np.int32], over: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which games lost a life in a step that left `lives` int32 [N]; `over` bool [N] games reset in the next step.

        The last life does not count: some games run on for a few frames at zero lives, and their end is no second one.
        """
        lost = (lives < self._lives) & (lives > 0)
        # A new game may have fewer lives than the old one had left, and loses none by that.
        self._lives = np.where(over, 0, lives)
        return lost


class AtariBatch:
    """N games of one cartridge as a `BatchEnv`; observations uint8 [N, 1, height, width], grey.

    One agent step is `frame_skip` emulator frames, of which the last two are max-pooled (DQN). Rewards are not
    clipped. Every game starts with 0 to `noop_max_steps` no-ops; where a game has a FIRE action the first of them is
    a press of it, since several games wait for that (Breakout). It is not pressed again after a lost life.

    The observation of a step in which the game ends is the last screen that was captured: up to `frame_skip` frames
    old, as ale-py leaves it. It cannot be pickled: make it in the process that steps it. Not thread-safe.

    Raises:
        EnvError: the game is unknown, or `config.kwargs` holds anything.
    """

    def __init__(self, config: EnvConfig, num_envs: int, num_threads: int = 1) -> None:
        self._envs = _make(config, num_envs, num_threads, (config.height_px, config.width_px), grayscale=True)
        self._id = config.id
        self._life_loss_ends_episode = config.life_loss_ends_episode
        self.num_envs = num_envs
        self.spec = EnvSpec(
            observation_shape=(1, config.height_px, config.width_px),
            observation_dtype="uint8",
            num_actions=int(self._envs.single_action_space.n),
            frames_per_step=config.frame_skip,
        )

    def reset(self, seed: int) -> npt.NDArray[np.uint8]:
        observations, info = self._envs.reset(seed=row_seeds(seed, self.num_envs))
        self._life_watch = LifeWatch(info["lives"])
        return _typed(observations)

    def step(self, actions: npt.NDArray[np.int64]) -> StepBatch:
        """Steps every game.

        Raises:
            ValueError: an action is out of range; the emulator's threads would wait for ever on it.
        """
        if int(actions.min()) < 0 or int(actions.max()) >= self.spec.num_actions:
            raise ValueError(f"actions must lie in 0..{self.spec.num_actions - 1}, got {actions.tolist()}")
        try:
            observations, rewards, game_over, out_of_time, info = self._envs.step(actions)
        except Exception as error:
            raise EnvFailedError(
                f"{self._id} raised {type(error).__name__}: {error}; in one of {self.num_envs} games, on the actions "
                f"{actions.tolist()}"
            ) from error
        over = game_over | out_of_time
        life_lost = self._life_watch.lost(info["lives"], over) & self._life_loss_ends_episode
        return StepBatch(
            observations=_typed(observations),
            rewards=rewards.astype(np.float32),
            terminated=game_over | life_lost,
            truncated=out_of_time & ~life_lost,
            reset_pending=over,
        )

    def close(self) -> None:
        self._envs.close()


class AtariRender(AtariBatch):
    """One game that can be watched.

    The vector environment cannot render, so a twin with the same seed, settings and actions plays along and yields
    the full colour screen. The emulator is deterministic, therefore the observations are exactly the batch path's.
    """

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config, num_envs=1)
        self._twin = _make(config, 1, 1, (SCREEN_HEIGHT_PX, SCREEN_WIDTH_PX), grayscale=False)
        self._screen = np.zeros((SCREEN_HEIGHT_PX, SCREEN_WIDTH_PX, 3), dtype=np.uint8)

    def reset(self, seed: int) -> npt.NDArray[np.uint8]:
        self._screen = self._twin.reset(seed=row_seeds(seed, 1))[0][0, 0]
        return super().reset(seed)

    def step(self, actions: npt.NDArray[np.int64]) -> StepBatch:
        batch = super().step(actions)
        self._screen = self._twin.step(actions)[0][0, 0]
        return batch

    def render(self) -> npt.NDArray[np.uint8]:
        """The colour screen uint8 [210, 160, 3] behind the present observation."""
        return np.array(self._screen)

    def close(self) -> None:
        self._twin.close()
        super().close()


def _make(config: EnvConfig, num_envs: int, num_threads: int, size_px: tuple[int, int], grayscale: bool) -> Any:
    if config.kwargs:
        raise EnvError(
            f"env.kwargs {sorted(config.kwargs)} cannot be used with {config.id}: an Atari game takes no keyword "
            "arguments; use the settings of env"
        )
    return AtariVectorEnv(
        _rom_of(config.id),
        num_envs,
        num_threads=num_threads,
        max_num_frames_per_episode=config.max_episode_frames,
        repeat_action_probability=config.sticky_action_probability,
        full_action_space=config.full_action_set,
        img_height=size_px[0],
        img_width=size_px[1],
        grayscale=grayscale,
        stack_num=1,
        frameskip=config.frame_skip,
        noop_max=config.noop_max_steps + 1,  # ale-py draws from 0 to noop_max - 1
        life_loss_info=False,
        reward_clipping=False,
        use_fire_reset=True,
    )


def _typed(observations: Any) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[np.uint8] = observations
    return array
