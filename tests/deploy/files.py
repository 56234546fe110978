"""The files under deploy/, and the commands that stand in them."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
LAUNCHER = ("local", "aws", "gcp")
CLOUDS = ("aws", "gcp")
RUNS = "/mnt/drqn-runs"
"""Where every cluster keeps its runs."""


def launcher(name: str) -> dict[str, Any]:
    """One of Ray's launcher files."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "ray" / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def kubernetes(name: str) -> dict[str, Any]:
    """One of the manifests."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "k8s" / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def readme() -> str:
    return (DEPLOY / "README.md").read_text(encoding="utf-8")


def all_files() -> list[Path]:
    return sorted(path for path in DEPLOY.rglob("*") if path.is_file())


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{package}=="):
            return line.partition("==")[2]
    raise AssertionError(f"{package} is not pinned")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages() -> set[str]:
    """Our top-level packages."""
    return {name.partition(".")[0] for name in project()["tool"]["setuptools"]["packages"]}


def shell_blocks() -> list[str]:
    """The README's fenced shell blocks, without their indentation."""
    found = re.findall(r"^( *)```bash\n(.*?)^ *```$", readme(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def launcher_commands(name: str) -> list[str]:
    """Every shell command of a launcher file."""
    config = launcher(name)
    return [command for key, commands in config.items() if key.endswith("_commands") for command in commands]


def commands(program: str) -> list[list[str]]:
    """The arguments of every call of a program in the README (blocks, and whole calls within the text), the launcher
    files and the RayJob."""
    prose = re.sub(r"```.*?```", "", readme(), flags=re.DOTALL)
    texts = [re.sub(r"\\\n\s*", "", block) for block in shell_blocks()]
    texts += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose) if " --" in code]
    texts += [command for name in LAUNCHER for command in launcher_commands(name)]
    texts.append(kubernetes("rayjob")["spec"]["entrypoint"])
    return [call for text in texts for line in text.splitlines() for call in _calls(program, line)]


def _calls(program: str, line: str) -> Iterator[list[str]]:
    """The arguments of each call of a program in one line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    for index, word in enumerate(words):
        before = words[index - 1] if index else ";"
        if Path(word).name == program and (_is_operator(before) or before == "--" or "=" in before):
            yield list(itertools.takewhile(lambda later: not _is_operator(later), words[index + 1 :]))


def _is_operator(word: str) -> bool:
    return set(word) <= set("|&;<>()")
