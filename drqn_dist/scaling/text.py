"""What `drqn-dist scale` prints for a person."""

from __future__ import annotations

from typing import Any


def measured_text(result: dict[str, Any]) -> str:
    """A table of the points, the fits, and the bottleneck."""
    lines = ["actors  envs   steps/s            efficiency  updates/s  policy lag  samples/insert  cores busy"]
    for row in result["points"]:
        low, high = row["spread"]
        lines.append(
            f"{row['actors']:>6} {row['envs_per_actor']:>5} {row['agent_steps_per_s']:>9,.0f}"
            f" {f'({low:,.0f}-{high:,.0f})':<14}{row['efficiency']:>7.2f}{row['updates_per_s']:>11.1f}"
            f"{_or_dash(row['policy_lag'], '.1f'):>12}{_or_dash(row['samples_per_insert'], '.2f'):>16}"
            f"{row['cores.machine']:>12.2f}"
        )
    for name, laws in result["fits"].items():
        for law, found in laws.items():
            lines.append(f"{law}, {name}: {found if isinstance(found, str) else _fit_text(found)}")
    return "\n".join([*lines, result["bottleneck"]])


def simulated_text(result: dict[str, Any]) -> str:
    """Tables of predictions and of measured points beside theirs, each with its sentence."""
    parts = list(result["predictions"][0]["use"])
    lines = ["actors     steps/s  updates/s" + "".join(f"{part:>12}" for part in parts)]
    for p in result["predictions"]:
        use = "".join(f"{p['use'][part]:>12.0%}" for part in parts)
        lines.append(f"{p['actors']:>6,} {p['agent_steps_per_s']:>11,.0f}{p['updates_per_s']:>11.1f}{use}")
    lines.append(result["advice"])
    lines.append("actors  envs  measured  predicted   error")
    for c in result["comparisons"]:
        lines.append(
            f"{c['actors']:>6} {c['envs_per_actor']:>5} {c['measured']:>9,.0f}"
            f" {c['predicted']:>10,.0f} {c['error']:>+7.1%}"
        )
    return "\n".join([*lines, result["error"]])


def _fit_text(found: dict[str, Any]) -> str:
    intervals = found["intervals"] or {}
    return ", ".join(
        f"{name} {value:,.4g}"
        + (f" ({intervals[name][0]:,.4g} to {intervals[name][1]:,.4g})" if name in intervals else " (no interval)")
        for name, value in found["parameters"].items()
    )


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
