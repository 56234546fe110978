"""`ray up deploy/ray/local.yaml` for real, on hosts in network namespaces: `make cluster-test`.

Trains Pong from a job, cuts a worker off from the network in the middle and brings it back, adds a worker that has
nothing but an interpreter and installs itself, and takes everything down again, by the commands of deploy/README.md.
And counts the bytes of weights that reach each host.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.arguments import parse_train
from drqn_dist.envs.make import env_spec
from drqn_dist.network.q_network import QNetwork
from tests.cluster.hosts import ROOT, RUNS, Host, Network, left_behind, why_not
from tests.runs import tells_metrics, until

BIN = Path(sys.executable).parent
ROLES = 3
"""Learner, replay, evaluator."""
CUT_S = 300.0
"""Ray takes half a minute to give a silent node up, and about as long to take it back."""

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.environ.get("DRQN_CLUSTER_TEST") != "1", reason="takes minutes and root: make cluster-test"),
]


class Laptop:
    """From where the cluster is started: a home with an ssh key and the token, and a copy of the cluster file."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "laptop"
        (self.home / ".ssh").mkdir(parents=True)
        self.key = self.home / ".ssh" / "drqn_cluster"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.file = self.home / "cluster.yaml"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "HOME": str(self.home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        (self.home / ".ray").mkdir()
        token = self.home / ".ray" / "auth_token"
        token.touch(0o600)
        token.write_text(os.urandom(32).hex())
        self._left: list[subprocess.Popen[bytes]] = []

    def write(self, head: Host, workers: list[str], head_cpus: int = ROLES + 1, worker_cpus: int = 1) -> None:
        """deploy/ray/local.yaml with these addresses. One CPU for each role that is to run on a host, as they share
        the cores of one machine.

        Args:
            workers: addresses, also of those that are not there yet.
        """
        text = (ROOT / "deploy" / "ray" / "local.yaml").read_text()
        for old, new in (
            ("head_ip: 192.0.2.10", f"head_ip: {head.address}"),
            ("worker_ips: [192.0.2.11, 192.0.2.12]", f"worker_ips: [{', '.join(workers)}]"),
            ("ssh_user: drqn", "ssh_user: root"),
            ("~/.ssh/drqn_cluster", str(self.key)),
            ("- bash ~/drqn-dist", "- test -x ~/drqn-venv/bin/ray || bash ~/drqn-dist"),
            ("ray start --head", f"ray start --head --num-cpus={head_cpus}"),
            (
                'ray start --address="$RAY_HEAD_IP:6379"',
                f'ray start --num-cpus={worker_cpus} --address="$RAY_HEAD_IP:6379"',
            ),
        ):
            assert old in text, f"local.yaml no longer says {old}"
            text = text.replace(old, new)
        self.file.write_text(text)

    def run(self, *command: str, timeout: float = 300) -> str:
        """A command in the repository's root.

        Raises:
            AssertionError: it failed; with its output.
        """
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
        return done.stdout

    def succeeds(self, *command: str) -> bool:
        try:
            self.run(*command)
        except AssertionError:
            return False
        return True

    def start(self) -> None:
        """`ray up`, and the way to its dashboard."""
        self.run("ray", "up", "--yes", str(self.file))
        self.leave_open("ray", "dashboard", str(self.file))
        until(lambda: self.succeeds("ray", "job", "list"), "the dashboard to answer", 120)

    def leave_open(self, *command: str) -> None:
        with (self.home / "left-open.log").open("ab") as log:
            self._left.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def close(self) -> None:
        for process in self._left:
            os.killpg(process.pid, 15)
            process.wait(30)


@pytest.fixture
def place() -> Iterator[tuple[Laptop, Network]]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    before = launcher_files()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="drqn-cluster-", dir="/var/tmp"))  # the hosts have a /tmp of their own
        stack.callback(shutil.rmtree, folder)
        stack.callback(lambda: [_remove(made) for made in launcher_files() - before])
        laptop = Laptop(folder)
        network = stack.enter_context(closing(Network(folder, laptop.key.with_suffix(".pub"))))
        stack.enter_context(closing(laptop))
        yield laptop, network
    assert not left_behind()


