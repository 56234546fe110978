"""Who may import whom, held by reading the source."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROLES = ("actors", "learner", "replay_server")

ROOMS = ("training", "distributed", "experiments", "bench", "scaling", "studies")
RUNS_THINGS = tuple(f"drqn_dist/{name}" for name in (*(f"{room}/" for room in ROOMS), "cli.py", "arguments.py"))
"""Files that may know every role."""
RUNNERS = tuple(place.removesuffix("/").removesuffix(".py").replace("/", ".") for place in RUNS_THINGS)
ONLY_UNDER = {
    "ray": ["drqn_dist/distributed/", "drqn_dist/bench/"],
    "gymnasium": ["drqn_dist/envs/"],
    "ale_py": ["drqn_dist/envs/"],
    "msgpack": ["drqn_dist/codec.py"],
    "zstandard": ["drqn_dist/codec.py"],
    "tyro": list(RUNS_THINGS),
    "rich": list(RUNS_THINGS),
    "matplotlib": list(RUNS_THINGS),
    "scipy": list(RUNS_THINGS),
}
NEVER = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "gym")


@dataclass(frozen=True)
class Source:
    """One Python file of ours."""

    path: str
    text: str

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        return self.module if self.path.endswith("__init__.py") else self.module.rpartition(".")[0]

    def imports(self) -> Iterator[str]:
        """Full names of all imported modules (and of what is imported from them), wherever the statement stands."""
        for node in ast.walk(ast.parse(self.text)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)

    def calls(self) -> Iterator[tuple[str, dict[str, ast.expr]]]:
        """Every call as its dotted name and its keyword arguments."""
        for node in ast.walk(ast.parse(self.text)):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords if word.arg}


def sources() -> list[Source]:
    found = [path for name in ("drqn_dist", *ROLES) for path in sorted((ROOT / name).rglob("*.py"))]
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text()) for path in found]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def faults(files: list[Source]) -> list[str]:
    """Every breach of the rules of the house, in words."""
    found = []
    for file in files:
        home = file.path.split("/")[0]
        runs = file.path.startswith(RUNS_THINGS)
        for name in file.imports():
            if not runs and any(within(name, runner) for runner in RUNNERS):
                found.append(f"{file.path} imports {name}: only what runs things may import what runs things")
            if not runs and any(within(name, role) for role in ROLES if role != home):
                found.append(f"{file.path} imports {name}: roles meet through drqn_dist/interfaces.py")
            for package, places in ONLY_UNDER.items():
                if within(name, package) and not any(file.path.startswith(place) for place in places):
                    found.append(f"{file.path} imports {name}: {package} belongs under {' or '.join(places)}")
            if home == "replay_server" and within(name, "torch"):
                found.append(f"{file.path} imports {name}: the replay does without torch")
            if any(within(name, never) for never in NEVER):
                found.append(f"{file.path} imports {name}: it is not used here")
        for call, words in file.calls():
            if call in ("torch.load", "torch.jit.load", "torch.package.PackageImporter"):
                safe = words.get("weights_only")
                if call != "torch.load" or not (isinstance(safe, ast.Constant) and safe.value is True):
                    found.append(f"{file.path} calls {call}, which can execute code")
            if "allow_pickle" in words or call in ("eval", "exec", "np.fromfile"):
                found.append(f"{file.path} calls {call} in a way that can execute code")
    return found


def test_everybody_imports_only_whom_they_may() -> None:
    assert faults(sources()) == []


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("actors/a.py", "from learner import loss", "imports learner.loss: roles meet"),
        ("actors/a.py", "def f():\n    import replay_server.replay", "imports replay_server.replay: roles meet"),
        ("learner/a.py", "from actors.actor import Actor", "imports actors.actor.Actor: roles meet"),
        ("drqn_dist/network/a.py", "import learner", "imports learner: roles meet"),
        ("learner/a.py", "from drqn_dist import training", "only what runs"),
        ("drqn_dist/envs/a.py", "from ..training import train", "imports drqn_dist.training.train: only what runs"),
        ("drqn_dist/a.py", "from .distributed.remote import start", "only what runs"),
        ("drqn_dist/__init__.py", "from .cli import main", "only what runs"),
        ("actors/a.py", "import ray", "ray belongs under"),
        ("drqn_dist/network/a.py", "import gymnasium.spaces as s", "gymnasium belongs under"),
        ("drqn_dist/checkpoint.py", "from msgpack import packb", "msgpack belongs under"),
        ("replay_server/a.py", "from torch import Tensor", "does without torch"),
        ("learner/a.py", "import pickle", "not used here"),
        ("learner/a.py", "torch.load(p)", "can execute code"),
        ("learner/a.py", "torch.load(p, weights_only=False)", "can execute code"),
        ("learner/a.py", "np.load(p, allow_pickle=True)", "can execute code"),
    ],
)
def test_every_rule_can_be_broken(path: str, text: str, fault: str) -> None:
    (found,) = faults([Source(path, text)])
    assert fault in found


def test_what_the_rules_allow_passes() -> None:
    allowed = {
        "drqn_dist/distributed/a.py": "import ray\nfrom actors.actor import Actor\nfrom ..training import train",
        "drqn_dist/envs/a.py": "import gymnasium, ale_py",
        "actors/a.py": "from actors.policy import Decision\nimport torch\nimport rayon\nimport learners",
        "learner/a.py": "torch.load(p, weights_only=True)",
    }
    assert faults([Source(path, text) for path, text in allowed.items()]) == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("replay_server.replay", ["torch", "ray", "gymnasium", "ale_py", "actors", "learner", "drqn_dist.training"]),
        (
            "drqn_dist.presets",
            ["torch", "ray", "gymnasium", "actors", "learner", "replay_server", "drqn_dist.training"],
        ),
    ],
)
def test_replay_and_presets_need_neither_torch_nor_a_role_even_by_the_way(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_package_of_ours_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(file.module for file in sources() if file.path.endswith("__init__.py"))
