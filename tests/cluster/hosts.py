"""Hosts on this machine: network namespaces with addresses, processes, home, /tmp and sshd of their own, on one bridge.

What they share is the disk outside of those folders, the clock and the cores. Of this project they see nothing but what
is sent to them: its packages are hidden there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tests.runs import until

ROOT = Path(__file__).parents[2]
SSHD = "/usr/sbin/sshd"
NETWORK = "10.77.213"
"""/24 of the hosts; this machine is .1 in it."""

_INSIDE = """
set -e
mount --make-rprivate /
{interpreter}
mount --rbind {home} /root
for folder in {own}; do mount -t tmpfs tmpfs $folder; done
mkdir -m 755 /run/sshd
mkdir {runs}
mount --bind {disk} {runs}
for package in actors drqn_dist learner replay_server; do mount -t tmpfs tmpfs {root}/$package; done
hostname {name}
exec {sshd} -D -e -f {folder}/sshd_config
"""
_OWN = ("/tmp", "/run", "/mnt", "/dev/shm")
"""Folders that each host has for itself, beside /root."""
_SSHD = """
ListenAddress {address}
HostKey {key}
AuthorizedKeysFile {public}
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""
RUNS = "/mnt/drqn-runs"
_LISTEN, _LOOPBACK = "0A", "0100007F"
"""A connection's state and 127.0.0.1, as the kernel writes them."""


def why_not() -> str | None:
    """What this machine lacks, if anything."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    for program, package in (
        ("ip", "iproute2"),
        (SSHD, "openssh-server"),
        ("ssh", "openssh-client"),
        ("rsync", "rsync"),
    ):
        if shutil.which(program) is None:
            return f"needs Debian's package {package}: {program} is missing"
    hidden = [folder for folder in ("/root", *_OWN) if ROOT.is_relative_to(folder)]
    if hidden:
        return f"the hosts have a {hidden[0]} of their own, and would not see {ROOT}: clone it elsewhere"
    made = subprocess.run(["ip", "netns", "add", "drqn-probe"], capture_output=True, text=True)
    if made.returncode:
        return f"cannot make network namespaces here: {made.stderr.strip()}"
    _ip("netns", "del", "drqn-probe")
    return None


class Host:
    """One of them; runs until `close`."""

    def __init__(self, number: int, folder: Path, bridge: str, public_key: Path) -> None:
        self.address = f"{NETWORK}.{number}"
        self._name, self._link = f"drqn-host-{number}", f"drqn-veth-{number}"
        self.home, self.disk = folder / "home", folder / "disk"
        for part in (self.home, self.disk):
            part.mkdir(parents=True)
        key = folder / "host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        (folder / "sshd_config").write_text(_SSHD.format(address=self.address, key=key, public=public_key))
        _ip("netns", "add", self._name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._name)
        _ip("link", "set", self._link, "master", bridge, "up")
        _ip("-n", self._name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self._name, "link", "set", device, "up")
        # Nobody forwards what goes there, but Ray takes its own address from where it would go out.
        _ip("-n", self._name, "route", "add", "default", "via", f"{NETWORK}.1")
        # The interpreter may lie in the home that is about to be hidden.
        base = Path(sys.base_prefix)
        inside = self.home / base.relative_to("/root") if base.is_relative_to("/root") else None
        interpreter = f"mkdir -p {inside}; mount --bind {base} {inside}" if inside else ""
        script = _INSIDE.format(
            interpreter=interpreter,
            own=" ".join(_OWN),
            home=self.home,
            runs=RUNS,
            disk=self.disk,
            root=ROOT,
            name=self._name,
            sshd=SSHD,
            folder=folder,
        )
        apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts"]
        with (folder / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self._name, *apart, "bash", "-c", script], stdout=log, stderr=subprocess.STDOUT
            )
        listening = b"Server listening"
        log_path = folder / "sshd.log"
        try:
            until(lambda: listening in log_path.read_bytes() or self._process.poll() is not None, "sshd", 30)
            assert self._process.poll() is None, log_path.read_text()
        except BaseException:
            self.close()
            raise

    def processes(self) -> list[str]:
        """First words of the command lines of all that runs there."""
        titles = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.Error):
                titles += process.cmdline()[:1]
        return titles

    def ports(self) -> set[int]:
        """TCP ports at which something listens that can be reached from outside."""
        tables = _ip("netns", "exec", self._name, "cat", "/proc/net/tcp", "/proc/net/tcp6")
        rows = [line.split() for line in tables.splitlines()]
        places = [row[1].split(":") for row in rows if row[3] == _LISTEN]
        return {int(port, 16) for address, port in places if address != _LOOPBACK}

    def received_bytes(self) -> int:
        """Over the network so far."""
        return int(Path(f"/sys/class/net/{self._link}/statistics/tx_bytes").read_text())  # this machine's end sends

    def cut_off(self) -> None:
        """Takes its cable out."""
        _ip("link", "set", self._link, "down")

    def reconnect(self) -> None:
        _ip("link", "set", self._link, "up")

    def close(self) -> None:
        """With all its processes: the first one of its process namespace takes the others along."""
        for process in psutil.Process(self._process.pid).children():
            with suppress(psutil.Error):
                process.kill()
        self._process.kill()
        self._process.wait(30)


class Network:
    """A bridge, and the hosts on it."""

    def __init__(self, folder: Path, public_key: Path) -> None:
        self._folder, self._public_key, self._bridge = folder, public_key, "drqn-bridge"
        self.hosts: list[Host] = []
        _clear()  # after a test that was killed
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("address", "add", f"{NETWORK}.1/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    @property
    def next_address(self) -> str:
        """Of the host that `add` would make."""
        return f"{NETWORK}.{10 + len(self.hosts)}"

    def add(self) -> Host:
        number = 10 + len(self.hosts)
        host = Host(number, self._folder / f"host-{number}", self._bridge, self._public_key)
        self.hosts.append(host)
        return host

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        _clear()


def left_behind() -> list[str]:
    """Namespaces and links of hosts that are there now."""
    return [*_namespaces(), *_links()]


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith("drqn-host-")]


def _links() -> list[str]:
    return [path.name for path in Path("/sys/class/net").glob("drqn-*")]


def _clear() -> None:
    for namespace in _namespaces():
        _ip("netns", "del", namespace)
    for link in _links():  # a namespace that goes takes its end of a link along, but not at once
        with suppress(AssertionError):
            _ip("link", "del", link)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
