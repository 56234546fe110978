"""The replay that a configuration asks for, and how a learner of the same process draws from it."""

from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import FragmentInbox, WindowDraws
from drqn_dist.seeding import derive_seed
from replay_server.replay import Replay


class LocalSource:
    """A whole replay of the same process as a `WindowSource`, which does not wait for its rate limiter."""

    def __init__(self, replay: Replay, batch_windows: int) -> None:
        self._replay, self._batch_windows = replay, batch_windows

    def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
        answer = self._replay.sample([self._batch_windows] * batches, inbox.held(0), inbox.fresh_limit, timeout_s=0.0)
        inbox.receive(answer.fresh, 0)
        return answer.draws


def make_replay(config: TrainConfig, shard: int | None = None) -> Replay:
    """The replay that this configuration asks for, as a whole or as one of its `replay.shards` parts.

    Raises:
        ConfigError: its rate limiter would deadlock.
    """
    return Replay(
        config.replay,
        config.window,
        config.learner.batch_windows,
        config.rate_tolerance_steps,
        config.seed if shard is None else derive_seed(config.seed, "replay", shard),
        shard=shard or 0,
        shards=1 if shard is None else config.replay.shards,
        batches_per_draw=1 if shard is None else config.batches_per_draw,
    )
