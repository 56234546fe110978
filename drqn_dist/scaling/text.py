"""What `drqn-dist scale` prints for a person."""

from __future__ import annotations

from typing import Any

from drqn_dist.scaling.settings import LONGEST_S


def measured_text(result: dict[str, Any]) -> str:
    """A table of the points, the fits, and the bottleneck."""
    lines = ["actors  envs  nodes   steps/s            efficiency  updates/s  policy lag  samples/insert  cores busy"]
    for row in result["points"]:
        low, high = row["spread"]
        lines.append(
            f"{row['actors']:>6} {row['envs_per_actor']:>5} {row['nodes']:>6} {row['agent_steps_per_s']:>9,.0f}"
            f" {f'({low:,.0f}-{high:,.0f})':<14}{row['efficiency']:>7.2f}{row['updates_per_s']:>11.1f}"
            f"{_or_dash(row['policy_lag'], '.1f'):>12}{_or_dash(row['samples_per_insert'], '.2f'):>16}"
            f"{row['cores.machine']:>12.2f}"
        )
    for name, laws in result["fits"].items():
        for law, found in laws.items():
            lines.append(f"{law}, {name}: {found if isinstance(found, str) else _fit_text(found)}")
    cautions = [result["caution"]] if "caution" in result else []
    return "\n".join([*lines, *cautions, result["shard"], result["bottleneck"]])


def simulated_text(result: dict[str, Any]) -> str:
    """Tables of predictions and of the validation, each with its sentence."""
    lines = []
    if "predictions" in result:
        lines.append("actors     steps/s  updates/s  policy lag  push s  actors wait  shard  loader  learner  link")
        for p in result["predictions"]:
            use = p["use"]
            lines.append(
                f"{p['actors']:>6,} {p['agent_steps_per_s']:>11,.0f}{p['updates_per_s']:>11.1f}"
                f"{p['policy_lag']:>12.1f}{p['push_s']:>8.3f}{p['actors_blocked']:>13.0%}{use['replay shard']:>7.0%}"
                f"{use['loader']:>8.0%}{use['learner']:>9.0%}{use['head link']:>6.0%}"
            )
        limit = result["saturation"]
        unsettled = [f"{p['actors']:,}" for p in result["predictions"] if not p["settled"]]
        if unsettled:
            lines.append(f"Not settled after {LONGEST_S:,.0f} simulated seconds: {', '.join(unsettled)} actors.")
        lines.append(result["shard"])
        if limit["learner_updates_per_s"]:
            lines.append(
                f"The learner makes {limit['learner_updates_per_s']:,.1f} updates/s, worth "
                f"{limit['learner_steps_per_s']:,.0f} steps/s."
            )
        lines.append(result["advice"])
    if "validation" in result:
        lines.append("actors  envs  learner  measured  simulated   error  policy lag  simulated")
        for c in result["validation"]:
            lines.append(
                f"{c['actors']:>6} {c['envs_per_actor']:>5} {'yes' if c['learner'] else 'no':>8} {c['measured']:>9,.0f}"
                f" {c['simulated']:>10,.0f} {c['error']:>+7.1%}{_or_dash(c['lag_measured'], '.1f'):>12}"
                f"{_or_dash(c['lag_simulated'], '.1f'):>11}{'  (fitted to)' if c['fitted'] else ''}"
            )
        if result.get("other_settings"):
            lines.append(f"The points were measured under other settings: {'; '.join(result['other_settings'])} here.")
        lines.append(result["verdict"])
    if "caution" in result:
        lines.insert(0, result["caution"])
    return "\n".join(lines)


def _fit_text(found: dict[str, Any]) -> str:
    intervals = found["intervals"] or {}
    return ", ".join(
        f"{name} {value:,.4g}"
        + (f" ({intervals[name][0]:,.4g} to {intervals[name][1]:,.4g})" if name in intervals else " (no interval)")
        for name, value in found["parameters"].items()
    )


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
