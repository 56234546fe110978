"""A run on a cluster whose nodes come and go: raylets on this machine, each with an address of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.runs import until
from tests.test_cli_train import TINY

RAY = str(Path(sys.executable).with_name("ray"))
PROGRAM = str(Path(sys.executable).with_name("drqn-dist"))
ROLES = 3
"""Learner, replay, evaluator."""


class Cluster:
    """Nodes started and killed one by one, with a token that only they and their users know."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_raylet_start_wait_time_s": "120",  # a busy machine takes longer than the usual 30 s
        }
        self.nodes: list[subprocess.Popen[bytes]] = []

    def autoscale(self, cpus: int, nodes: int) -> None:
        """Starts a head whose autoscaler adds up to so many nodes of one CPU: Ray's own provider for tests, which
        starts processes on this machine where others would rent machines."""
        head = "f" * 51 + "0" * 5  # the id by which that provider knows it
        config = {
            "cluster_name": "fake",
            "max_workers": nodes,
            "provider": {
                "type": "external",  # whose defaults are in Ray's wheel; those of its type fake_multinode are not
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "launch_multiple": True,
                "head_node_id": head,
                "gcs_address": self.address,
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": nodes},
            },
            "head_node_type": "ray.head.default",
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.1,
            **{name: {} for name in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")},
            **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
            **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
            "file_mounts_sync_continuously": False,
        }
        file = self._folder / "scaling.json"
        file.write_text(json.dumps(config))
        self.environment |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": head,
            "RAY_NODE_TYPE_NAME": "ray.head.default",
        }
        self.add(cpus, f"--autoscaling-config={file}")

    def add(self, cpus: int, *options: str) -> subprocess.Popen[bytes]:
        """Starts a node and waits until it serves."""
        number = len(self.nodes) + 1
        role = (
            [
                "--head",
                f"--port={self.address.split(':')[1]}",
                "--include-dashboard=false",
                f"--temp-dir={self._folder}",
            ]
            if number == 1
            else [f"--address={self.address}"]
        )
        output = self._folder.parent / f"{self._folder.name}-node-{number}.log"
        with output.open("wb") as log:
            node = subprocess.Popen(
                [
                    RAY,
                    "start",
                    *role,
                    "--block",
                    "--disable-usage-stats",
                    f"--node-ip-address=127.0.0.{number}",
                    f"--num-cpus={cpus}",
                    f"--object-store-memory={128 * 1024**2}",
                    *options,
                ],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.nodes.append(node)
        until(lambda: b"Ray runtime started" in output.read_bytes() or node.poll() is not None, f"node {number}")
        assert node.poll() is None, output.read_text()
        return node

    def actors(self) -> int:
        """Actor processes on all nodes."""
        return sum(title.startswith("ray::ActorRole") for title in self._titles())

    def raylets(self) -> int:
        """Nodes, added ones included."""
        return sum(title.endswith("/raylet") for title in self._titles())

    def kill_replay(self) -> None:
        (replay,) = (process for process in self._processes() if _title(process).startswith("ray::ReplayRole"))
        replay.kill()

    def _titles(self) -> list[str]:
        return [_title(process) for process in self._processes()]

    def _processes(self) -> list[psutil.Process]:
        processes = []
        for node in self.nodes:
            with suppress(psutil.Error):
                processes += psutil.Process(node.pid).children(recursive=True)
        return processes

    def close(self) -> None:
        for node in reversed(self.nodes):
            kill(node)
            Path(f"{self._folder}-node-{self.nodes.index(node) + 1}.log").unlink()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill(node: subprocess.Popen[bytes]) -> None:
    """As when its plug is pulled."""
    with suppress(psutil.Error):
        for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
            with suppress(psutil.Error):
                process.kill()
    node.wait(30)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        words = process.cmdline()
        return words[0] if words else ""
    return ""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background children ignore it
    folder = Path(tempfile.mkdtemp(prefix="drqn-", dir="/tmp"))  # Ray's sockets need a short path
    made = Cluster(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGINT, ours)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_starts_with_what_is_there_grows_and_survives_the_loss_of_a_node_and_of_the_replay(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add(cpus=ROLES + 1)
    lost = cluster.add(cpus=1)
    arguments = ["--address", cluster.address, "--actors", "3", "--run-dir", str(tmp_path), f"--total-steps={10**9}"]
    output = tmp_path / "output.txt"
    with output.open("wb") as log:
        run = subprocess.Popen(
            [PROGRAM, "train", *TINY, *arguments], env=cluster.environment, stdout=log, stderr=subprocess.STDOUT
        )

    def steps() -> int:
        found = list(tmp_path.glob("*/metrics.jsonl"))
        lines = found[0].read_text().split("\n")[:-1] if found else []  # the last one may be half written
        return int(json.loads(lines[-1])["agent_steps"]) if lines else 0

    def goes_on(actors: int, what: str) -> None:
        until(lambda: cluster.actors() == actors or run.poll() is not None, what)
        assert run.poll() is None, output.read_text()
        before = steps()
        until(lambda: steps() > before + 500, f"agent steps to grow with {what}")

    try:
        goes_on(2, "the actors that have a CPU")
        cluster.add(cpus=1)
        goes_on(3, "the third actor on the new node")
        kill(lost)
        until(lambda: "starting it again" in output.read_text(), "the loss to be noticed")
        goes_on(2, "the actors that are left")
        cluster.add(cpus=1)
        goes_on(3, "the lost actor on another node")
        cluster.kill_replay()
        back = "replay is back, and took back"
        until(lambda: back in output.read_text() or run.poll() is not None, "the replay to read its journal")
        assert back in output.read_text()
        goes_on(3, "a replay that is back")
        run.send_signal(signal.SIGINT)
        assert run.wait(120) == 0, output.read_text()
    finally:
        run.kill()
        run.wait(30)
    (summary,) = tmp_path.glob("*/summary.json")
    assert json.loads(summary.read_text())["stopped_by"] == "signal"
    until(lambda: cluster.actors() == 0, "the run's processes to end")


@pytest.mark.ray
@pytest.mark.slow
def test_the_autoscaler_adds_nodes_for_the_actors_that_have_none(cluster: Cluster, tmp_path: Path) -> None:
    cluster.autoscale(ROLES, nodes=3)
    arguments = ["--address", cluster.address, "--actors", "2", "--run-dir", str(tmp_path), f"--total-steps={10**9}"]
    output = tmp_path / "output.txt"
    with output.open("wb") as log:
        run = subprocess.Popen(
            [PROGRAM, "train", *TINY, *arguments], env=cluster.environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        until(lambda: cluster.actors() == 2 or run.poll() is not None, "actors on nodes that were added for them")
        assert run.poll() is None, output.read_text()
        assert cluster.raylets() == 3
        run.send_signal(signal.SIGINT)
        assert run.wait(120) == 0, output.read_text()
    finally:
        run.kill()
        run.wait(30)
    until(lambda: cluster.raylets() == 1, "nodes that nobody needs to be given back", 120)


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_waits_for_room(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add(cpus=ROLES - 1)
    output = tmp_path / "output.txt"
    with output.open("wb") as log:
        run = subprocess.Popen(
            [PROGRAM, "train", *TINY, "--address", cluster.address, "--run-dir", str(tmp_path / "runs")],
            env=cluster.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "waiting up to" in output.read_text() or run.poll() is not None, "the run to wait for room")
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130, output.read_text()
    finally:
        if run.poll() is None:
            run.kill()
    assert "for 3 CPUs for all roles but the actors; the cluster has 2 CPUs" in output.read_text()
    assert "Traceback" not in output.read_text()
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_may_be_driven_from_outside_of_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """`--address ray://…`: the driver is a client, and writes the run folder where it is. `--actors auto` fills what is
    there."""
    port = free_port()
    cluster.add(ROLES + 2, f"--ray-client-server-port={port}")
    bounds = ["--total-steps", "2000", "--run-dir", str(tmp_path / "runs")]
    for _ in range(3):
        done = subprocess.run(
            [PROGRAM, "train", *TINY, *bounds, "--address", f"ray://127.0.0.1:{port}", "--actors", "auto"],
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        if "Initialization failure from server" not in done.stderr:
            break  # Ray gives each client a server at a port of its own choice, which may be taken
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = tmp_path.glob("runs/*/summary.json")
    assert json.loads(summary.read_text())["agent_steps"] >= 2_000
    config = json.loads(summary.with_name("config.json").read_text())["config"]
    assert config["actors"] == 2, "as many as had a CPU beside the other roles"
    until(lambda: cluster.actors() == 0, "the run's processes to end")

    stranger = cluster.environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    refused = subprocess.run(
        [PROGRAM, "train", *TINY, *bounds, "--address", f"ray://127.0.0.1:{port}"],
        env=stranger,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "check --address and the cluster's token" in refused.stderr


_PLACE = """
import json, sys
from contextlib import closing
import ray
from ray.util.placement_group import placement_group_table
from drqn_dist.presets import preset
from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.distributed.placement import Placement
from dataclasses import replace
config = preset("gridworld")
config = replace(config, address=sys.argv[1], replay=replace(config.replay, shards=2), actors=2)
with closing(LocalRay(config.address, cpus=0, store_bytes=0)):
    for _ in range(int(sys.argv[2])):
        Placement(config)
    place = Placement(config)
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    homes = placement_group_table(place._group)["bundles_to_node_id"].values()
    kinds = ["GPU" if nodes[home].get("GPU") else "head" if "node:__internal_head__" in nodes[home] else "other"
             for home in homes]
    print(json.dumps({"gpus": place.gpus, "homes": kinds}))
    place.close()
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("head_cpus", "gpus", "runs", "home"),
    [(ROLES + 4, 1, 0, "GPU"), (ROLES + 1, 0, 0, "head"), (ROLES, 0, 0, "other"), (ROLES + 2, 0, 1, "other")],
)
def test_all_roles_but_the_actors_live_on_the_node_with_the_gpu_or_on_the_head_if_it_has_room(
    head_cpus: int, gpus: int, runs: int, home: str, cluster: Cluster
) -> None:
    cluster.add(head_cpus)
    cluster.add(ROLES + 4, f"--num-gpus={gpus}")  # Ray believes it
    done = subprocess.run(
        [sys.executable, "-c", _PLACE, cluster.address, str(runs)],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Learner, two shards, evaluator.
    assert json.loads(done.stdout.splitlines()[-1]) == {"gpus": gpus, "homes": [home] * 4}
