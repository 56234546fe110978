"""What has finished of a study, as its report and its pictures read it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drqn_dist.errors import RunFolderError
from drqn_dist.studies.cell import Outcome, read_outcome
from drqn_dist.studies.study import Cell, Study


@dataclass(frozen=True)
class Finished:
    """A study and the outcomes of the cells that have finished, in the study's order; at least one."""

    study: Study
    cells: list[tuple[Cell, Outcome]]

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for _, outcome in self.cells]

    @property
    def places(self) -> list[str]:
        """Names of the other environments in which weights played."""
        return list(dict.fromkeys(name for outcome in self.outcomes for name in outcome.elsewhere))

    def of(self, panel: str, arm: str) -> list[Outcome]:
        """One for each seed that has finished."""
        return [outcome for cell, outcome in self.cells if (cell.panel, cell.arm) == (panel, arm)]

    def elsewhere(self, panel: str, arm: str) -> list[list[float]]:
        """For each place the mean return of every seed's weights."""
        outcomes = self.of(panel, arm)
        return [
            [float(np.mean(outcome.elsewhere[place]["scores"])) for outcome in outcomes if place in outcome.elsewhere]
            for place in self.places
        ]


def read_finished(study: Study, out: Path) -> Finished:
    """The outcomes that lie in `out`.

    Raises:
        RunFolderError: there is none, or a file cannot be read.
    """
    cells = [(cell, outcome) for cell in study.cells if (outcome := read_outcome(out, cell)) is not None]
    if not cells:
        raise RunFolderError(
            f"no run of the study {study.name} has finished in {out} with the settings that it has now; there is "
            "nothing to report yet"
        )
    return Finished(study, cells)
