"""The exceptions of this project.

    DrqnError
    ├── ConfigError            a setting is wrong; nothing was started (exit code 2)
    │   └── EnvError           an environment is unknown or its spaces are not supported
    ├── EnvFailedError         an environment raised while it was played
    ├── FragmentError          bytes or arrays that are not a valid fragment
    ├── CheckpointError        a checkpoint could not be written, read or fitted to the network
    ├── ReplayStopped          the replay was told to stop; whoever waited on it should leave its loop
    ├── RunFolderError         a run folder is missing, not writable or not a run
    ├── RayDiedError           a process of the run's own Ray ended; the run cannot go on
    └── RoleFailedError        an actor, the replay or the learner failed more often than the policy allows

Every message says what was wrong, with the value, and what to do about it.
"""

from __future__ import annotations


class DrqnError(Exception):
    """Base of everything this project raises on purpose."""


class ConfigError(DrqnError):
    """A configuration that cannot run."""


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
