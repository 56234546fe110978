"""A study's file, read: which runs there are to be, and with which settings. `studies/README.md` shows one."""

import itertools
import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from drqn_dist.config import EnvConfig, TrainConfig, from_dict
from drqn_dist.errors import ConfigError, did_you_mean, shown
from drqn_dist.presets import preset
from drqn_dist.reading import check_depth, read_bytes

MOST_RUNS = 10_000
"""Of one study; more are a slip of the pen."""
MOST_LETTERS = 200
"""Of a run's name, which files are called by."""
_KEYS = {"title", "question", "seeds", "episodes", "settings", "axes", "references", "levels", "elsewhere"}


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    panel: str
    """Value of the first axis; empty where there is but one axis."""
    arm: str
    """Values of the other axes."""
    config: TrainConfig
    """With its seed."""
    episodes: int
    """Greedy games that the last weights play."""
    elsewhere: dict[str, EnvConfig] = field(default_factory=dict)
    """Other environments in which they play as many, by name."""

    @property
    def name(self) -> str:
        """For files: letters, digits, dots and dashes."""
        return "__".join(_slug(part) for part in (self.panel, self.arm, str(self.config.seed)) if part)


@dataclass(frozen=True)
class Study:
    """A grid of runs and what is asked of them."""

    name: str
    title: str
    question: str
    cells: tuple[Cell, ...]
    references: dict[str, dict[str, float]]
    """By panel: returns that others reached, by their name."""
    levels: tuple[float, ...] = ()
    """Returns for which the report says how long training games and evaluations took to come to them."""

    @property
    def panels(self) -> list[str]:
        return list(dict.fromkeys(cell.panel for cell in self.cells))

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(cell.arm for cell in self.cells))


