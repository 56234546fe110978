"""Command-line arguments as dataclasses, by tyro; every mistake is one ConfigError of one line."""

import contextlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from drqn_dist.config import TrainConfig
from drqn_dist.errors import ConfigError
from drqn_dist.presets import preset
from drqn_dist.reading import parse_json
from drqn_dist.resumable import resumed_config

_T = TypeVar("_T")


@dataclass(frozen=True)
class TrainArgs:
    """Trains an agent. Defaults are those of the preset, or of the resumed run."""

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    resume: Path | None = None
    """Go on with this run's folder, wherever it lies now. Its own configuration holds, with the changes given; what its
    weights or their curve depend on stays: environment, network, windows, values, loss and optimizer."""
    init_from: Path | None = None
    """Begin a new run with the newest weights of this run's folder, whose network must have the same shapes."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Start nothing: say what the run would take of memory and disk, and whether that fits."""


def parse_train(argv: Sequence[str], program: str) -> TrainArgs:
    """What `train`'s arguments ask for.

    The preset's (or the resumed run's) values become the defaults, so it is looked for first.

    Raises:
        ConfigError: an argument is unknown, its value cannot be used, or a resumed run cannot change it.
        RunFolderError: the run to resume cannot be opened.
        SystemExit: help was asked for and printed.
    """
    arguments = [re.sub(r"^--env(?==|$)", "--env.id", argument) for argument in argv]
    arguments = [
        "None" if argument == "auto" and before == "--actors" else re.sub(r"^--actors=auto$", "--actors=None", argument)
        for before, argument in zip(["", *arguments], arguments, strict=False)
    ]
    resume = _value_of("--resume", arguments)
    if resume is not None:
        from drqn_dist.experiments.run_folder import open_run  # imports torch, which takes seconds

        default = open_run(Path(resume)).config
    else:
        name = _value_of("--preset", arguments)
        default = preset(TrainConfig().preset if name is None else name)
    args = parse(TrainArgs, arguments, program, default=TrainArgs(default))
    if args.resume is not None:
        args = replace(args, config=resumed_config(default, args.config, args.resume))
    return args


def parse(kind: type[_T], argv: Sequence[str], program: str, default: _T | None = None) -> _T:
    """Reads `argv` into the dataclass `kind`.

    Raises:
        ConfigError: an argument is unknown, missing or unusable.
        SystemExit: help was asked for and printed.
    """
    errors = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with _REGISTRY, contextlib.redirect_stderr(errors):
            parsed: _T = tyro.cli(kind, args=list(argv), prog=program, **options)
    except SystemExit as error:
        if not error.code:
            raise
        raise ConfigError(f"{_one_line(errors.getvalue())}; see {program} --help") from None
    return parsed


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The last value given to a flag, as `--flag value` or `--flag=value`."""
    found = None
    for argument, following in zip(argv, [*argv[1:], None], strict=False):
        if argument == flag:
            found = following
        elif argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
    return found


def _one_line(text: str) -> str:
    """The message of tyro's error, and the first option it suggests.

    tyro prints a title, the message, suggestions and a pointer to --help, with rules between them; drawn as a box
    (whose top edge holds the title) where the terminal can show one.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    sections: list[list[str]] = [[]]
    for line in (line.strip("│╰╯ ") for line in plain.splitlines()):
        if line.startswith("╭") or (line and set(line) <= {"-", "─"}):
            sections.append([])
        elif line:
            sections[-1].append(line)
    sections = [section for section in sections if section]
    message = " ".join(sections[0 if "╭" in plain else 1] if len(sections) > 1 else plain.split())
    for section in sections:
        if section[0] == "Perhaps you meant:" and len(section) > 1:
            message += f"; did you mean {section[1].split()[0]}?"
    return message


_REGISTRY = ConstructorRegistry()


def _one_word(
    kind: type[_T], metavar: str, read: Callable[[str], _T], show: Callable[[_T], str]
) -> PrimitiveConstructorSpec[_T]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [show(value)],
    )


@_REGISTRY.primitive_rule
def _json_table(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
    """Tables of anything (env.kwargs) are given as JSON."""

    def read(word: str) -> dict[str, Any]:
        value = parse_json(word)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object such as '{\"size\": 7}'")
        return value

    return _one_word(dict, "JSON", read, json.dumps) if info.type == dict[str, Any] else None


@_REGISTRY.primitive_rule
def _boolean(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
    """Settings that are true or false take either word, in any case."""

    def read(word: str) -> bool:
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{word!r} is neither true nor false")
        return word.lower() == "true"

    is_setting = info.type is bool and tyro.conf.FlagConversionOff in info.markers
    return _one_word(bool, "{true,false}", read, lambda value: str(value).lower()) if is_setting else None
