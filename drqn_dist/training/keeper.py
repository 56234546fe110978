"""Keeps a run going whose process ends abruptly: a process in front of it that starts it anew from its checkpoint.

Where Ray's own processes die, its C++ code may end the process that uses it at once: no exception, no `finally`. The
same happens to a process that is killed because memory runs out. So `drqn-dist train` in Ray mode is two processes::

    keeper ── lifeline ──▶ run      closed: the keeper is gone, and the run saves and stops
           ◀── word ─────           what is safe by now

The keeper only waits. Signals that it gets it hands on.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from drqn_dist.distributed.role import decide
from drqn_dist.errors import ConfigError, RayDiedError

_ENVIRONMENT = "DRQN_DIST_KEEPER"
"""Of a run that is kept: descriptors of its ends of lifeline and word, and seconds that it ran in earlier processes."""
_PR_SET_CHILD_SUBREAPER = 36
ORPHANS_S = 5.0
"""What a dead run leaves behind (Ray's processes) has so long to end by itself."""


class Word:
    """The run's side: says what is safe. Used from one thread."""

    def __init__(self) -> None:
        self.safe = "nothing was saved"
        """What is safe, and how to go on."""
        self.ran_s = 0.0
        """Seconds of this run in earlier processes."""
        self._said: dict[str, str | int] = {}
        self._file: int | None = None
        described = os.environ.pop(_ENVIRONMENT, None)
        if described is not None:
            lifeline, self._file, ran_s = json.loads(described)
            self.ran_s = float(ran_s)
            os.set_inheritable(lifeline, False)
            os.set_inheritable(self._file, False)
            threading.Thread(target=_stop_at_end_of, args=(lifeline,), name="lifeline", daemon=True).start()

    @property
    def kept(self) -> bool:
        """Whether somebody listens who would start the run again."""
        return self._file is not None

    def saved(self, folder: Path, updates: int) -> None:
        """Notes that a checkpoint of so many updates is in the run's folder."""
        self.safe = (
            f"the newest checkpoint, of update {updates:,}, is safe in {folder / 'checkpoints'}; go on with "
            f"drqn-dist train --resume {folder}"
        )
        self._said = {"folder": str(folder.resolve()), "updates": updates, "safe": self.safe}
        self._say()

    def ends(self) -> None:
        """Notes that the run ends by itself, in order or with an error that it tells; Ray's C++ ends a process with
        the same exit code, and without a word."""
        self._said |= {"ends": "by itself"}
        self._say()

    def _say(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # the keeper is gone, and the lifeline tells
                os.write(self._file, json.dumps(self._said).encode() + b"\n")


def _stop_at_end_of(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def kept() -> bool:
    """Whether a keeper stands in front of this process."""
    return _ENVIRONMENT in os.environ


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    lifeline: int
    word: int

    def wait(self) -> dict[str, str]:
        """Waits for its end; what it said last."""
        last = b""
        with open(self.word, "rb") as said:
            for line in said:
                last = line
        self.process.wait()
        os.close(self.lifeline)
        return dict(json.loads(last)) if last.endswith(b"\n") else {}


def keep(arguments: Sequence[str]) -> int:
    """Runs `drqn-dist train ARGUMENTS`, and goes on with it where its process ends abruptly or its Ray dies.

    Returns:
        The exit code for this process.
    """
    foreign = _descendants()
    _adopt_orphans()
    started, failed_at, command = time.monotonic(), list[float](), list(arguments)
    word: dict[str, str] = {}
    with _handing_on() as signals:
        while True:
            child = _start(command, time.monotonic() - started)
            signals.to(child.process)
            said = child.wait()
            code = child.process.returncode
            again = bool(failed_at) and code == ConfigError.exit_code  # a machine that has not recovered yet
            silent = code == 1 and bool(said) and "ends" not in said
            if code >= 0 and code != RayDiedError.exit_code and not (again or silent):
                return code
            word = said if "folder" in said else word
            _end_orphans(foreign)
            ended = f"its process ended abruptly ({_signal_name(-code)})" if code < 0 else "its Ray died"
            cause = "it could not start" if again else f"{ended}, perhaps because memory ran out"
            if signals.seen or not word:
                return _give_up(f"{cause}; {word.get('safe', 'nothing was saved')}")
            failed_at.append(time.monotonic())
            decision = decide("the run", failed_at, failed_at[-1], cause)
            if decision.action == "stop":
                return _give_up(f"{decision.reason}; {word['safe']}")
            _say(f"drqn-dist: {decision.reason}; it goes on from update {int(word['updates']):,}")
            if signals.wait(decision.delay_s):
                return _give_up(f"{cause}; {word['safe']}")
            command = ["--resume", word["folder"]]


def _start(arguments: Sequence[str], ran_s: float) -> _Child:
    lifeline_read, lifeline_write = os.pipe()
    word_read, word_write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "drqn_dist.cli", "train", *arguments],
        env=os.environ | {_ENVIRONMENT: json.dumps([lifeline_read, word_write, ran_s])},
        pass_fds=(lifeline_read, word_write),
    )
    os.close(lifeline_read)
    os.close(word_write)
    return _Child(process, lifeline_write, word_read)


class _Signals:
    def __init__(self) -> None:
        self.seen = False
        self._process: subprocess.Popen[bytes] | None = None
        self._told = threading.Event()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        self._told.set()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def to(self, process: subprocess.Popen[bytes]) -> None:
        """From now on signals go there; one that came before as well."""
        self._process = process
        if self.seen:
            process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> bool:
        """Whether a signal came within this time."""
        return self._told.wait(seconds)


@contextlib.contextmanager
def _handing_on() -> Iterator[_Signals]:
    signals = _Signals()
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signals) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _give_up(why: str) -> int:
    cursor = "\033[?25h" if sys.stderr.isatty() else ""  # a live table hides it
    _say(f"{cursor}drqn-dist: error: the run has ended: {why}")
    return 1


def _say(words: str) -> None:
    with contextlib.suppress(OSError):  # whoever read them is gone, and the run is to go on
        print(words, file=sys.stderr, flush=True)


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _adopt_orphans() -> None:
    """What a run that ends abruptly had started becomes a child of this process; on Linux alone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants() -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def _end_orphans(foreign: list[psutil.Process]) -> None:
    """Ends what a dead run left; `foreign` processes were there before it."""
    orphans = [process for process in _descendants() if process not in foreign]
    _, alive = psutil.wait_procs(orphans, timeout=ORPHANS_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=ORPHANS_S)
