"""What the replay of a run holds, by its journal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drqn_dist.codec import decode_rewards
from drqn_dist.config import TrainConfig
from drqn_dist.errors import FragmentError
from drqn_dist.experiments.replay_read import (
    Entry,
    ShardJournal,
    entry_of,
    episodes,
    is_complete,
    open_journals,
    stored,
)
from drqn_dist.experiments.run_folder import open_run

MOST_COLUMNS = 6
"""Shards that a table shows beside one another."""
IN_PLACE, ANEW, NOT_AT_ALL = "in place", "anew", "not at all"
TO_CHECKPOINT = "in place, or anew without what is newer than the checkpoint"
"""In serial mode, where the whole run goes back to it."""


@dataclass
class _Shard:
    """What was read of one shard."""

    journal: ShardJournal
    entries: list[Entry] = field(default_factory=list)
    returns: dict[int, float] = field(default_factory=dict)
    """Sum of rewards of each fragment, by its serial number."""
    unreadable: int = 0
    """Fragments that are no fragments, or were not cut as this run does."""

    def read(self, config: TrainConfig) -> None:
        limit = config.replay.max_fragment_bytes
        for place, record in self.journal.records():
            try:
                entry = entry_of(place, record, limit, config.window)
                rewards = decode_rewards(record.payload, limit)
            except FragmentError:
                self.unreadable += 1
                continue
            self.entries.append(entry)
            self.returns[entry.serial] = float(rewards.sum(dtype="float64"))


def inspect_replay(run: Path) -> dict[str, Any]:
    """Reads the journals of a run, and its fragments but for their observations; changes nothing.

    Returns:
        For JSON: `run`, `shards` (an object for each) and `together`; the keys are those of `_summary`.

    Raises:
        RunFolderError: it is no run, has no journal, or that cannot be read.
    """
    folder = open_run(run)
    with open_journals(folder) as journals:
        shards = [_Shard(journal) for journal in journals]
        for shard in shards:
            shard.read(folder.config)
        of_config = folder.config.replay.shards if folder.config.mode == "ray" else 1
        described = [
            {"shard": shard.journal.name}
            | _summary([shard], folder.config)
            | _restart(shard, folder.config, len(shards), of_config)
            for shard in shards
        ]
        together = _summary(shards, folder.config)
        ways = {shard["restart"] for shard in described}
        together["restart"] = ways.pop() if len(ways) == 1 else "differs by shard"
        together["restart_because"] = sorted({why for shard in described for why in shard["restart_because"]})
        return {"run": str(run), "shards": described, "together": together}


def _summary(shards: Sequence[_Shard], config: TrainConfig) -> dict[str, Any]:
    """Counts of fragments and steps as the replay holds them; `evicted_*` are still on the disk.

    `episodes` counts those that are complete, those whose beginning alone is there (they go on, or parts of them never
    came), and those whose beginning is gone. Bytes are those of compressed fragments, but for `disk_bytes`.
    """
    held = [entry for shard in shards for entry in stored(shard.entries)]
    steps = sum(entry.header.num_steps for entry in held)
    on_disk = sum(entry.header.num_steps for shard in shards for entry in shard.entries)
    stored_bytes = sum(entry.num_bytes for entry in held)
    complete, begun, cut = 0, 0, 0
    complete_steps, complete_return = 0, 0.0
    for shard in shards:
        for episode in episodes(stored(shard.entries), config.window.fragment).values():
            if is_complete(episode):
                complete += 1
                complete_steps += sum(entry.header.num_steps for entry in episode.values())
                complete_return += sum(shard.returns[entry.serial] for entry in episode.values())
            elif 0 in episode:
                begun += 1
            else:
                cut += 1
    versions = [entry.header.weight_version for entry in held]
    ages = [shard.journal.snapshot_age_s for shard in shards if shard.journal.snapshot_age_s is not None]
    return {
        "segments": sum(len(shard.journal.segments) for shard in shards),
        "disk_bytes": sum(shard.journal.num_bytes + shard.journal.snapshot_bytes for shard in shards),
        "fragments": len(held),
        "steps": steps,
        "stored_bytes": stored_bytes,
        "bytes_per_step": stored_bytes / steps if steps else None,
        "evicted_fragments": sum(len(shard.entries) for shard in shards) - len(held),
        "evicted_steps": on_disk - steps,
        "episodes": {"complete": complete, "begun": begun, "without_beginning": cut},
        "complete_steps": complete_steps,
        "mean_return": complete_return / complete if complete else None,
        "actors": len({entry.header.actor_id for entry in held}),
        "environments": len({(entry.header.actor_id, entry.header.env_id) for entry in held}),
        "weight_versions": [min(versions), max(versions)] if versions else None,
        "observations": sorted(
            {f"{entry.header.observation_type} {list(entry.header.observation_shape)}" for entry in held}
        ),
        "windows": sum(entry.num_windows for entry in held),
        "windows_with_priority": sum(_known(shard) for shard in shards),
        "snapshot_age_s": max(ages) if ages else None,
        "snapshot_damaged": any(shard.journal.snapshot_fault for shard in shards),
        "torn_bytes": sum(shard.journal.contents.torn_bytes for shard in shards),
        "damaged_bytes": sum(shard.journal.contents.damaged_bytes for shard in shards),
        "missing_fragments": sum(shard.journal.contents.missing for shard in shards),
        "unreadable_fragments": sum(shard.unreadable for shard in shards),
    }


def _known(shard: _Shard) -> int:
    """Windows of stored fragments whose priority the snapshot knows."""
    snapshot = shard.journal.snapshot
    if snapshot is None:
        return 0
    return sum(len(snapshot.weights_of(entry.first_window, entry.num_windows)) for entry in stored(shard.entries))


def _restart(shard: _Shard, config: TrainConfig, found: int, expected: int) -> dict[str, Any]:
    """How a replay that is started again would go on from this journal, and why not in place."""
    contents = shard.journal.contents
    if not config.replay.journal:
        return {"restart": NOT_AT_ALL, "restart_because": ["replay.journal is false now"]}
    if found != expected:
        return {"restart": NOT_AT_ALL, "restart_because": [f"the run has {expected} shards now, but {found} journals"]}
    reasons = {
        "it holds no fragment": not shard.entries,
        "the machine was started again since, or it is another one": not contents.this_boot,
        "bytes are damaged": bool(contents.damage),
        "fragments are missing": contents.missing > 0,
        "its files are of several logs": not contents.one_log,
        "fragments do not fit this run's configuration": shard.unreadable > 0,
    }
    because = [reason for reason, holds in reasons.items() if holds]
    unharmed = TO_CHECKPOINT if config.mode == "serial" else IN_PLACE
    return {"restart": ANEW if because else unharmed, "restart_because": because}


def table(inspected: dict[str, Any]) -> str:
    """The same to be read: a line for each property, a column for each shard (few of them) and for all."""
    shards = inspected["shards"]
    columns = [(f"shard {shard['shard']}", shard) for shard in shards] if 1 < len(shards) <= MOST_COLUMNS else []
    columns.append(("together" if len(shards) > 1 else "replay", inspected["together"]))
    cells = [["", *(name for name, _ in columns)]]
    cells += [[label, *(show(of) for _, of in columns)] for label, show in _ROWS]
    widths = [max(len(row[index]) for row in cells) for index in range(len(cells[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    of_shards = [inspected["together"]] if len({shard["restart"] for shard in shards}) == 1 else shards
    for of in of_shards:
        name = f"shard {of['shard']}: " if "shard" in of else ""
        because = f" ({'; '.join(of['restart_because'])})" if of["restart_because"] else ""
        lines.append(f"{name}a restart would go on {of['restart']}{because}")
    if len(shards) > MOST_COLUMNS:
        lines.append(f"{len(shards)} shards; --json tells each")
    return "\n".join(line.rstrip() for line in lines)


def _count(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda of: f"{of[name]:,}"


def _pair(first: str, second: str) -> Callable[[dict[str, Any]], str]:
    return lambda of: f"{of[first]:,} + {of[second]:,}"


def _number(value: float | None, unit: str = "") -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:,.1f}{unit}"


_ROWS: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
    ("segments", _count("segments")),
    ("on the disk, MB", lambda of: f"{of['disk_bytes'] / 1e6:,.1f}"),
    ("fragments stored + evicted but on disk", _pair("fragments", "evicted_fragments")),
    ("steps stored + evicted but on disk", _pair("steps", "evicted_steps")),
    ("compressed bytes per step", lambda of: _number(of["bytes_per_step"])),
    ("episodes complete", lambda of: f"{of['episodes']['complete']:,}"),
    ("  their steps", _count("complete_steps")),
    ("  their mean return", lambda of: _number(of["mean_return"])),
    ("episodes begun", lambda of: f"{of['episodes']['begun']:,}"),
    ("episodes without their beginning", lambda of: f"{of['episodes']['without_beginning']:,}"),
    ("actors / environments", lambda of: f"{of['actors']:,} / {of['environments']:,}"),
    ("weight versions", lambda of: " to ".join(f"{v:,}" for v in of["weight_versions"] or []) or "-"),
    ("observations", lambda of: " and ".join(of["observations"]) or "-"),
    ("windows, of known priority", lambda of: f"{of['windows']:,}, {of['windows_with_priority']:,}"),
    (
        "priorities' snapshot",
        lambda of: "damaged" if of["snapshot_damaged"] else _number(of["snapshot_age_s"], " s old"),
    ),
    ("torn tail, bytes", _count("torn_bytes")),
    ("damaged bytes", _count("damaged_bytes")),
    ("fragments missing + unreadable", _pair("missing_fragments", "unreadable_fragments")),
]
