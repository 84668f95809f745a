"""Which files below the allowed folders match a pattern.

Not ``glob``: that looks into whatever a pattern leads to, and what it finds tells names of folders
that nobody opened. Here every link and every ``..`` is judged before it is followed.
"""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from roadless.worker.data.sources.patterns import MAX_LOOKED_AT, before_magic, too_many
from roadless.worker.errors import DataInvalid

#: Links on the way to one file, as in the kernel: links may lead in circles.
MAX_LINKS = 40

_ANY_FOLDERS = "**"


class RequireAllowed(Protocol):
    """Raises DataForbidden unless a path, with its links resolved, is in an allowed folder."""

    def __call__(self, path: str, *, shown: str) -> None:
        """Check it; ``shown``: what the message calls it."""


@dataclass(frozen=True)
class _Place:
    """Where a walk has come to."""

    name: str  #: as the pattern leads there
    path: str  #: without links
    is_folder: bool
    at: int  #: the part of the pattern that is next
    num_links: int = 0


class LocalPattern:
    """A pattern over the paths of this node; ``**`` follows links, as the others do."""

    def __init__(self, pattern: str, *, require_allowed: RequireAllowed) -> None:
        self._pattern = pattern
        self._start = before_magic(pattern)
        self._parts = _parts(pattern[len(self._start) :])
        self._require_allowed = require_allowed
        self._num_entries = 0

    def matches(self) -> Iterator[str]:
        """Yield everything but folders that matches, in no order.

        Raises DataForbidden where the pattern leads out of the allowed folders, whether or not
        anything is there, and DataInvalid past MAX_LOOKED_AT.
        """
        self._require_allowed(self._start or ".", shown=self._pattern)
        start = os.path.realpath(self._start or ".")
        waiting = [_Place(self._start, start, is_folder=os.path.isdir(start), at=0)]
        seen = set(waiting)
        while waiting:
            for place in self._next(waiting.pop()):
                is_last = place.at == len(self._parts)
                if place.is_folder == is_last or place in seen:
                    continue
                seen.add(place)
                if is_last:
                    yield place.name
                else:
                    waiting.append(place)

    def _next(self, place: _Place) -> Iterator[_Place]:
        part, then = self._parts[place.at], place.at + 1
        if part == _ANY_FOLDERS:
            yield _Place(place.name, place.path, True, then, place.num_links)
            yield from self._entered(place, "*", at=place.at)
        elif glob.has_magic(part):
            yield from self._entered(place, part, at=then)
        elif os.path.lexists(os.path.join(place.path, part)):
            yield self._followed(place, part, at=then)

    def _entered(self, place: _Place, part: str, *, at: int) -> Iterator[_Place]:
        """The entries of a folder that match the part; a folder that cannot be read has none."""
        is_match = re.compile(fnmatch.translate(part)).match
        with suppress(OSError), os.scandir(place.path) as entries:
            for entry in entries:
                self._count()
                if not is_match(entry.name) or (entry.name[0] == "." and part[0] != "."):
                    continue
                if not entry.is_symlink():
                    name = os.path.join(place.name, entry.name)
                    yield _Place(name, entry.path, entry.is_dir(), at, place.num_links)
                elif place.num_links < MAX_LINKS:
                    yield self._followed(place, entry.name, at=at)

    def _followed(self, place: _Place, part: str, *, at: int) -> _Place:
        """The entry of that name, which may be a link or ``..``."""
        name, there = os.path.join(place.name, part), os.path.join(place.path, part)
        self._require_allowed(there, shown=name)
        path, num_links = os.path.realpath(there), place.num_links + os.path.islink(there)
        return _Place(name, path, os.path.isdir(path), at, num_links)

    def _count(self) -> None:
        self._num_entries += 1
        if self._num_entries > MAX_LOOKED_AT:
            raise DataInvalid(too_many(self._pattern))


def _parts(rest: str) -> list[str]:
    """The parts of a pattern; an empty last one is a folder, and no file."""
    *folders, last = rest.split("/")
    parts = [*filter(None, folders), last]
    once = [part for i, part in enumerate(parts) if parts[i : i + 2] != [_ANY_FOLDERS] * 2]
    return [*once, "*"] if last == _ANY_FOLDERS else once
