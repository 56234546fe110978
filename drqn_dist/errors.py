"""The exceptions of this project. Every message says what was wrong, with the value, and what to do about it."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], most: int = 3) -> str:
    """What of the known words may have been meant, as `did you mean a or b? `; empty where nothing comes close."""
    close = difflib.get_close_matches(word, list(known), most)
    return f"did you mean {' or '.join(close)}? " if close else ""


def shown(value: object, most: int = 200) -> str:
    """A value in a message, as Python would write it; cut short where it is long. An exception tells its message."""
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes, or tables in tables without end
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= most else f"{text[:most]}…"


class DrqnError(Exception):
    """Base of everything this project raises on purpose."""

    exit_code = 1
    shows_cause = False
    """The traceback of its cause is worth showing."""


class ConfigError(DrqnError):
    """A configuration that cannot run; nothing was started."""

    exit_code = 2


class EnvError(ConfigError):
    """An environment that is unknown, or whose spaces are not supported."""


class EnvNotRestoredError(EnvError):
    """An environment that did not come back as it was when its episode was played again: it is not deterministic under
    its seed, or keeps something from one episode to the next. It must be reset before it is used."""


class EnvFailedError(DrqnError):
    """An environment raised while it was played; its own error is the cause."""

    shows_cause = True


class FragmentError(DrqnError):
    """A fragment that is malformed, truncated, corrupted, too large or of another schema."""


class JournalDamagedError(DrqnError):
    """A replay journal in which not everything is whole."""


class CheckpointError(DrqnError):
    """A checkpoint that could not be written or read, or that belongs to another network."""

    exit_code = 2


class CheckpointUnreadError(CheckpointError):
    """A checkpoint that may be whole, but that the disk, or too little memory, does not give now; from the OSError or
    MemoryError."""


class ReplayStopped(DrqnError):
    """The replay was stopped: no push or sample will come through any more. Not a fault."""


class RunFolderError(DrqnError):
    """A run folder that cannot be used."""

    exit_code = 2


class RayDiedError(DrqnError):
    """Ray itself died: not a role of the run, but one of the processes that hold them together."""

    exit_code = 75
    """EX_TEMPFAIL: whoever keeps the run may start it again."""


class RoleFailedError(DrqnError):
    """A process of the run failed and the failure policy decided to stop."""

    shows_cause = True
