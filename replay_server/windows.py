"""Which windows exist, who owns them and when they can be drawn: pure functions of `WindowShape`.

::

    fragment of the episode    j - back   ...   j - 1        j          j + 1   ...  j + ahead
                              |----------|-----|--------|----------|--------|-----|-----------|
    a window owned by j          [ history | burn-in   )[ unroll              )[ n_step )
                                                        ^ its start lies in fragment j

Window k of an episode of E steps starts at k * stride < E. Where windows overlap, one that would train no step which
its predecessor does not train as well, (k - 1) * stride + unroll >= E, does not exist.
"""

import numpy as np

from drqn_dist.codec import FragmentHeader
from drqn_dist.config import WindowShape
from drqn_dist.errors import FragmentError
from replay_server.sum_tree import Ints


def owned_windows(shape: WindowShape, num_steps: int) -> int:
    """Windows whose unroll starts in a fragment of `num_steps` steps (some may prove not to exist)."""
    return -(-num_steps // shape.stride)


def check_cut(shape: WindowShape, header: FragmentHeader) -> None:
    """
    Raises:
        FragmentError: the fragment was not cut as windows of this shape need it.
    """
    full = shape.fragment
    steps = f"{header.num_steps} steps from episode step {header.first_step}"
    if header.first_step % full or header.num_steps > full:
        raise FragmentError(f"fragment has {steps}, but must have at most {full} from a multiple of {full}")
    if header.num_steps < full and not header.ends_episode:
        raise FragmentError(f"fragment has {steps}: shorter than {full} although its episode goes on")
    owned = owned_windows(shape, header.num_steps)
    if len(header.priorities) != owned:
        raise FragmentError(
            f"fragment has {len(header.priorities)} priorities, but {owned} windows start in its "
            f"{header.num_steps} steps at a stride of {shape.stride}"
        )


def steps_read(shape: WindowShape, starts: Ints) -> tuple[Ints, Ints]:
    """First step and end (exclusive) of the steps that windows read which begin to train at `starts`, int64 [N] each;
    the episode may end before that end.

    Step t brings the observations t and t + 1, so the last observation needs no step of its own.
    """
    first = np.maximum(starts - shape.burn_in - shape.history, 0)
    return first, starts + shape.unroll + shape.n_step - 1


def reach(shape: WindowShape) -> tuple[int, int]:
    """`(back, ahead)`: a window reads at most so many fragments before and after the one that owns it."""
    back = -(-(shape.burn_in + shape.history) // shape.fragment)
    ahead = (shape.fragment - shape.stride + shape.unroll + shape.n_step - 2) // shape.fragment
    return back, ahead


def drawable_starts(shape: WindowShape, run_start: int, run_end: int, ended: bool) -> tuple[int, int]:
    """Low and high (exclusive) of the starts of windows that read nothing outside a stored run of steps.

    Args:
        shape: the window's measures.
        run_start: episode step at which the run begins.
        run_end: episode step after its last one.
        ended: the episode ends there.
    """
    low = 0 if run_start == 0 else run_start + shape.burn_in + shape.history
    if ended:
        return low, max(1, run_end - shape.unroll + shape.stride)
    return low, run_end - shape.unroll - shape.n_step + 2
