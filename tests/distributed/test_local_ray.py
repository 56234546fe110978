"""What a local Ray leaves behind, and what it clears away. Ray itself: test_cli_train."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
import pytest
import ray

from drqn_dist.distributed import local_ray
from drqn_dist.distributed.local_ray import LocalRay, _remove_leftovers, _require_listener, locked, own_signals
from drqn_dist.errors import ConfigError
from tests.runs import tells_metrics, until


def test_folders_of_killed_runs_are_removed_and_those_in_use_stay(tmp_path: Path) -> None:
    folders = {name: tmp_path / f"drqn-ray-{name}" for name in ("killed", "running", "starting", "other")}
    for folder in folders.values():
        (folder / "session").mkdir(parents=True)
    locks = {name: locked(folders[name]) for name in ("killed", "running")}
    os.close(locks["killed"])  # as the kernel does when a process dies
    folders["other"].rename(tmp_path / "not-ours")
    (tmp_path / "not-ours" / "lock").touch()
    _remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"drqn-ray-running", "drqn-ray-starting", "not-ours"}
    os.close(locks["running"])


def test_what_is_stopped_is_ended_though_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks a stopped GCS for something never comes to look."""
    monkeypatch.setattr(local_ray, "LOOK_S", 0.02)
    monkeypatch.setattr(local_ray, "STOPPED_S", 0.1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mine = LocalRay.__new__(LocalRay)
        mine._closing, mine._ended, mine._stopped_since, mine._core = threading.Event(), SimpleQueue(), {}, []
        monkeypatch.setattr(mine, "_processes", lambda: [psutil.Process(process.pid)])
        watch = threading.Thread(target=mine._end_stopped)
        watch.start()
        try:
            process.send_signal(signal.SIGSTOP)
            assert process.wait(20) == -signal.SIGKILL
            until(lambda: not mine._ended.empty(), "the word of it")
            (told,) = mine.check()
            assert told.endswith(" was stopped for 0 s: ended")
            assert mine.check() == []
        finally:
            process.kill()
            mine._closing.set()
            watch.join()


HALF_STARTED = """
import psutil
from ray._private.node import Node
from drqn_dist.errors import ConfigError
from drqn_dist.distributed.local_ray import LocalRay

def breaks(node):
    print("before:", len(psutil.Process().children(recursive=True)))
    raise OSError("no raylet today")

Node.start_ray_processes = breaks
try:
    LocalRay(None, cpus=1, store_bytes=80 * 1024**2)
except ConfigError as error:
    print(error)
print("after:", len(psutil.Process().children(recursive=True)))
"""


@pytest.mark.ray
def test_a_ray_that_starts_only_in_part_leaves_nothing_behind() -> None:
    folders = set(Path("/tmp").glob("drqn-ray-*"))
    command = [sys.executable, "-c", HALF_STARTED]
    output = subprocess.run(
        command, env={**os.environ, "TMPDIR": "/tmp"}, capture_output=True, text=True, timeout=240, check=True
    ).stdout.splitlines()
    assert int(output[0].removeprefix("before: ")) >= 1
    assert output[1:] == ["cannot start a local Ray: no raylet today; or train with --mode serial", "after: 0"]
    assert set(Path("/tmp").glob("drqn-ray-*")) <= folders


@pytest.mark.ray
def test_answers_of_shards_travel_with_the_reply(local_ray: None) -> None:
    """Whoever owns what went through the object store knows where it lies."""

    def answer(num_bytes: int) -> Any:
        ref = ray.remote(lambda: bytes(num_bytes)).options(num_cpus=0).remote()
        ray.wait([ref])
        return ref

    def places(ref: Any) -> Any:
        return ray.experimental.get_object_locations([ref])[ref]["node_ids"]

    small, large = answer(200_000), answer(1_000_000)
    until(lambda: len(places(large)) == 1, "the owner to hear where the large one lies")
    assert places(small) == []


@pytest.mark.ray
def test_a_ray_of_our_own_tells_nobody_its_metrics(local_ray: None) -> None:
    """With the packages of `ray[default]` it would, at three ports."""
    pytest.importorskip("prometheus_client", reason="without ray[default] there are no metrics to tell")
    addresses = {
        (connection.laddr.ip.replace("0.0.0.0", "127.0.0.1").replace("::", "127.0.0.1"), connection.laddr.port)
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses
    assert [address for address in addresses if tells_metrics(*address)] == []


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "no-such-host.invalid:{}"])
def test_an_address_where_nobody_listens_is_refused_at_once(address: str) -> None:
    with socket.socket() as probe:  # bound, but not listening
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(ConfigError, match=r"cannot join the Ray cluster at .*; check --address"):
            _require_listener(address.format(probe.getsockname()[1]))
        probe.listen()
        if "127" in address:
            _require_listener(address.format(probe.getsockname()[1]))
    _require_listener("auto")


def interrupted_start(seen: list[str]) -> None:
    with own_signals():
        signal.raise_signal(signal.SIGINT)
        seen.append("Ray has started")


def test_a_ctrl_c_in_the_midst_of_rays_start_is_dealt_with_when_it_has_started() -> None:
    seen: list[str] = []

    def interrupt(number: int, frame: object) -> None:
        seen.append("handled")
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_start(seen)
        assert seen == ["Ray has started", "handled"]
        assert signal.getsignal(signal.SIGINT) is interrupt
    finally:
        signal.signal(signal.SIGINT, old)
