from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.errors import RunFolderError
from drqn_dist.scaling.fit import Fit
from drqn_dist.scaling.picture import draw
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.report import bottleneck, curves, fit_curve, measured_text, summary, write_table
from tests.scaling.made_up import PARTS, point

MACHINE = {"usable_cores": 2}


def changed(table: str, base: Point, **values: float) -> dict[str, Any]:
    return {table: getattr(base, table) | values}


BASE = point(learner=True)
BLOCKED = changed("actor_time", BASE, push=0.6)
STARVED = changed("learner_time", BASE, wait=0.7, train=0.25)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            BLOCKED,
            "is the learner: the actors spend 60% of their time on push and 50% on env, the learner trains 90% and",
        ),
        (BLOCKED | changed("cores", BASE, machine=1.98, learner=0.7), "is the learner, which gets less than a core: "),
        (BLOCKED | changed("cores", BASE, machine=1.98, learner=0.95), "is the learner: "),
        (BLOCKED | STARVED | changed("cores", BASE, replay=0.95), "is the replay, which uses 0.95 of a core: "),
        (BLOCKED | STARVED | changed("cores", BASE, machine=1.95), "is the cores: .* 1.95 of 2 cores are busy"),
        (BLOCKED | STARVED, "is the calls between processes: .* waits 70%; 1.00 of 2 cores are busy"),
        (STARVED, "is the actors themselves: .* 50% of their time on env and 40% on policy, .* waits 70%"),
        (changed("cores", BASE, machine=1.9), r"is the cores: .* \(actors 0.80, learner 0.90, replay 0.05, ray 0.05\)"),
    ],
)
def test_the_bottleneck_is_named_with_its_figures(found: dict[str, Any], words: str) -> None:
    with_pushes = point(2, learner=True, **found)
    sentence = bottleneck([point(1, learner=True), with_pushes], 2, 1, 8.0)
    assert sentence.startswith("At 2 actors x 16 environments the bottleneck is ")
    assert re.search(words, sentence), sentence


def test_what_speaks_against_a_measurement_is_said() -> None:
    points = [point(1, learner=True, samples_per_insert=7.7)]
    assert bottleneck(points, 2, 1, 8.0).endswith("ray 0.05).")
    busy = changed("cores", BASE, machine=1.99, actors=0.99)
    assert "Other programs used" not in bottleneck([point(1, learner=True, **busy)], 2, 1, 8.0)
    busy = changed("cores", BASE, machine=1.99, actors=0.3)
    said = bottleneck([point(1, learner=True, **busy, samples_per_insert=0.53)], 2, 1, 8.0)
    assert "Other programs used 0.69 cores: measure on a quiet machine." in said
    assert said.endswith(
        "It had not settled: 0.53 samples per insert instead of 8; measure longer (--warmup-s, --seconds)."
    )


def test_a_replay_in_shards_is_judged_by_each_of_them() -> None:
    busy = BLOCKED | STARVED | changed("cores", BASE, replay=0.9, machine=1.5)
    points = [point(1, learner=True, **busy)]
    assert "is the replay, which uses 0.90 of a core: " in bottleneck(points, 2, 1, 8.0)
    assert "the bottleneck is the replay" not in bottleneck(points, 2, 2, 8.0)
    busy |= changed("cores", BASE, replay=1.7)
    assert "uses 0.85 of a core for each shard" in bottleneck([point(1, learner=True, **busy)], 2, 2, 8.0)


def test_pushing_without_a_learner_can_be_the_bottleneck() -> None:
    time = {"actor_time": dict.fromkeys(PARTS, 0.0) | {"push": 0.8, "env": 0.2, "other": 0.0}}
    slow = changed("cores", point(), replay=0.95)
    assert "is the replay, which uses 0.95 of a core: the actors spend 80% of their time on push" in bottleneck(
        [point(4, **time, **slow)], 2, 1, 8.0
    )


def test_efficiency_is_throughput_per_actor_over_that_of_the_fewest() -> None:
    points = [point(1, repeat=r, agent_steps_per_s=v) for r, v in enumerate((900.0, 1_000.0, 1_500.0))]
    rows = summary([*points, point(4, agent_steps_per_s=3_000.0)], MACHINE, 1, 8.0)["points"]
    assert [(row["actors"], row["agent_steps_per_s"], row["efficiency"]) for row in rows] == [
        (1, 1_000.0, 1.0),
        (4, 3_000.0, 3_000 / 4_000),
    ]
    assert (rows[0]["spread"], rows[0]["repeats"]) == ([900.0, 1_500.0], 3)


def test_each_curve_is_fitted_or_says_why_not() -> None:
    points = [point(1), point(2, agent_steps_per_s=1_800.0), point(4, agent_steps_per_s=3_000.0), point(1, envs=32)]
    found = {name: fit_curve(curve) for name, curve in curves(points).items()}
    assert isinstance(found["16 environments per actor"], Fit)
    assert "needs three numbers of actors" in str(found["32 environments per actor"])


def test_a_summary_is_json_and_can_be_read_by_people() -> None:
    points = [point(n, repeat=r, learner=True) for n in (1, 2, 4) for r in (0, 1)]
    result = json.loads(json.dumps(summary(points, MACHINE, 1, 8.0)))
    shown = measured_text(result).splitlines()
    assert shown[1].split()[:3] == ["1", "16", "1,000"]
    assert shown[-1] == result["bottleneck"]
    assert any(line.startswith("Universal Scalability Law, 16 environments per actor: x1 1,000 (") for line in shown)


def test_the_table_has_a_row_for_each_measurement(tmp_path: Path) -> None:
    write_table([point(2), point(1, 8, learner=True), point(1, repeat=1), point(1)], tmp_path / "scale.csv")
    with open(tmp_path / "scale.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["actors"], r["envs_per_actor"], r["repeat"], r["learner"]) for r in rows] == [
        ("1", "8", "0", "True"),
        ("1", "16", "0", "False"),
        ("1", "16", "1", "False"),
        ("2", "16", "0", "False"),
    ]
    assert (rows[1]["cores.actors"], rows[1]["policy_lag"]) == ("0.8", "")
    with pytest.raises(RunFolderError, match="choose another --out"):
        write_table([point()], tmp_path)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    points = [point(n, e, n > 1, r) for n in (1, 2, 4) for e in (8, 16) for r in (0, 1)]
    draw(points, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RunFolderError, match="cannot write"):
        draw(points, tmp_path / "none" / "scale.png")