def load_study(path: Path) -> Study:
    """Reads a study's file (`studies/README.md` shows one).

    Raises:
        ConfigError: it cannot be read, something in it is unknown or missing, or a run's settings cannot work.
    """
    try:
        table = tomllib.loads(read_bytes(path).decode())
        check_depth(table)
    except OSError as error:
        raise ConfigError(f"cannot read the study {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is no TOML file of a study: it is nested too deep") from error
    try:
        return _study(path.stem, table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _study(name: str, table: Mapping[str, Any]) -> Study:
    unknown = set(table) - _KEYS
    if unknown:
        first = sorted(unknown)[0]
        raise ConfigError(f"unknown key {first!r}; {did_you_mean(first, _KEYS)}known are {', '.join(sorted(_KEYS))}")
    seeds = _seeds(table.get("seeds", [0]), "seeds")
    episodes = table.get("episodes", 20)
    if type(episodes) is not int or not 1 <= episodes <= 10**6:
        raise ConfigError(f"episodes is {shown(episodes)}, but must be a whole number in [1, 1e+06]")
    common, axes, references, elsewhere = (
        _table(table, key) for key in ("settings", "axes", "references", "elsewhere")
    )
    if not axes:
        raise ConfigError("there is no [axes.NAME]: a study compares at least two values of something")
    values = [[(name, _table(_table(axes, axis), name)) for name in _table(axes, axis)] for axis in axes]
    empty = next((axis for axis, of_axis in zip(axes, values, strict=True) if not of_axis), None)
    if empty is not None:
        raise ConfigError(f"axes.{empty} has no values")
    too_many = ConfigError(f"the axes' values and seeds ask for more than {MOST_RUNS:,} runs")
    if math.prod(map(len, values)) > MOST_RUNS:
        raise too_many
    cells: list[Cell] = []
    for chosen in itertools.product(*values):
        for cell in _cells(chosen, common, seeds, episodes):
            cells.append(replace(cell, elsewhere=_elsewhere(elsewhere, cell.config.env)))
        if len(cells) > MOST_RUNS:
            raise too_many
    (often, times), *_ = Counter(cell.name for cell in cells).most_common(1)
    if times > 1:
        raise ConfigError(f"two runs would both be called {often}; give the values of the axes other names")
    longest = max((cell.name for cell in cells), key=len)
    if len(longest) > MOST_LETTERS:
        raise ConfigError(
            f"a run would be called {longest[:40]}…, with {len(longest)} letters, but {MOST_LETTERS} is the most; give "
            "the axes' values shorter names"
        )
    return Study(
        name,
        str(table.get("title", name)),
        str(table.get("question", "")).strip(),
        tuple(cells),
        _references(references, list(dict.fromkeys(cell.panel for cell in cells))),
        _levels(table.get("levels", [])),
    )


def _elsewhere(table: Mapping[str, Any], env: EnvConfig) -> dict[str, EnvConfig]:
    """A run's environment under other settings of `env`."""
    found = {}
    for name in table:
        others = _table(table, name)
        if set(others) != {"env"}:
            raise ConfigError(f"elsewhere.{name} sets {', '.join(sorted(others))}, but only env can be another one")
        found[name] = from_dict(EnvConfig, _merged(asdict(env), _table(others, "env")), "env.")
    return found


def _references(table: Mapping[str, Any], panels: list[str]) -> dict[str, dict[str, float]]:
    """By panel; a study of one axis has but one, without a name."""
    by_panel = {"": table} if panels == [""] and table else table
    for panel in by_panel:
        if panel not in panels:
            raise ConfigError(f"references.{panel}: the first axis has no such value, only {', '.join(panels)}")
        for name, value in _table(by_panel, panel).items():
            if type(value) not in (int, float) or not abs(value) <= 1e12:
                raise ConfigError(
                    f"references: {panel + ': ' if panel else ''}{name} is {shown(value)}, but must be a number"
                )
    return {panel: {name: float(value) for name, value in values.items()} for panel, values in by_panel.items()}


def _levels(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(type(one) in (int, float) and abs(one) <= 1e12 for one in value):
        raise ConfigError(f"levels is {shown(value)}, but must be a list of numbers")
    return tuple(map(float, value))


def _cells(
    chosen: tuple[tuple[str, Mapping[str, Any]], ...], common: Mapping[str, Any], seeds: list[int], episodes: int
) -> list[Cell]:
    """The runs of one combination of the axes' values."""
    settings: dict[str, Any] = dict(common)
    for _, overrides in chosen:
        settings = _merged(settings, overrides)
    names = [name for name, _ in chosen]
    panel, arm = (names[0], ", ".join(names[1:])) if len(names) > 1 else ("", names[0])
    seeds = _seeds(settings.pop("seeds", seeds), f"seeds of {arm}")
    if not isinstance(settings.get("preset"), str):
        raise ConfigError(f'{", ".join(names)} has no preset; name one in [settings], for example preset = "gridworld"')
    if "seed" in settings:
        raise ConfigError(f"seed is {shown(settings['seed'])}; say seeds = [{shown(settings['seed'])}], a list")
    config = from_dict(TrainConfig, _merged(asdict(preset(settings["preset"])), settings))
    return [Cell(panel, arm, replace(config, seed=seed), episodes) for seed in seeds]


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The second's values over the first's, table by table. TOML knows no null: the text "None" stands for it,
    as it does on the command line."""
    merged = dict(first)
    for key, value in second.items():
        old = merged.get(key)
        if isinstance(value, Mapping):
            merged[key] = _merged(old if isinstance(old, Mapping) else {}, value)
        else:
            merged[key] = None if value == "None" else value
    return merged


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {shown(value)}, but must be a table")
    return value


def _seeds(value: Any, what: str) -> list[int]:
    if not isinstance(value, list) or not value or not all(type(seed) is int and seed >= 0 for seed in value):
        raise ConfigError(f"{what} is {shown(value)}, but must be a list of whole numbers")
    if len(value) > MOST_RUNS:
        raise ConfigError(f"{what} has {len(value):,} numbers, but a study has at most {MOST_RUNS:,} runs")
    return value


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.").lower()
