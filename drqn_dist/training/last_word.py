"""The last word of a run that ends without one.

Where Ray's own processes die, its C++ code may end the process that uses it at once: no exception, no `finally`. The
same happens to a process that is killed because memory runs out. So a small process beside the run holds what there is
to say, and says it when the pipe to it closes before the run has ended. It needs the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENDED = "ended"
ABRUPT = "the run's process ended abruptly: its Ray died, or it was killed, perhaps because memory ran out"


class LastWord:
    """The run's end of the pipe; a context manager. Used from one thread."""

    def __init__(self) -> None:
        self._summary: dict[str, Any] | None = None
        self._path: Path | None = None
        self._safe = "nothing was saved"
        self._watcher = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> LastWord:
        return self

    def __exit__(self, *error: object) -> None:
        self._send(ENDED)
        with contextlib.suppress(OSError):
            assert self._watcher.stdin is not None
            self._watcher.stdin.close()
        self._watcher.wait()

    def saved(self, folder: Path, updates: int, summary: dict[str, Any] | None) -> None:
        """Notes that a checkpoint of so many updates is in the run's folder.

        Args:
            summary: what `summary.json` is to hold if nothing follows; None leaves the one that is there.
        """
        self._path, self._summary = folder / "summary.json", summary
        self._safe = (
            f"the newest checkpoint, of update {updates:,}, is safe in {folder / 'checkpoints'}; go on with "
            f"drqn-dist train --resume {folder}"
        )
        self._send({"path": str(self._path), "summary": summary, "safe": self._safe})

    def say(self) -> str:
        """Writes the summary, and answers what is safe and how to go on."""
        if self._path is not None:
            _write(self._path, self._summary)
        return self._safe

    def _send(self, note: Any) -> None:
        with contextlib.suppress(OSError):  # the other process is gone: the run goes on without it
            assert self._watcher.stdin is not None
            self._watcher.stdin.write(json.dumps(note) + "\n")
            self._watcher.stdin.flush()


def _write(path: Path, summary: dict[str, Any] | None) -> None:
    if summary is None:
        return
    with contextlib.suppress(OSError):  # a full disk, or a folder that is gone: there is still the word
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def main() -> None:
    """The other end: waits until the pipe closes."""
    note: Any = {"path": "", "summary": None, "safe": "nothing was saved"}
    for line in sys.stdin:
        note = json.loads(line)
    if note == ENDED:
        return
    _write(Path(note["path"]), note["summary"])
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live table hides it
    print(f"{show_cursor}drqn-dist: error: {ABRUPT}; {note['safe']}", file=sys.stderr)


if __name__ == "__main__":
    main()
