"""The Ray that a run uses: its own on this machine, one that is there already, or a cluster's."""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

import psutil
import ray

from drqn_dist.errors import ConfigError, RayDiedError

CONNECT_S = 10.0
"""How long a cluster's head gets to take a connection."""
EXIT_S = 10.0
"""How long Ray's processes get to end by themselves."""
STOPPED_S = 2.0
"""A process of the run that is seen to be stopped for so long is ended."""
LOOK_S = 1.0
"""So often it is looked for."""
CORE = ("gcs_server", "raylet")
"""Names of the processes of Ray that nothing replaces."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1024**3), "MALLOC_TRIM_THRESHOLD_": str(1024**3)}
"""Environment of every process: glibc otherwise returns every array of a training step to the kernel and faults it in
again, 5 to 10 % of the learner's time. On a cluster `deploy/` sets it."""
INLINE = {"RAY_max_direct_call_object_size": str(256 * 1024)}
"""Environment of every process: up to so many bytes an answer travels with the reply, not through the object store. A
shard's part of a draw differs from call to call, around Ray's own 100 kB where frames are small, and what goes through
the store costs its process more (`docs/scaling.md`). On a cluster `deploy/` sets it."""
NO_METRICS = {"RAY_enable_metrics_collection": "0", "AUTOSCALER_METRIC_PORT": "-1", "DASHBOARD_METRIC_PORT": "-1"}
"""Environment of an own Ray: with the packages of `ray[default]` it would tell its metrics to everyone, on all
addresses and without a token. It has no other way to turn these two ports off than one that does not exist."""
OWN_RAY = ALLOCATOR | INLINE | NO_METRICS
NO_TASK_EVENTS = {"RAY_task_events_report_interval_ms": "0"}
"""Of an own Ray alone, which has no dashboard to show them: its GCS would keep the story of the last 100,000 calls, and
grow by 10 MB a minute until it has so many."""


