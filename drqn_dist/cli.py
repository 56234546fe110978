"""The `drqn-dist` command. Everything heavy is imported inside the command that needs it.

Exit codes: 0 done, also where a signal ended a training that was then saved, 1 the run failed, 2 the command, its
settings or its files are wrong, 130 interrupted.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import tyro

from drqn_dist.arguments import parse, parse_train
from drqn_dist.bench import ROLES, BenchSettings, run_bench
from drqn_dist.config import setting
from drqn_dist.errors import ConfigError, DrqnError, did_you_mean
from drqn_dist.scaling.settings import ScaleArgs
from drqn_dist.seeding import EVALUATION_SEED

PROGRAM = "drqn-dist"


@dataclass(frozen=True)
class EvalArgs:
    """Plays episodes greedily with the newest checkpoint of a run."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    episodes: int = 20
    """Episodes to play."""
    seed: int = EVALUATION_SEED
    """Seed of the environments; far from training seeds, so that evaluation does not replay them."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout instead of a sentence."""
    video: Path | None = None
    """Play one more episode and write it to this MP4 file."""


@dataclass(frozen=True)
class PlotArgs:
    """Draws the learning curves of one or more runs; runs that differ in their seed alone share a line."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the runs."""
    out: Path | None = None
    """PNG file to write."""
    x: Literal["steps", "frames", "minutes"] = "steps"
    """What the curve is drawn over: agent steps, emulator frames or minutes of wall-clock time."""
    csv: Path | None = None
    """Also write the metrics of the run (one only) as CSV."""


@dataclass(frozen=True)
class StudyArgs:
    """Runs a study, a grid of runs, and reports on it; finished runs are kept, and a stop loses nothing."""

    file: tyro.conf.Positional[Path]
    """The study, a TOML file; `studies/` has those of this project."""
    out: Path | None = None
    """Folder of the report and of what is kept of each run; default: results/studies/<name of the file>."""
    runs: Path | None = None
    """Folder of the runs themselves; default: runs/studies/<name of the file>."""
    jobs: int | None = None
    """Runs at a time; None: as many as cores, one at a time where a run starts Ray; on a cluster as it has room."""
    address: str | None = None
    """Ray cluster whose tasks the runs are, of one CPU each (auto, host:port); its nodes keep the runs' folders, best
    on a disk that they share. None: this machine."""
    report: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run nothing; report on what has finished."""


@dataclass(frozen=True)
class PresetsArgs:
    """Lists the named configurations and where each of their numbers comes from."""

    name: tyro.conf.Positional[str | None] = None
    """Show this one only."""


@dataclass(frozen=True)
class BenchArgs:
    """Measures one role, or all of them in turn, on this machine."""

    role: tyro.conf.Positional[Literal["actor", "replay", "learner", "all"]]
    """What to measure."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object a line and role on stdout instead of a table."""
    preset: str | None = None
    """Configuration to measure; default: Pong 84x84 with CNN + GRU 512 for the actor, pong-cpu for the others."""
    settings: Annotated[BenchSettings, tyro.conf.arg(name="")] = field(default_factory=BenchSettings)


def _train(argv: Sequence[str]) -> None:
    args = parse_train(argv, f"{PROGRAM} train")
    if args.dry_run:
        from drqn_dist.training.preflight import dry_run

        print(dry_run(args.config, args.resume, args.init_from))
        return
    from drqn_dist.training.train import train

    train(args.config, args.resume, args.init_from)


def _eval(argv: Sequence[str]) -> None:
    args = parse(EvalArgs, argv, f"{PROGRAM} eval")
    from drqn_dist.experiments.evaluate import evaluate

    result = evaluate(args.run, args.episodes, args.seed, args.video)
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"{result['env']}: mean return {result['mean_return']:.2f} ± {result['std_return']:.2f} "
            f"(median {result['median_return']:.2f}) over {result['episodes']} episodes"
        )


def _plot(argv: Sequence[str]) -> None:
    args = parse(PlotArgs, argv, f"{PROGRAM} plot")
    if not args.runs:
        raise ConfigError("name at least one run's folder")
    if args.out is None and args.csv is None:
        raise ConfigError("say where to draw: --out FILE.png")
    if args.csv is not None and len(args.runs) != 1:
        raise ConfigError(f"--csv exports one run, but {len(args.runs)} were named")
    from drqn_dist.experiments.plot import export_csv, plot_runs

    if args.csv is not None:
        export_csv(args.runs[0], args.csv)
    if args.out is not None:
        plot_runs(args.runs, args.out, args.x)
    print(*(f"wrote {path}" for path in (args.out, args.csv) if path is not None), sep="\n", file=sys.stderr)


