"""A distributed Deep Recurrent Q-Network: Ray actors, sequence replay, one learner.

    import drqn_dist
    from drqn_dist.presets import preset

    summary = drqn_dist.train(preset("gridworld"))
    result = drqn_dist.evaluate("runs/...", episodes=20)
    policy = drqn_dist.load_policy("runs/...")

The three functions are imported when first used, so that reading a configuration needs neither torch nor Ray.
"""

import importlib
import importlib.metadata
from typing import Any

try:
    __version__ = importlib.metadata.version("drqn-dist")
except importlib.metadata.PackageNotFoundError:  # used from a checkout that was never installed
    __version__ = "0+unknown"

_LAZY = {
    "train": "drqn_dist.training.train",
    "evaluate": "drqn_dist.experiments.evaluate",
    "load_policy": "drqn_dist.experiments.evaluate",
}

__all__ = ["__version__", "evaluate", "load_policy", "train"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'drqn_dist' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
