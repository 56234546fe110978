"""Fragment: what actors push. NumPy only."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from drqn_dist.errors import FragmentError

Observations = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class Fragment:
    """L consecutive steps of ONE episode.

    ::

        observations  o_0  o_1  ...  o_{L-1}  o_L     L + 1, o_L is the first one of the next fragment,
        actions       a_0  a_1  ...  a_{L-1}          or the episode's true final observation
        rewards       r_0  r_1  ...  r_{L-1}          r_k follows a_k
    """

    observations: Observations
    """uint8 or float32 [L + 1, *observation_shape], unstacked."""
    actions: npt.NDArray[np.int64]
    """int64 [L]"""
    rewards: npt.NDArray[np.float32]
    """float32 [L], unclipped."""
    terminated: bool
    """The last step ended the episode for good: nothing to bootstrap from."""
    truncated: bool
    """The last step was the episode's last one for a reason outside the task: bootstrap from o_L."""
    first_step: int
    """Episode step of a_0; a multiple of the configured fragment length."""
    actor_id: int
    env_id: int
    episode_id: int
    """Grows by one with each episode of (actor_id, env_id)."""
    sequence_no: int
    """Grows by one with each fragment of (actor_id, env_id), over the life of the run."""
    weight_version: int
    """Learner updates behind the policy that took the last of these steps."""
    priorities: npt.NDArray[np.float32]
    """float32 [number of windows whose unroll starts in this fragment], not yet raised to any exponent."""
    states: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Recurrent state before a step: {step within the fragment: float32 [S, H]}."""

    @property
    def num_steps(self) -> int:
        return int(self.actions.shape[0])

    @property
    def ends_episode(self) -> bool:
        return self.terminated or self.truncated

    def validate(self) -> None:
        """Checks shapes, dtypes and values.

        Raises:
            FragmentError: with the field and the value that is wrong.
        """
        if self.actions.ndim != 1 or self.actions.dtype != np.int64 or self.actions.size == 0:
            raise FragmentError(f"actions must be int64 [L >= 1], got {self.actions.dtype} {self.actions.shape}")
        length = self.num_steps
        if self.rewards.shape != (length,) or self.rewards.dtype != np.float32:
            raise FragmentError(f"rewards must be float32 [{length}], got {self.rewards.dtype} {self.rewards.shape}")
        if self.observations.ndim < 2 or self.observations.shape[0] != length + 1:
            raise FragmentError(
                f"observations must hold {length + 1} entries for {length} steps, got {self.observations.shape}"
            )
        if self.observations.dtype not in (np.uint8, np.float32):
            raise FragmentError(f"observations must be uint8 or float32, got {self.observations.dtype}")
        if self.priorities.dtype != np.float32 or self.priorities.ndim != 1:
            raise FragmentError(f"priorities must be float32 [W], got {self.priorities.dtype}")
        self.validate_contents()  # first: a NaN that the environment gave makes those of the network
        if not np.isfinite(self.priorities).all() or (self.priorities < 0).any():
            raise FragmentError("priorities must be finite and not negative; the actor's Q values have diverged")
        for name in ("first_step", "actor_id", "env_id", "episode_id", "sequence_no", "weight_version"):
            if not 0 <= getattr(self, name) < 2**63:
                raise FragmentError(f"{name} must lie in [0, 2^63), got {getattr(self, name)}")

    def validate_contents(self) -> None:
        """Checks what `codec.decode` cannot know from the header and the sizes: the values of the steps' arrays.

        Raises:
            FragmentError: with the field and the value that is wrong.
        """
        if int(self.actions.min()) < 0:
            raise FragmentError(f"actions must not be negative, got {int(self.actions.min())}")
        if not np.isfinite(self.rewards).all():
            raise FragmentError(
                f"reward at episode step {self.first_step + int(np.argmin(np.isfinite(self.rewards)))} of "
                f"environment {self.env_id} is not finite; check the environment"
            )
        if self.observations.dtype == np.float32 and not np.isfinite(self.observations).all():
            raise FragmentError(f"an observation of environment {self.env_id} is not finite; check the environment")
        for step, state in self.states.items():
            if not 0 <= step < self.num_steps or state.dtype != np.float32 or state.ndim != 2:
                raise FragmentError(f"state at step {step} must be float32 [S, H] within the fragment")