def _presets(argv: Sequence[str]) -> None:
    args = parse(PresetsArgs, argv, f"{PROGRAM} presets")
    from drqn_dist.presets import PRESETS, preset

    names = list(PRESETS) if args.name is None else [preset(args.name).preset]
    for name in names:
        shown = PRESETS[name]
        print(f"{name}\n  {shown.summary}")
        for path, source in shown.sources.items():
            print(f"    {path} = {setting(shown.config, path)}: {source}")
        print()


def _study(argv: Sequence[str]) -> None:
    args = parse(StudyArgs, argv, f"{PROGRAM} study")
    from drqn_dist.studies.report import write_report
    from drqn_dist.studies.runner import run_study
    from drqn_dist.studies.study import load_study

    study = load_study(args.file)
    out = args.out or Path("results/studies", study.name)
    if not args.report:
        run_study(study, out, args.runs or Path("runs/studies", study.name), args.jobs, args.address)
    print(write_report(study, out))
    print(f"wrote {out}/README.md, curves.png and runs.csv", file=sys.stderr)


def _bench(argv: Sequence[str]) -> None:
    args = parse(BenchArgs, argv, f"{PROGRAM} bench")
    for role in ROLES if args.role == "all" else (args.role,):
        print(f"measuring the {role}; this takes about a minute …", file=sys.stderr, flush=True)
        result = run_bench(role, args.preset, args.settings)
        print(json.dumps({"role": role, **result}) if args.json else _bench_table(role, result), flush=True)


def _bench_table(role: str, result: dict[str, Any]) -> str:
    """Medians with their spread, then what they belong to."""
    lines = [role]
    for name, value in result.items():
        if name in result["spread"]:
            low, high = result["spread"][name]
            lines.append(f"  {name:<32}{_rounded(value):>10}   {_rounded(low)} to {_rounded(high)}")
        elif name != "spread":
            lines.append(f"  {name:<32}{_rounded(value) if isinstance(value, float) else value:>10}")
    return "\n".join(lines)


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _scale(argv: Sequence[str]) -> None:
    args = parse(ScaleArgs, argv, f"{PROGRAM} scale")
    from drqn_dist.scaling.sweep import run_scale

    result, text = run_scale(args)
    print(json.dumps(result) if args.json else text)


def _replay(argv: Sequence[str]) -> None:
    from drqn_dist.experiments.replay_command import replay

    replay(argv, f"{PROGRAM} replay")


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "train": (_train, "train an agent, or go on with a run (--resume); --dry-run says what it takes"),
    "eval": (_eval, "play episodes greedily with a run's newest checkpoint"),
    "plot": (_plot, "draw learning curves of runs"),
    "study": (_study, "run a grid of runs from a file, and report on it"),
    "replay": (_replay, "inspect, verify or export what a run's replay holds"),
    "presets": (_presets, "list the named configurations and their sources"),
    "bench": (_bench, "measure actor, replay and learner on this machine"),
    "scale": (_scale, "measure how a run scales with its actors, or simulate it on other machines"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; leaves through SystemExit where it fails."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        from drqn_dist import __version__

        print(f"{PROGRAM} {__version__}")
        return
    try:
        with _terminable():
            if argv is None and arguments[0] == "train":
                _keep(arguments[1:])
            _command(arguments[0])(arguments[1:])
    except DrqnError as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        if error.shows_cause and error.__cause__ is not None:
            print(*traceback.format_exception(error.__cause__), sep="", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # `| head` has read enough; nothing may be flushed into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None or arguments[0] == "train":  # there, where it came from is worth more
            raise
        print(f"{PROGRAM}: error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None


def _keep(argv: Sequence[str]) -> None:
    """Puts a process in front of a run in Ray mode that starts it again if it must, and leaves with its exit code."""
    from drqn_dist.training.keeper import keep, kept

    if kept():
        sys.argv[0] = PROGRAM
        return
    args = parse_train(argv, f"{PROGRAM} train")
    if args.config.mode == "ray" and not args.dry_run:
        raise SystemExit(keep(argv))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that what it started ends with it. (`train` handles both itself.)"""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _command(name: str) -> Callable[[Sequence[str]], None]:
    if name in COMMANDS:
        return COMMANDS[name][0]
    raise ConfigError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS, 1)}commands: {', '.join(COMMANDS)}")


def _usage() -> str:
    lines = "\n".join(f"  {name:<9}{text}" for name, (_, text) in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [OPTIONS]\n\n{lines}\n\n"
        f"{PROGRAM} COMMAND --help shows a command's options; {PROGRAM} --version the version."
    )


if __name__ == "__main__":
    main()
