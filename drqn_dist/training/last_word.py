"""The last word of a run that ends without one.

Where Ray's own processes die, its C++ code may end the process that uses it at once: no exception, no `finally`. The
same happens to a process that is killed because memory runs out. So a shell beside the run knows what there is to say,
and says it when the pipe to it closes before the run has ended.
"""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Self

_ENDED = "ended"
_WATCH = f"""
while IFS= read -r line; do last=$line; done
[ "$last" = {_ENDED} ] && exit
[ -t 2 ] && printf '\\033[?25h' >&2  # a live table hides the cursor
printf '%s%s\\n' "drqn-dist: error: the run's process ended abruptly: its Ray died, or it was killed, perhaps because" \
" memory ran out; $last" >&2
"""


class LastWord:
    """The run's end of the pipe; a context manager. Used from one thread."""

    def __init__(self) -> None:
        self.safe = "nothing was saved"
        """What is safe, and how to go on."""
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._tell(self.safe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._tell(_ENDED)
        self._watcher.communicate()

    def saved(self, folder: Path, updates: int) -> None:
        """Notes that a checkpoint of so many updates is in the run's folder."""
        self.safe = (
            f"the newest checkpoint, of update {updates:,}, is safe in {folder / 'checkpoints'}; go on with "
            f"drqn-dist train --resume {folder}"
        )
        self._tell(self.safe)

    def _tell(self, word: str) -> None:
        assert self._watcher.stdin is not None
        with contextlib.suppress(OSError):  # the shell is gone: the run goes on without it
            self._watcher.stdin.write(os.fsencode(word + "\n"))
            self._watcher.stdin.flush()
