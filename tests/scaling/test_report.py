from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.errors import RunFolderError
from drqn_dist.scaling.fits import Fit
from drqn_dist.scaling.picture import draw
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.report import bottleneck, fits, summary, write_table
from drqn_dist.scaling.text import measured_text
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
            "the learner: it trains 90% of its time and waits 5%, while the actors wait 60% of their time to push",
        ),
        (
            BLOCKED | changed("cores", BASE, machine=1.98, learner=0.7),
            "the learner: .*; and 1.98 of 2 cores are busy .*, so that it gets less than a core",
        ),
        (BLOCKED | STARVED | changed("cores", BASE, replay=0.95), "the replay: it uses 0.95 of a core"),
        (BLOCKED | STARVED | changed("loader_time", BASE, decode=0.9), "the loaders: they decode 90% of it"),
        (BLOCKED | STARVED | changed("cores", BASE, machine=1.95), "the cores: 1.95 of 2 cores are busy"),
        (BLOCKED | STARVED, "the calls between processes: only 1.00 of 2 cores are busy, yet the learner waits 70%"),
        (STARVED, "the actors themselves: env 50% and inference 40% .*, and the learner waits 70% of its time"),
        (changed("cores", BASE, machine=1.9), r"the cores: 1.90 of 2 cores are busy \(actors 0.80, learner 0.90"),
    ],
)
def test_the_bottleneck_is_named_with_its_figures(found: dict[str, Any], words: str) -> None:
    with_pushes = point(2, learner=True, **found)
    sentence = bottleneck([point(1, learner=True), with_pushes], cores=2)
    assert sentence.startswith("At 2 actors x 16 environments the bottleneck is ")
    assert re.search(words, sentence), sentence


def test_what_speaks_against_a_measurement_is_told() -> None:
    points = [point(1, learner=True, samples_per_insert=7.7)]
    assert bottleneck(points, cores=2, samples_per_insert=8.0).endswith("2 cores are busy.")
    busy = changed("cores", BASE, machine=1.99, replay=0.05)  # 1.9 of them are the roles', 0.05 Ray's
    assert "Other programs used" not in bottleneck([point(1, learner=True, **busy)], cores=2)
    busy = changed("cores", BASE, machine=1.99, actors=0.2)
    points = [point(1, learner=True, **busy, samples_per_insert=0.53)]
    said = bottleneck(points, cores=2, samples_per_insert=8.0)
    assert "Other programs used 0.69 cores meanwhile" in said
    assert said.endswith("(--warmup-s, --seconds).")
    assert "It had not settled: 0.53 samples per insert of 8, so one side" in said


def test_the_most_nodes_are_judged_where_actors_are_equally_many() -> None:
    assert "environments on 3 nodes the bottleneck" in bottleneck([point(2, nodes=n) for n in (1, 3, 2)], cores=2)


def test_a_replay_in_shards_is_judged_by_each_of_them() -> None:
    busy = BLOCKED | STARVED | changed("cores", BASE, replay=0.9, machine=1.5)
    points = [point(1, learner=True, **busy)]
    assert "the bottleneck is the replay: it uses 0.90 of a core, " in bottleneck(points, cores=2)
    assert "the bottleneck is the replay" not in bottleneck(points, cores=2, shards=2)
    busy |= changed("cores", BASE, replay=1.7)
    said = bottleneck([point(1, learner=True, nodes=3, **busy)], cores=2, shards=2)
    assert "environments on 3 nodes the bottleneck is the replay: it uses 0.85 of a core for each shard" in said


def test_pushing_without_a_learner_can_be_the_bottleneck() -> None:
    slow = point(4, actor_time=dict.fromkeys(PARTS, 0.0) | {"push": 0.8, "env": 0.2, "other": 0.0})
    assert "is pushing to the replay, which uses 0.05 of a core: push 80%" in bottleneck([slow], cores=2)


def test_efficiency_is_throughput_per_actor_over_that_of_the_fewest() -> None:
    points = [point(1, repeat=r, agent_steps_per_s=v) for r, v in enumerate((900.0, 1_000.0, 1_500.0))]
    rows = summary([*points, point(4, agent_steps_per_s=3_000.0)], MACHINE)["points"]
    assert [(row["actors"], row["agent_steps_per_s"], row["efficiency"]) for row in rows] == [
        (1, 1_000.0, 1.0),
        (4, 3_000.0, 3_000 / 4_000),
    ]
    assert (rows[0]["spread"], rows[0]["repeats"]) == ([900.0, 1_500.0], 3)


def test_each_curve_is_fitted_or_says_why_not() -> None:
    found = fits([point(1), point(2, agent_steps_per_s=1_800.0), point(1, envs=32)])
    assert isinstance(found["16 environments per actor"]["amdahl"], Fit)
    assert "usl has 3 parameters" in str(found["16 environments per actor"]["usl"])
    assert "amdahl has 2 parameters" in str(found["32 environments per actor"]["amdahl"])


def test_a_summary_is_json_and_can_be_read_by_people() -> None:
    points = [point(n, repeat=r, learner=True) for n in (1, 2, 4) for r in (0, 1)]
    result = json.loads(json.dumps(summary(points, MACHINE) | {"shard": "What a shard costs."}))
    shown = measured_text(result).splitlines()
    assert shown[1].split()[:4] == ["1", "16", "1", "1,000"]
    assert shown[-2:] == [result["shard"], result["bottleneck"]]
    assert measured_text(result | {"caution": "Beware."}).splitlines()[-3:] == ["Beware.", *shown[-2:]]
    assert any(line.startswith("usl, 16 environments per actor: x1 1,000 (") for line in shown)


def test_the_table_has_a_row_for_each_measurement(tmp_path: Path) -> None:
    write_table([point(2), point(1, learner=True), point(1, repeat=1), point(1)], tmp_path / "scale.csv")
    with open(tmp_path / "scale.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["actors"], r["repeat"], r["learner"]) for r in rows] == [
        ("1", "0", "False"),
        ("1", "1", "False"),
        ("2", "0", "False"),
        ("1", "0", "True"),
    ]
    assert (rows[0]["cores.actors"], rows[0]["policy_lag"]) == ("0.8", "")
    with pytest.raises(RunFolderError, match="choose another --out"):
        write_table([point()], tmp_path)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    points = [point(n, e, n > 1, r) for n in (1, 2, 4) for e in (8, 16) for r in (0, 1)]
    draw(points, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RunFolderError, match="cannot write"):
        draw(points, tmp_path / "none" / "scale.png")