def _remove(made: Path) -> None:
    if made.is_dir():
        shutil.rmtree(made)
    else:
        made.unlink()


@pytest.fixture
def downloads() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def launcher_files() -> set[Path]:
    """What `ray up` keeps on the machine that it is called on: ssh connections, and which hosts it has started."""
    return {found for kind in ("ray_ssh_*", "ray-config-*", "ray/cluster-*") for found in Path("/tmp").glob(kind)}


def bare(host: Host, wheels: Path) -> Host:
    """A host with an interpreter and nothing else; it has no way out, so that pip finds its packages in a folder."""
    settings = host.home / ".config" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[global]\nno-index = true\nfind-links = {wheels}\n")
    (host.home / ".profile").write_text(f'PATH="{sys.base_prefix}/bin:$HOME/.local/bin:$PATH"\n')
    (host.home / ".bashrc").touch()
    return host


def fetch(wheels: Path) -> None:
    """The packages that install.sh asks for, at the versions of constraints.txt."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(wheels)]
    build_system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pinned = ["--constraint", str(ROOT / "constraints.txt"), f"{ROOT}[cluster]"]
    for wanted in (build_system, pinned):
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def installed(host: Host) -> Host:
    """Gives a host the packages of this virtual environment, which saves minutes."""
    programs = host.home / "drqn-venv" / "bin"
    programs.mkdir(parents=True)
    for program in BIN.iterdir():
        (programs / program.name).symlink_to(program)
    # As install.sh and Debian's files for a new user have it.
    links = host.home / ".local" / "bin"
    links.mkdir(parents=True)
    (links / "ray").symlink_to(programs / "ray")
    (host.home / ".profile").write_text('PATH="$HOME/.local/bin:$PATH"\n')
    (host.home / ".bashrc").touch()
    return host


def actors(host: Host) -> int:
    return sum(title.startswith("ray::ActorRole") for title in host.processes())


def metrics(head: Host) -> dict[str, Any]:
    """The latest of each."""
    found = list(head.disk.glob("*/metrics.jsonl"))
    lines = found[0].read_text().split("\n")[:-1] if found else []  # the last one may be half written
    merged: dict[str, Any] = {"agent_steps": 0, "time/updates": 0, "actors/policy_lag_updates": 0}
    for line in lines:
        merged |= json.loads(line)
    return merged


def test_pong_trains_on_hosts_that_come_and_go(place: tuple[Laptop, Network], downloads: Executor) -> None:
    laptop, network = place
    wheels = laptop.home / "wheels"
    fetching = downloads.submit(fetch, wheels)
    head, steady, cut = (installed(network.add()) for _ in range(3))
    laptop.write(head, [steady.address, cut.address, network.next_address])
    laptop.start()

    def goes_on() -> None:
        before = metrics(head)
        until(
            lambda: (
                metrics(head)["agent_steps"] > before["agent_steps"] + 1_000
                and metrics(head)["time/updates"] > before["time/updates"]
            ),
            "steps and updates to grow",
            CUT_S,
        )

    submit = ["ray", "job", "submit", "--working-dir", ".", "--submission-id", "pong-0"]
    train = ["drqn-dist", "train", "--preset", "pong-cpu", "--address", "auto", "--actors", "4", "--run-dir", RUNS]
    small = [
        "--actor.envs-per-actor",
        "4",
        "--eval.period-updates",
        "None",
        "--eval.episodes",
        "1",
        "--minutes",
        "None",
    ]
    laptop.run(*submit, "--no-wait", "--", *train, *small)
    until(lambda: actors(head) + actors(steady) + actors(cut) == 3, "an actor on every host", CUT_S)
    goes_on()
    for host in (head, steady):
        assert {22, 8076} < host.ports(), "sshd, and Ray's objects"
        assert [port for port in host.ports() if tells_metrics(host.address, port)] == []

    cut.cut_off()
    fetching.result()
    added = bare(network.add(), wheels)  # installs itself meanwhile
    log = ["ray", "job", "logs", "pong-0"]
    until(lambda: "starting it again" in laptop.run(*log), "the loss to be noticed", CUT_S)
    goes_on()
    cut.reconnect()

    until(lambda: actors(cut) == 1, "the actor on the host that is back", CUT_S)
    until(lambda: actors(added) == 1, "an actor on a new host that had nothing", CUT_S)
    assert list(added.home.glob("drqn-venv/lib/python*/site-packages/ray/__init__.py")), "it runs what it installed"
    goes_on()

    laptop.run("ray", "job", "stop", "pong-0")

    def stopped_by() -> list[str]:
        return [json.loads(path.read_text())["stopped_by"] for path in head.disk.glob("*/summary.json")]

    until(lambda: stopped_by() == ["signal"], "the summary", 180)
    assert list(head.disk.glob("*/checkpoints/*"))
    laptop.run("ray", "down", "--yes", str(laptop.file))
    until(lambda: not any("raylet" in title for host in network.hosts for title in host.processes()), "Ray to end")


def test_one_copy_of_the_weights_crosses_the_network_to_each_host(place: tuple[Laptop, Network]) -> None:
    """32 actors on 4 hosts take over nearly every version of a network with a GRU of 512."""
    laptop, network = place
    period, per_host, few, more = 40, 8, 3, 10
    head, *workers = (installed(network.add()) for _ in range(5))
    laptop.write(head, [host.address for host in workers], head_cpus=ROLES, worker_cpus=per_host)
    laptop.start()
    settings = {
        "actors": 4 * per_host,
        "actor.envs-per-actor": 2,
        "actor.weight-pull-period-steps": 4,
        "network.core": "gru",
        "network.core-units": 512,
        "network.torso-units": 512,
        "learner.publish-period-updates": period,
        # Small updates, and few: they share two cores with 32 actors, who are to see each version.
        "learner.batch-windows": 4,
        "learner.unroll-steps": 8,
        "replay.samples-per-insert": 1,
        "replay.min-steps": 2_000,
        "eval.period-updates": None,
        "minutes": None,
        "total-steps": 10**9,
        "log-period-s": 1,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    config = parse_train(["--preset", "gridworld", *flags], "drqn-dist train").config
    train = ["drqn-dist", "train", "--preset", "gridworld", "--address", "auto", "--run-dir", RUNS, *flags]
    submit = ["ray", "job", "submit", "--working-dir", ".", "--submission-id", "weights", "--no-wait", "--", *train]
    laptop.run(*submit)
    until(lambda: all(actors(host) == per_host for host in workers), "the actors to start", 400)
    until(lambda: metrics(head)["time/updates"] > few * period, "the first versions", CUT_S)

    before, received = metrics(head), [host.received_bytes() for host in workers]
    until(lambda: metrics(head)["time/updates"] > before["time/updates"] + more * period, "more", CUT_S)
    after, received_then = metrics(head), [host.received_bytes() for host in workers]
    versions = (after["time/updates"] - before["time/updates"]) / period
    size = QNetwork(config.network, env_spec(config.env), config.env.stack_frames).to_vector().nbytes
    copies = [(now - then) / versions / size for then, now in zip(received, received_then, strict=True)]
    lag = after["actors/policy_lag_updates"]
    print(
        f"\n{versions:.0f} versions of {size:,} bytes to {len(workers)} hosts of {per_host} actors: "
        f"{', '.join(f'{count:.2f}' for count in copies)} copies each, policy lag {lag:.0f} updates"
    )
    # Who took over every other version, on average, would with a copy for each actor have received four per host.
    assert lag < 2 * period
    assert max(copies) < 1.5
    laptop.run("ray", "down", "--yes", str(laptop.file))