class LocalRay:
    """A Ray of our own on this machine, or a connection to a cluster, until `close`.

    An own Ray listens on this machine's addresses, but answers no one without a token made for this run. It keeps its
    files in a folder of its own that is removed at the end, and starts no dashboard.
    """

    def __init__(self, address: str | None, cpus: int, store_bytes: int) -> None:
        """
        Args:
            address: of a cluster to join; None starts a Ray of our own, with the rest.
            cpus: logical ones, one for each process to come.
            store_bytes: of shared memory, taken as it is needed.

        Raises:
            ConfigError: Ray could not be started or the cluster not be joined; nothing is left behind.
        """
        self._folder: str | None = None
        self._core: list[psutil.Process] = []
        """Without them an own Ray cannot go on."""
        self._names: dict[int, str] = {}
        self._stopped_since: dict[int, float] = {}
        self._closing = threading.Event()
        self._watch: threading.Thread | None = None
        """Ends what is stopped: asking Ray for anything may wait for the very process that must be ended."""
        self._ended: SimpleQueue[str] = SimpleQueue()
        """What it has ended, a sentence each."""
        self._environment: dict[str, str | None] = {}
        if ray.is_initialized():
            self._owned = False
            return
        self._owned = True
        self._set("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # what roles say when they end with us is not worth a traceback
        if address is not None:
            _require_listener(address)
            self._set("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "token"))
            reread_authentication()
            try:
                self._init(address=address)
            except (OSError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"cannot join the Ray cluster at {address}: {error}; check --address and the cluster's token"
                ) from error
            return
        self._set("RAY_AUTH_MODE", "token")
        self._set("RAY_AUTH_TOKEN", secrets.token_hex(32))
        self._set("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        for name, value in (OWN_RAY | NO_TASK_EVENTS).items():
            self._set(name, value)
        reread_authentication()
        _remove_leftovers(Path(short_folder()))
        self._folder = tempfile.mkdtemp(prefix="drqn-ray-", dir=short_folder())
        self._lock = locked(Path(self._folder))
        try:
            self._init(
                address="local",  # whatever RAY_ADDRESS says
                num_cpus=cpus,
                include_dashboard=False,
                _temp_dir=f"{self._folder}/r",  # Ray opens it to everyone; the folder around it stays this user's own
                object_store_memory=store_bytes,
                log_to_driver=False,
            )
        except Exception as error:  # a node that does not start in time is told by a bare one
            raise ConfigError(f"cannot start a local Ray: {error}; or train with --mode serial") from error
        self._core = [process for process in self._processes() if process.name() in CORE]
        self._names = {process.pid: process.name() for process in self._core}
        self._watch = threading.Thread(target=self._end_stopped, name="watch", daemon=True)
        self._watch.start()

    @property
    def owned(self) -> bool:
        """Whether `close` ends the connection, and with it every process that was started through it."""
        return self._owned

    def check(self) -> list[str]:
        """Looks after an own Ray. Its processes that have been stopped (SIGSTOP, a debugger) are ended by a thread,
        since whoever asks them would wait for ever.

        Returns:
            What was ended since the last time, a sentence each.

        Raises:
            RayDiedError: a process without which an own Ray cannot go on has ended.
        """
        for process in self._core:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            raise RayDiedError(
                f"Ray itself died: its process {self._names[process.pid]} ({process.pid}) ended, killed perhaps "
                "because memory ran out"
            )
        return [self._ended.get() for _ in range(self._ended.qsize())]

    def _end_stopped(self) -> None:
        while not self._closing.wait(LOOK_S):
            now, since = time.monotonic(), {}
            for process in self._processes():
                with contextlib.suppress(psutil.Error, IndexError):
                    if process.status() == psutil.STATUS_STOPPED:
                        since[process.pid] = self._stopped_since.get(process.pid, now)
                        if now - since[process.pid] >= STOPPED_S:
                            name = process.cmdline()[0].split("/")[-1]
                            process.kill()
                            self._ended.put(f"{name} was stopped for {STOPPED_S:.0f} s: ended")
            self._stopped_since = since

    def close(self) -> None:
        if self._owned:
            processes = self._processes()
            started = ray.is_initialized()
            if started:
                ray.shutdown()
            # They write into the folder to their last moment.
            _, alive = psutil.wait_procs(processes, timeout=EXIT_S if started else 0.0)
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(alive, timeout=EXIT_S)
        self._closing.set()  # not before: Ray's end may wait for a process that is stopped
        if self._watch is not None:
            self._watch.join()
            self._watch = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            os.close(self._lock)
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment = {}

    def _processes(self) -> list[psutil.Process]:
        """All that belong to a Ray of our own."""
        found: list[psutil.Process] = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if self._folder is not None and any(self._folder in word for word in child.cmdline()):
                    found += [child, *child.children(recursive=True)]
        return found

    def _init(self, **options: Any) -> None:
        try:
            # Ray takes SIGTERM over; whoever started this run wants it for an orderly end.
            with own_signals():
                ray.init(logging_level=logging.ERROR, namespace="drqn-dist", **options)
        except BaseException:
            self.close()
            raise

    def _set(self, name: str, value: str) -> None:
        self._environment.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def _require_listener(address: str) -> None:
    """Ray itself would try for minutes, without a word.

    Raises:
        ConfigError: nobody listens at this `host:port` or `ray://host:port`.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # auto, or what Ray itself has to make out
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            pass
    except OSError as error:
        raise ConfigError(f"cannot join the Ray cluster at {address}: {error}; check --address") from error


def short_folder() -> str:
    """The folder for temporary files, or /tmp where its name is so long that Ray's sockets could not be named: they lie
    about 80 characters further down, and a socket's path may have 107."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= 20 else "/tmp"


def locked(folder: Path) -> int:
    """Marks the folder as in use for as long as this process lives and the descriptor is open."""
    lock = os.open(folder / "lock.new", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "lock.new").rename(folder / "lock")  # seen only when it is held
    return lock


def _remove_leftovers(parent: Path) -> None:
    """Removes the folders of runs that were killed before they could do so themselves."""
    for lock in parent.glob("drqn-ray-*/lock"):
        with contextlib.suppress(OSError):
            held = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(held)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Puts the handlers of SIGINT and SIGTERM back at the end. A SIGINT is dealt with only then: an exception in the
    midst of Ray's start can bring the process down; the third one is, at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def wait(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 2:  # Ray hangs
            raise KeyboardInterrupt

    if callable(handlers[signal.SIGINT]):
        signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if came:
            signal.raise_signal(signal.SIGINT)


def reread_authentication() -> None:
    """Ray reads RAY_AUTH_* once, when it is imported; this makes it read them again (as its own `ray.init` does)."""
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
