"""Files that are there in whole or not at all."""

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"
"""Ends the name of a file that is being written, or that a process left which died meanwhile."""


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file, all or nothing.

    The bytes go to a temporary file in the same folder and reach the disk before they take the name `path`, so a
    crash or a full disk leaves whatever was there before.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # also where a signal breaks it off
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder where there is none, and those above it, so that they survive a power cut.

    Raises:
        OSError: one could not be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:  # what is in them would be lost with them, however well it was synced
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Makes what was created, renamed or removed in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems know no such thing
            raise
    finally:
        os.close(descriptor)


def locked(path: Path, patience_s: float) -> BinaryIO:
    """A file that this process alone holds until it is closed or the process ends; just a file where the file system
    knows no locks.

    Args:
        patience_s: how long another process gets to let go of it: one that was killed may still be on its way out.

    Raises:
        OSError: EBUSY, another process holds it; or the file cannot be made.
    """
    file = open(path, "ab")  # noqa: SIM115 (held on to)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return file
            if time.monotonic() > deadline:
                file.close()
                raise OSError(errno.EBUSY, "another process holds it") from error
            time.sleep(0.05)  # there is nothing to wait on
