"""Cells that seem to have finished."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from drqn_dist.studies.cell import Outcome, outcome_path
from drqn_dist.studies.study import Cell


def finish(
    out: Path,
    cell: Cell,
    scores: Sequence[float],
    evaluations: Sequence[float] = (0.0,),
    probes: Mapping[str, float] | None = None,
    training: Sequence[float] = (),
    cut_short: int | None = None,
    stopped_by: str = "total_steps",
    resumed: bool = False,
) -> None:
    """Writes an outcome with an evaluation each thousand steps, and training returns as often."""

    def curve(values: Sequence[float]) -> list[list[float]]:
        return [[1_000 * i, 0.1 * i, value] for i, value in enumerate(values)]

    outcome = Outcome(
        config=asdict(cell.config),
        episodes=cell.episodes,
        scores=list(scores),
        elsewhere={
            name: {"env": asdict(env), "scores": [score / 2 for score in scores]}
            for name, env in cell.elsewhere.items()
        },
        agent_steps=9_000,
        frames=9_000,
        updates=90,
        minutes=1.5,
        stopped_by=stopped_by,
        resumed=resumed,
        weights_sha256="00",
        evaluations=curve(evaluations),
        training=curve(training),
        cut_short=cut_short,
        probes=dict(probes or {}),
        versions={"torch": "2"},
        machine={"cpu": "a processor", "usable_cores": 2, "gpu": None},
    )
    path = outcome_path(out, cell)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
