"""Atari games through ale-py's native vector environment."""

import difflib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv

from drqn_dist.config import EnvConfig
from drqn_dist.envs.replayed import check_replayed
from drqn_dist.errors import EnvError, EnvFailedError
from drqn_dist.interfaces import EnvSpec, StepBatch
from drqn_dist.seeding import row_seeds
from drqn_dist.state import State, joined, split, together

PREFIX = "ALE/"
SUFFIX = "-v5"
SCREEN_HEIGHT_PX = 210
SCREEN_WIDTH_PX = 160
SEED_PERIOD_STEPS = 40_000
"""A row's next game after so many steps begins with a new seed. ale-py loads the cartridge again for each seed, which
takes as long as some 250 steps do (measured: 88 ms): 0.6 % here, and a quarter of the time if every game of Pong had
its own. Restoring a row that must be replayed from its seed may take as many steps, and a game more."""
_TWO_PLAYERS_ONLY = frozenset({"combat", "joust", "maze_craze", "warlords"})


# fmt: off
_KEEP_SOMETHING = frozenset({
    "berzerk", "crossbow", "frostbite", "hangman", "haunted_house", "ice_hockey", "kaboom", "klax", "kung_fu_master",
    "pooyan", "road_runner", "sir_lancelot", "space_war", "surround", "time_pilot", "yars_revenge",
})
# fmt: on
"""Games that begin differently after other games, without sticky actions too: memory that a reset leaves as it was, or
fills with random numbers. Found by comparing memory and screens of all games over 1,500 frames."""


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
        self.lives = lives.copy()

    def lost(self, lives: npt.NDArray[np.int32], over: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which games lost a life in a step that left `lives` int32 [N]; `over` bool [N] games reset in the next step.

        The last life does not count: some games run on for a few frames at zero lives, and their end is no second one.
        """
        lost = (lives < self.lives) & (lives > 0)
        # A new game may have fewer lives than the old one had left, and loses none by that.
        self.lives = np.where(over, 0, lives)
        return lost


class _Step(NamedTuple):
    """What the emulators gave."""

    observations: npt.NDArray[np.uint8]
    rewards: npt.NDArray[Any]
    game_over: npt.NDArray[np.bool_]
    out_of_time: npt.NDArray[np.bool_]
    info: dict[str, npt.NDArray[np.int32]]


class AtariBatch:
    """N games of one cartridge as a `BatchEnv`; observations uint8 [N, 1, height, width], grey.

    One agent step is `frame_skip` emulator frames, of which the last two are max-pooled (DQN). Rewards are not
    clipped. Every game starts with 0 to `noop_max_steps` no-ops; where a game has a FIRE action the first of them is
    a press of it, since several games wait for that (Breakout). It is not pressed again after a lost life.

    The observation of a step in which the game ends is the last screen that was captured: up to `frame_skip` frames
    old, as ale-py leaves it. It cannot be pickled: make it in the process that steps it. Not thread-safe.

    A state is, for each row::

        seed   game, reset, game, reset, game ...  |  actions since
        ^ at most seed_period_steps, and one game  ^

    Without sticky actions a game depends on how many resets came before it, which set the number of no-ops, and not on
    what was played: only the present game is replayed. With them, and for a few games, all since the seed are.

    Raises:
        EnvError: the game is unknown, or `config.kwargs` holds anything.
    """

    def __init__(
        self, config: EnvConfig, num_envs: int, num_threads: int = 1, seed_period_steps: int = SEED_PERIOD_STEPS
    ) -> None:
        self._envs = _make(config, num_envs, num_threads, (config.height_px, config.width_px), grayscale=True)
        self._id = config.id
        self._life_loss_ends_episode = config.life_loss_ends_episode
        self._seed_period_steps = seed_period_steps
        self._forgets = config.sticky_action_probability == 0 and _rom_of(config.id) not in _KEEP_SOMETHING
        self.num_envs = num_envs
        self.spec = EnvSpec(
            observation_shape=(1, config.height_px, config.width_px),
            observation_dtype="uint8",
            num_actions=int(self._envs.single_action_space.n),
            frames_per_step=config.frame_skip,
        )

    def reset(self, seed: int) -> npt.NDArray[np.uint8]:
        n = self.num_envs
        self._stream = np.random.default_rng([seed, 1])
        self._seeds = row_seeds(seed, n)
        self._resets, self._age = np.zeros((2, n), np.int64)
        """Of each row since its seed: resets whose games are forgotten, and all steps."""
        self._played = [bytearray() for _ in range(n)]
        """Actions of each row since then, or, where it forgets, since the last reset."""
        self._over = np.zeros(n, np.bool_)
        self._observations, info = self._begin(np.ones(n, np.bool_), self._seeds)
        self._life_watch = LifeWatch(info["lives"])
        return self._observations

    def step(self, actions: npt.NDArray[np.int64]) -> StepBatch:
        """Steps every game.

        Raises:
            ValueError: an action is out of range; the emulator's threads would wait for ever on it.
        """
        if int(actions.min()) < 0 or int(actions.max()) >= self.spec.num_actions:
            raise ValueError(f"actions must lie in 0..{self.spec.num_actions - 1}, got {actions.tolist()}")
        step = self._step(actions)
        for played, action in zip(self._played, actions.tolist(), strict=True):
            played.append(action)
        self._age += 1
        if self._over.any():
            step = self._after_resets(step)
        over = step.game_over | step.out_of_time
        life_lost = self._life_watch.lost(step.info["lives"], over) & self._life_loss_ends_episode
        self._observations, self._over = step.observations, over
        return StepBatch(
            observations=step.observations,
            rewards=step.rewards.astype(np.float32),
            terminated=step.game_over | life_lost,
            truncated=step.out_of_time & ~life_lost,
            reset_pending=over.copy(),
        )

    def get_state(self) -> State:
        now: dict[str, npt.NDArray[Any]] = {
            "seeds": self._seeds,
            "resets": self._resets,
            "age": self._age,
            "over": self._over,
            "observations": self._observations,
            "lives": self._life_watch.lives,
        }
        return together(
            now=State({name: array.copy() for name, array in now.items()}),
            played=State(joined([np.frombuffer(played, np.uint8) for played in self._played], "uint8")),
            stream=State(values=dict(self._stream.bit_generator.state)),
        )

    def set_state(self, state: State) -> None:
        now, played = state.part("now"), split(state.part("played"))
        saved, over = np.empty_like(self._observations), np.empty_like(self._over)
        now.fill("observations", saved)
        now.fill("over", over)
        now.fill("seeds", self._seeds)
        now.fill("resets", self._resets)
        now.fill("age", self._age)
        now.fill("lives", self._life_watch.lives)
        self._stream.bit_generator.state = state.part("stream").values
        self._played = [bytearray(actions.tobytes()) for actions in played]
        self._observations, self._over = self._replay(played)
        check_replayed(self._id, self._over == over, self._observations, saved)

    def close(self) -> None:
        self._envs.close()

    def _after_resets(self, step: _Step) -> _Step:
        """The same step, in which the rows that were over have been reset; seeds those that are due."""
        if self._forgets:
            self._resets += self._over
            for row in np.flatnonzero(self._over).tolist():
                self._played[row].clear()
        due = self._over & (self._age >= self._seed_period_steps)
        if not due.any():
            return step
        self._seeds[due] = self._stream.integers(2**31, size=int(due.sum()))
        self._resets[due] = self._age[due] = 0
        for row in np.flatnonzero(due).tolist():
            self._played[row].clear()
        observations, info = self._begin(due, self._seeds)
        return step._replace(observations=observations, info=info)

    def _replay(self, played: list[npt.NDArray[np.uint8]]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Plays every row from its seed, so that all arrive together: those with fewer steps begin later.

        Returns:
            observations uint8 [N, 1, height, width] and bool [N], whether a game was over in its last step.
        """
        lengths = np.array([len(actions) for actions in played])
        steps = int(lengths.max())
        script = np.zeros((steps, self.num_envs), np.uint8)  # before its beginning, a row plays anything
        for row, actions in enumerate(played):
            script[steps - len(actions) :, row] = actions
        observations, _ = self._begin(np.ones(self.num_envs, np.bool_), self._seeds)
        over = np.zeros(self.num_envs, np.bool_)
        for t in range(steps + 1):
            starts = lengths == steps - t
            if starts.any():
                observations, _ = self._begin(starts, self._seeds)
                for done in range(int(self._resets[starts].max())):
                    observations, _ = self._begin(starts & (self._resets > done))
            if t < steps:
                step = self._step(script[t].astype(np.int64))
                observations, over = step.observations, step.game_over | step.out_of_time
        return observations, over & (lengths > 0)

    def _begin(
        self, rows: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.int32]]]:
        """New games in some rows, with `seeds` int64 [N] where given; the observations and information of all rows."""
        return _begin(self._envs, rows, seeds)

    def _step(self, actions: npt.NDArray[np.int64]) -> _Step:
        try:
            return _Step(*self._envs.step(actions))
        except Exception as error:
            raise EnvFailedError(
                f"{self._id} raised {type(error).__name__}: {error}; in one of {self.num_envs} games, on the actions "
                f"{actions.tolist()}"
            ) from error


