"""Every command that stands under deploy/ is one that its program understands."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from drqn_dist.arguments import parse, parse_train
from drqn_dist.cli import EvalArgs, PlotArgs
from drqn_dist.experiments.run_folder import create_run
from drqn_dist.presets import preset
from tests.deploy.files import (
    CLOUDS,
    DEPLOY,
    LAUNCHER,
    ROOT,
    RUNS,
    commands,
    kubernetes,
    launcher_commands,
    pinned,
    readme,
    shell_blocks,
)

OURS: dict[str, type[Any]] = {"eval": EvalArgs, "plot": PlotArgs}
FOLDER = re.compile(r"(/mnt/drqn-|)runs/(\$RUN|RUN)")


def _spelled(arguments: list[str]) -> str:
    return " ".join(arguments)


@pytest.mark.parametrize("arguments", commands("drqn-dist"), ids=_spelled)
def test_our_program_understands_the_command(arguments: list[str], tmp_path: Path) -> None:
    run = create_run(dataclasses.replace(preset("pong-cpu"), address="auto", run_dir=str(tmp_path)), ["drqn-dist"])
    command, *rest = [FOLDER.sub(str(run.path), argument) for argument in arguments]
    if command != "train":
        parse(OURS[command], rest, f"drqn-dist {command}")
        return
    args = parse_train(rest, "drqn-dist train")
    config, resumed = args.config, args.resume
    assert config.address == "auto"
    assert config.run_dir == (RUNS if resumed is None else str(tmp_path))
    assert (rest[rest.index("--actors") + 1].isdecimal()) if resumed is None else ("--actors" not in rest)


def test_the_readme_trains_resumes_and_looks() -> None:
    trains = [arguments for arguments in commands("drqn-dist") if arguments[0] == "train"]
    assert {arguments[0] for arguments in commands("drqn-dist")} == {"train", "eval", "plot"}
    assert any("--resume" in arguments for arguments in trains)
    (job,) = (
        arguments for arguments in commands("ray") if arguments[:2] == ["job", "submit"] and "pong-0" in arguments
    )
    assert job[job.index("--") + 1 :] == kubernetes("rayjob")["spec"]["entrypoint"].split()


@pytest.mark.parametrize("arguments", commands("ray"), ids=_spelled)
def test_ray_understands_the_command(arguments: list[str]) -> None:
    group: click.Command = ray_cli
    rest = arguments
    while isinstance(group, click.Group):  # `ray`, `ray job`
        found = group.commands.get(rest[0])
        assert found is not None, f"ray has no command {rest[0]}"
        group, rest = found, rest[1:]
    group.make_context("ray", rest)


@pytest.mark.parametrize("block", shell_blocks(), ids=lambda block: block.splitlines()[0])
def test_the_readmes_shell_can_be_read(block: str) -> None:
    _check_shell(block)


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launchers_shell_can_be_read(name: str) -> None:
    for command in launcher_commands(name):
        _check_shell(command)


def test_the_installation_can_be_read() -> None:
    _check_shell((DEPLOY / "ray" / "install.sh").read_text(encoding="utf-8"))


def _check_shell(text: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, ""), text


@pytest.mark.parametrize("name", CLOUDS)
def test_the_readme_fills_in_all_that_is_to_be_edited(name: str, tmp_path: Path) -> None:
    (block,) = (block for block in shell_blocks() if f"deploy/ray/{name}.yaml > cluster.yaml" in block)
    sed = block[block.index("sed ") :].replace("> cluster.yaml", f"> {tmp_path / 'cluster.yaml'}")
    values = {
        "AWS_REGION": "eu-north-1",
        "REGION": "eu-north-1",
        "ZONE": "eu-north-1b",
        "GROUP": "sg-1",
        "FILES": "fs-2",
        "GPU_IMAGE": "ami-3",
        "CPU_IMAGE": "ami-4",
        "PROJECT": "ours",
    }
    subprocess.run(["bash", "-euc", sed], cwd=ROOT, env={"PATH": os.environ["PATH"], **values}, check=True)
    filled = yaml.safe_load((tmp_path / "cluster.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump(filled)
    validate_config(prepare_config(filled))
    assert "EDIT" not in text
    assert "us-west" not in text
    assert "us-central" not in text
    assert (filled["provider"]["region"], filled["provider"]["availability_zone"]) == ("eu-north-1", "eu-north-1b")


def test_the_readme_fills_in_the_registry() -> None:
    (sed,) = (line for block in shell_blocks() for line in block.splitlines() if "deploy/k8s/rayjob.yaml |" in line)
    command = sed.partition(" | ")[0]
    filled = subprocess.run(
        ["bash", "-euc", command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "REGISTRY": "ours.test/team"},
        capture_output=True,
        text=True,
        check=True,
    )
    images = re.findall(r"image: (\S+)", filled.stdout)
    built = re.findall(r"docker build .*-t \$REGISTRY/(\S+)", readme())
    assert images == [f"ours.test/team/{image}" for image in built]


def test_the_readme_names_files_that_exist_and_the_pinned_ray() -> None:
    named = set(re.findall(r"deploy/[\w./-]*\w", readme()))
    assert named
    assert not [path for path in named if not (ROOT / path).is_file()]
    assert set(re.findall(r"-ray([\d.]+)-", readme())) == {pinned("ray")}


def test_no_firewall_rule_of_the_readme_lets_in_the_world() -> None:
    for text in (path.read_text(encoding="utf-8") for path in DEPLOY.rglob("*") if path.is_file()):
        assert "0.0.0.0" not in text
        assert "::/0" not in text
    rules = [line for block in shell_blocks() for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    opened = [line for line in rules if "authorize-security-group-ingress" in line or "firewall-rules create" in line]
    assert len(opened) == 4
    own = ('--cidr "$(curl -s https://checkip.amazonaws.com)/32"', "--source-group", "--source-ranges=10.77.0.0/24")
    own += ('--source-ranges="$(curl -s https://checkip.amazonaws.com)/32"',)
    assert not [line for line in opened if not any(source in line for source in own)]
