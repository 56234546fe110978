"""A disk that fails, is cut off or crashes where a test wants it to."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from drqn_dist import files

Content = Literal["lost", "half", "zeros", "other", "whole"]
"""What a crash leaves of bytes that were not synced: their length may be there without them."""
CONTENTS: tuple[Content, ...] = ("lost", "half", "zeros", "other", "whole")


class Call(NamedTuple):
    """Something that was asked of the disk."""

    what: Literal["mkdir", "create", "write", "sync", "rename", "unlink", "sync folder"]
    path: Path
    to: Path = Path()
    content: bytes = b""


class Disk:
    """Stands between `files.write_atomically`, `pathlib` and the disk: does what is asked, in order, and notes it."""

    def __init__(self, before: Callable[[int, Call], None] = lambda number, call: None) -> None:
        """
        Args:
            before: is asked before each call, with its number; may raise instead.
        """
        self.calls: list[Call] = []
        """Those that were done."""
        self._before = before
        self._asked = itertools.count()

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on; until the patch is undone."""
        fsync, replace, unlink, mkdir = os.fsync, os.replace, os.unlink, os.mkdir

        def synced(file: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{file}"))
            self.note(Call("sync folder" if path.is_dir() else "sync", path))
            fsync(file)

        def renamed(path: Path, to: Path) -> None:
            self.note(Call("rename", path, to))
            replace(path, to)

        def removed(path: Path) -> None:
            if os.path.lexists(path):
                self.note(Call("unlink", path))
            unlink(path)

        def made(path: Path, *mode: Any) -> None:
            if path.parent.exists() and not path.exists():
                self.note(Call("mkdir", path))
            mkdir(path, *mode)

        for name, call in {"fsync": synced, "replace": renamed, "unlink": removed, "mkdir": made}.items():
            monkeypatch.setattr(os, name, call)
        monkeypatch.setattr(files, "open", lambda path, mode: _Writer(self, path, mode), raising=False)

    def note(self, call: Call) -> None:
        self._before(next(self._asked), call)
        self.calls.append(call)


class _Writer(io.BufferedWriter):
    def __init__(self, disk: Disk, path: Path, mode: str) -> None:
        assert mode == "wb"
        disk.note(Call("create", path))
        super().__init__(io.FileIO(path, "w"))
        self._disk, self._path = disk, path

    def write(self, content: Any) -> int:
        try:
            self._disk.note(Call("write", self._path, content=bytes(content)))
        except OSError:  # a part of it fitted
            super().write(content[: len(content) // 2])
            raise
        return super().write(content)


class _Change(NamedTuple):
    """Of a folder's names: `gone` is no more, `new` leads to the file of that number."""

    gone: str = ""
    new: str = ""
    number: int = -1


@dataclass
class _Folder:
    """Names and the files to which they lead (-1: a folder), as on the disk, and what came since it was synced."""

    names: dict[str, int] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)


def crashes(calls: list[Call], root: Path) -> Iterator[dict[Path, bytes]]:
    """What a machine may find under `root` after it crashed at the end of these calls: files by their path from there.

    What was synced is there. Of what was not, anything may be: of the bytes of a file as `Content` says, and of the
    names that were made, changed or removed in a folder any selection. Folders that were made are there only where
    their parent was synced since.
    """
    written, safe = list[bytes](), list[bool]()
    number_of, folders = dict[Path, int](), {root: _Folder()}
    for what, path, to, content in calls:
        pending = folders[path.parent].pending if path.parent in folders else []
        if what == "mkdir":
            folders[path] = _Folder()
            pending.append(_Change(new=path.name))
        elif what == "create":
            number_of[path] = len(written)
            written.append(b"")
            safe.append(False)
            pending.append(_Change(new=path.name, number=number_of[path]))
        elif what == "write":
            written[number_of[path]] += content
            safe[number_of[path]] = False
        elif what == "sync":
            safe[number_of[path]] = True
        elif what == "rename":
            number_of[to] = number_of.pop(path)
            pending.append(_Change(path.name, to.name, number_of[to]))
        elif what == "unlink":
            del number_of[path]
            pending.append(_Change(gone=path.name))
        elif path in folders:
            folders[path] = _Folder(_after(folders[path].names, folders[path].pending))
    yield from _layouts(folders, written, safe, root)


def _after(names: dict[str, int], changes: Iterable[_Change]) -> dict[str, int]:
    names = dict(names)
    for gone, new, number in changes:
        names.pop(gone, None)
        if new:
            names[new] = number
    return names


def _selections(changes: list[_Change]) -> Iterator[Iterable[_Change]]:
    for chosen in itertools.product((True, False), repeat=len(changes)):
        yield itertools.compress(changes, chosen)


def _layouts(
    folders: dict[Path, _Folder], written: list[bytes], safe: list[bool], root: Path
) -> Iterator[dict[Path, bytes]]:
    tables = [[_after(folder.names, some) for some in _selections(folder.pending)] for folder in folders.values()]
    for names in itertools.product(*tables):
        there = dict(zip(folders, names, strict=True))
        for content in CONTENTS:
            yield {
                (place / name).relative_to(root): _left(written[number], safe[number], content)
                for place, table in there.items()
                if _reached(place, there, root)
                for name, number in table.items()
                if number >= 0
            }


def _reached(place: Path, there: dict[Path, dict[str, int]], root: Path) -> bool:
    return place == root or (place.name in there.get(place.parent, {}) and _reached(place.parent, there, root))


def _left(content: bytes, safe: bool, how: Content) -> bytes:
    if safe or how == "whole":
        return content
    return {
        "lost": b"",
        "half": content[: len(content) // 2],
        "zeros": bytes(len(content)),
        "other": content[::-1],
    }[how]