class AtariRender(AtariBatch):
    """One game that can be watched.

    The vector environment cannot render, so a twin with the same seed, settings and actions plays along and yields
    the full colour screen. The emulator is deterministic, therefore the observations are exactly the batch path's.
    """

    def __init__(self, config: EnvConfig, seed_period_steps: int = SEED_PERIOD_STEPS) -> None:
        super().__init__(config, 1, seed_period_steps=seed_period_steps)
        self._twin = _make(config, 1, 1, (SCREEN_HEIGHT_PX, SCREEN_WIDTH_PX), grayscale=False)
        self._screen = np.zeros((SCREEN_HEIGHT_PX, SCREEN_WIDTH_PX, 3), dtype=np.uint8)

    def render(self) -> npt.NDArray[np.uint8]:
        """The colour screen uint8 [210, 160, 3] behind the present observation."""
        return np.array(self._screen)

    def close(self) -> None:
        self._twin.close()
        super().close()

    def _begin(
        self, rows: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.int32]]]:
        self._screen = _begin(self._twin, rows, seeds)[0][0, 0]
        return super()._begin(rows, seeds)

    def _step(self, actions: npt.NDArray[np.int64]) -> _Step:
        step = super()._step(actions)
        self._screen = self._twin.step(actions)[0][0, 0]
        return step


def _begin(
    envs: Any, rows: npt.NDArray[np.bool_], seeds: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.int32]]]:
    # All at once needs no mask, and must not have one the first time.
    options = None if rows.all() else {"reset_mask": rows}
    observations, info = envs.reset(seed=None if seeds is None else seeds[rows], options=options)
    return observations, info


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
