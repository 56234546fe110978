"""Files that are there in whole or not at all."""

import contextlib
import errno
import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file, all or nothing.

    The bytes go to a temporary file in the same folder and reach the disk before they take the name `path`, so a
    crash or a full disk leaves whatever was there before.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


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
