"""The image: linted, in stages, pinned, and not root."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

from drqn_dist.distributed.local_ray import OWN_RAY
from tests.deploy.files import DEPLOY, packages, pinned, project

DOCKERFILE = DEPLOY / "Dockerfile"


def _instructions() -> list[tuple[str, str]]:
    """(INSTRUCTION, arguments) in order, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def _last_stage() -> list[tuple[str, str]]:
    found = _instructions()
    return found[max(index for index, (word, _) in enumerate(found) if word == "FROM") :]


def test_the_linter_finds_nothing() -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    found = subprocess.run([linter, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_it_is_built_in_stages_and_what_builds_stays_behind() -> None:
    stages = [rest.split() for word, rest in _instructions() if word == "FROM"]
    names = [stage[-1] for stage in stages]
    assert names == ["python", "packages", "wheel", "runtime"]
    assert stages[-1][0] == "python"  # not one that has built something
    copied = [rest for word, rest in _last_stage() if word == "COPY"]
    assert copied == ["--from=packages /opt/drqn /opt/drqn"]


def test_the_base_image_is_pinned_to_a_version() -> None:
    outside = {rest.split()[0] for word, rest in _instructions() if word == "FROM"} - {"python", "packages"}
    assert len(outside) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", outside.pop())


def test_every_package_is_pinned() -> None:
    runs = " && ".join(rest for word, rest in _instructions() if word == "RUN")
    installs = [command for command in re.split(r"&&", runs) if "pip install" in command]
    assert len(installs) == 3
    for command in installs:
        assert "--constraint constraints.txt" in command or "--no-index" in command, command
    assert "['cluster']" in runs  # Ray's dashboard, which takes the jobs
    assert "cluster" in project()["project"]["optional-dependencies"]


def test_it_does_not_run_as_root() -> None:
    users = [rest for word, rest in _last_stage() if word == "USER"]
    assert users == ["1000:1000"]
    after = [word for word, _ in _last_stage()]
    assert "RUN" not in after[after.index("USER") :]
    assert any(f"--uid {users[0].partition(':')[0]} " in rest for word, rest in _last_stage() if word == "RUN")


def test_ray_asks_for_the_token_and_the_programs_are_found_in_any_shell() -> None:
    (environment,) = (rest for word, rest in _last_stage() if word == "ENV")
    assert "RAY_AUTH_MODE=token" in environment.split()
    assert "PATH=/opt/drqn/bin:$PATH" in environment.split()
    assert {f"{name}={value}" for name, value in OWN_RAY.items()} < set(environment.split())
    assert any("> /etc/profile.d/drqn.sh" in rest for word, rest in _last_stage() if word == "RUN")


def test_only_what_is_copied_reaches_the_builder() -> None:
    copied = {
        source
        for word, rest in _instructions()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == packages() | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied


def test_the_tags_that_it_suggests_name_the_pinned_ray() -> None:
    tags = re.findall(r"NAME:(\S+)", DOCKERFILE.read_text(encoding="utf-8"))
    assert tags == [f"0.1.0-ray{pinned('ray')}-{kind}" for kind in ("gpu", "cpu")]
