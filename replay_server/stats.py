"""What a replay holds and has done, in numbers; those of its shards add up."""

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class ReplayStats:
    """What the replay holds and has done."""

    stored_steps: int
    stored_bytes: int
    """Compressed."""
    fragments: int
    windows: int
    """Windows that can be drawn now."""
    inserted_steps: int
    """Over the whole run, like all counts below."""
    sampled_steps: int
    counted_steps: int
    """Inserted steps that count towards the ratio; those that fill the replay to `min_steps` do not."""
    duplicates: int
    """Fragments that had come before."""
    missing: int
    """Fragments that have not come (yet) though a later one of the same environment has."""
    rejected: int
    """Pushes that were not a valid fragment."""
    late_priorities: int
    """Priorities that came back after their window was evicted."""
    journal_bytes: int = 0
    """On the disk; none without a journal."""
    journal_missed: int = 0
    """Fragments that the journal could not take, since this replay was started."""

    @property
    def samples_per_insert(self) -> float:
        """Steps sampled per inserted step that counts."""
        return self.sampled_steps / max(1, self.counted_steps)


def total_stats(parts: Sequence[ReplayStats]) -> ReplayStats:
    """What the shards of one replay hold and have done together."""
    return ReplayStats(**{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(ReplayStats)})
