"""Where the replay tells what it keeps, so that a record on disk can follow it."""

from typing import Protocol


class Journal(Protocol):
    """Follows the replay's contents; called under the replay's lock, so it must be quick.

    replay:  on each new fragment: journal.evict(as many as had to go); journal.append(payload)
    """

    def append(self, payload: bytes) -> None:
        """A fragment was stored, after all others."""
        ...

    def evict(self, fragments: int) -> None:
        """The oldest `fragments` fragments still stored are gone."""
        ...
