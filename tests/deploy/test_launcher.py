"""The files for `ray up`: Ray accepts them, and they keep strangers out."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config  # what `ray up` itself calls; no public name

from drqn_dist.distributed.local_ray import OWN_RAY
from tests.deploy.files import CLOUDS, LAUNCHER, ROOT, RUNS, launcher, launcher_commands, packages

WORLD = ("0.0.0.0", "::/0", "[::]")


def _starts(name: str) -> list[tuple[str, str]]:
    """("head" or "worker", command) of each command that starts Ray."""
    config = launcher(name)
    return [
        (role, command)
        for role in ("head", "worker")
        for command in config[f"{role}_start_ray_commands"]
        if "ray start" in command
    ]


def _exported(command: str) -> list[str]:
    return shlex.split(command.rpartition("export")[2].replace(";", " "))


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(launcher(name)))


@pytest.mark.parametrize("name", LAUNCHER)
def test_head_and_workers_start_with_the_token_and_the_dashboard_stays_on_the_loopback(name: str) -> None:
    starts = _starts(name)
    assert [role for role, _ in starts] == ["head", "worker"]
    for role, command in starts:
        environment, start = command.split("ray start")
        assert "RAY_AUTH_MODE=token" in _exported(environment)
        hosts = [word for word in shlex.split(start) if word.startswith("--dashboard-host")]
        assert hosts == (["--dashboard-host=127.0.0.1"] if role == "head" else [])
        assert start.count("--head") == (role == "head")


@pytest.mark.parametrize("name", LAUNCHER)
def test_processes_get_what_a_local_run_gives_them(name: str) -> None:
    for _, command in _starts(name):
        given = dict(word.split("=", 1) for word in _exported(command.split("ray start")[0]) if "=" in word)
        assert OWN_RAY.items() <= given.items()


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_token_reaches_every_machine_where_ray_looks_for_it(name: str) -> None:
    assert launcher(name)["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", LAUNCHER)
def test_everything_that_an_installation_needs_travels_and_nothing_else(name: str) -> None:
    mounts = launcher(name)["file_mounts"]
    mounts.pop("~/.ray/auth_token")
    files = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    expected = {f"~/drqn-dist/{path}": path for path in packages() | files}
    assert mounts == expected | {"~/drqn-dist/install.sh": "deploy/ray/install.sh"}
    assert all((ROOT / path).exists() for path in mounts.values())


@pytest.mark.parametrize("name", LAUNCHER)
def test_packages_come_from_the_pinned_installation_alone(name: str) -> None:
    extra = "cluster" if name == "local" else name
    assert f"bash ~/drqn-dist/install.sh {extra}" in launcher(name)["setup_commands"]
    assert not [command for command in launcher_commands(name) if "pip install" in command]
    script = (ROOT / "deploy/ray/install.sh").read_text(encoding="utf-8")
    assert '--constraint "$project/constraints.txt"' in script
    assert script.count('pip" install') == 1  # all others go through it


@pytest.mark.parametrize("name", LAUNCHER)
def test_nothing_is_open_to_the_world(name: str) -> None:
    text = yaml.safe_dump(prepare_config(launcher(name)))  # with what the launcher adds
    assert not [address for address in WORLD if address in text]


def test_on_aws_the_launcher_makes_no_security_group_of_its_own() -> None:
    config = launcher("aws")  # its own would let in the world by ssh, also where it is told of further rules
    assert "security_group" not in config["provider"]
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == ["sg-EDIT"]
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}


def test_on_google_cloud_the_launcher_picks_no_network_of_its_own() -> None:
    for node in launcher("gcp")["available_node_types"].values():
        (interface,) = node["node_config"]["networkInterfaces"]
        assert interface["subnetwork"].endswith("/subnetworks/drqn-dist")


@pytest.mark.parametrize("name", CLOUDS)
def test_a_gpu_head_stays_and_spot_workers_come_and_go(name: str) -> None:
    config = launcher(name)
    head, worker = (config["available_node_types"][kind] for kind in (config["head_node_type"], "worker"))
    assert set(config["available_node_types"]) == {"head", "worker"}
    assert head["max_workers"] == 0
    assert worker["min_workers"] == 0 < worker["max_workers"] <= config["max_workers"]
    assert config["idle_timeout_minutes"] > 0
    spot = {"aws": {"InstanceMarketOptions": {"MarketType": "spot"}}, "gcp": {"provisioningModel": "SPOT"}}[name]
    assert _within(spot, worker["node_config"] | worker["node_config"].get("scheduling", {}))
    assert not _within(spot, head["node_config"] | head["node_config"].get("scheduling", {}))
    if name == "gcp":  # AWS's launcher finds them out
        assert head["resources"]["GPU"] == 1
        assert "GPU" not in worker["resources"]
    else:
        assert head["node_config"]["InstanceType"].startswith("g")


def test_runs_are_kept_on_storage_that_outlives_the_head() -> None:
    assert any(f"mkdir -p {RUNS}" in command for command in launcher("local")["head_setup_commands"])
    aws = " ".join(launcher("aws")["head_setup_commands"])
    assert "mount -t nfs4" in aws
    assert f"efs.us-west-2.amazonaws.com:/ {RUNS}" in aws
    disks = launcher("gcp")["available_node_types"]["head"]["node_config"]["disks"]
    kept = [disk for disk in disks if not disk["autoDelete"]]
    assert [disk["deviceName"] for disk in kept] == ["drqn-runs"]
    gcp = " ".join(launcher("gcp")["head_setup_commands"])
    assert f"mount /dev/disk/by-id/google-drqn-runs {RUNS}" in gcp
    for name in CLOUDS:  # a head that comes back finds it mounted, or mounts it
        assert f"mountpoint -q {RUNS} || sudo mount" in " ".join(launcher(name)["head_setup_commands"])


def _within(small: dict[str, Any], large: dict[str, Any]) -> bool:
    return all(large.get(key) == value for key, value in small.items())
