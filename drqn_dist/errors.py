"""The exceptions of this project. Every message says what was wrong, with the value, and what to do about it."""

from __future__ import annotations


class DrqnError(Exception):
    """Base of everything this project raises on purpose."""


class ConfigError(DrqnError):
    """A configuration that cannot run; nothing was started."""


class EnvError(ConfigError):
    """An environment that is unknown, or whose spaces are not supported."""


class EnvFailedError(DrqnError):
    """An environment raised while it was played; its own error is the cause."""


class FragmentError(DrqnError):
    """A fragment that is malformed, truncated, corrupted, too large or of another schema."""


class CheckpointError(DrqnError):
    """A checkpoint that could not be written or read, or that belongs to another network."""


class ReplayStopped(DrqnError):
    """The replay was stopped: no push or sample will come through any more. Not a fault."""


class RunFolderError(DrqnError):
    """A run folder that cannot be used."""


class RayDiedError(DrqnError):
    """Ray itself died: not a role of the run, but one of the processes that hold them together."""


class RoleFailedError(DrqnError):
    """A process of the run failed and the failure policy decided to stop."""
