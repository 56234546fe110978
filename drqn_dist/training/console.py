"""What a run shows while it goes: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Values = Mapping[str, float | None]


class _Console(Console):
    """Goes on silently when nobody reads it any more: a run must not end, nor lose anything, by that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """Shows the newest values of a run; a context manager. Called from one thread.

    It shows these values (all optional, None = not known yet): agent_steps, total_steps, frames, updates, elapsed_s,
    eta_s, and while an evaluation is waited for, eval_episodes and eval_steps (played so far); and of the tags of
    `metrics` those in _SHOWN.
    """

    def __init__(
        self,
        title: str,
        period_s: float,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the display.

        Args:
            title: names the run.
            period_s: away from a terminal, at most one line of values in this many seconds.
            console: where to write; stderr if None, so that stdout stays free for results.
            clock: monotonic seconds.
        """
        self._console = console or _Console(stderr=True, highlight=False)
        self._title = title
        self._period_s = period_s
        self._clock = clock
        self._next_line_s = float("-inf")
        self._values: dict[str, float | None] = {}
        self._live = Live(self, console=self._console, refresh_per_second=4) if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops drawing and leaves the last table on the screen."""
        if self._live is not None:
            self._live.stop()

    def update(self, values: Values) -> None:
        """Takes new values; those not named keep their last value."""
        self._values.update(values)
        if self._live is None and self._clock() >= self._next_line_s:
            self._next_line_s = self._clock() + self._period_s
            self.message(plain_line(self._values))

    def message(self, text: str) -> None:
        """Prints an event on a line of its own, above the table where there is one. What goes into a file on a full
        disk is lost; the run goes on."""
        with suppress(OSError):
            self._console.print(text, soft_wrap=True, markup=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = _cells(self._values)
        table = Table.grid(padding=(0, 2))
        for _ in range(_COLUMNS):
            table.add_column(style="dim", justify="right")
            table.add_column(min_width=10)
        for row in range(0, len(cells), _COLUMNS):
            table.add_row(*(text for cell in cells[row : row + _COLUMNS] for text in cell))
        yield Panel(table, title=Text(self._title), title_align="left", border_style="cyan")


def plain_line(values: Values) -> str:
    """The values as one line of `name value` pairs; those not known are left out."""
    return "  ".join(f"{label} {text}" for label, text in _cells(values) if text != _UNKNOWN)


def _cells(values: Values) -> list[tuple[str, str]]:
    """Label and text of everything shown, in reading order."""
    cells = []
    for label, key, text in _SHOWN:
        value = values.get(key)
        cells.append((label, _UNKNOWN if value is None else text(value)))
    return cells


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


_COLUMNS = 3
_UNKNOWN = "-"
_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("steps", "agent_steps", "{:,.0f}".format),
    ("updates", "updates", "{:,.0f}".format),
    ("elapsed", "elapsed_s", _duration),
    ("steps/s", "charts/agent_steps_per_s", "{:,.0f}".format),
    ("updates/s", "charts/updates_per_s", "{:,.1f}".format),
    ("left", "eta_s", _duration),
    ("frames", "frames", "{:,.0f}".format),
    ("samples/insert", "replay/samples_per_insert", "{:.2f}".format),
    ("return", "charts/episodic_return", "{:.2f}".format),
    ("replay", "replay/fill", "{:.0%}".format),
    ("policy lag", "actors/policy_lag_updates", "{:.1f}".format),
    ("eval", "eval/mean_return", "{:.2f}".format),
    ("epsilon", "charts/epsilon", "{:.3f}".format),
    ("games played", "eval_episodes", "{:,.0f}".format),
    ("game steps", "eval_steps", "{:,.0f}".format),
)
