"""Patterns over paths: ``*`` and ``?`` within a folder, ``**`` across folders, ``[...]``."""

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from roadless.worker.errors import DataInvalid

#: A set of characters, as fnmatch reads it: ``[]`` and ``[!]`` are none yet, and ``[]]`` is one.
_CLASS = re.compile(r"\[!?+\]?+[^\]]*\]")
#: Names that are looked at for one pattern: some seconds on a local disk.
MAX_LOOKED_AT = 1_000_000


def has_magic(pattern: str) -> bool:
    """Whether the path is a pattern."""
    return glob.has_magic(pattern)


def before_magic(pattern: str) -> str:
    """Return the folder that contains every match; a path without magic is returned as it is."""
    if not glob.has_magic(pattern):
        return pattern
    first = min(pattern.find(sign) for sign in "*?[" if sign in pattern)
    return os.path.dirname(pattern[:first])


def readings(pattern: str) -> tuple[str, ...]:
    """Return the pattern, and how it is written if its brackets are meant as they are.

    Files are called ``data[v2].csv``, and folders ``run[1]``.

    >>> readings("run[1]/*.csv")
    ('run[1]/*.csv', 'run[[]1]/*.csv')
    """
    return (pattern, pattern.replace("[", "[[]")) if "[" in pattern else (pattern,)


def only_reading(found: Iterable[Sequence[str]], *, pattern: str) -> Sequence[str]:
    """Return what the one reading of the pattern that matches anything matches.

    Raises DataInvalid when both of its readings match files, and not the same ones.
    """
    matched = [names for names in found if names]
    if any(names != matched[0] for names in matched):
        raise DataInvalid(
            f"expected {pattern} to have one meaning, saw {matched[0][0]}, which it matches, and "
            f"{matched[-1][0]}, whose name has these brackets; write [[] for a bracket, or name "
            "the files"
        )
    return matched[0] if matched else ()


def too_many(pattern: str) -> str:
    """Return what to say of a pattern past MAX_LOOKED_AT."""
    return (
        f"expected at most {MAX_LOOKED_AT} names to look at for {pattern}, saw more; name a folder "
        "with fewer"
    )


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a whole path matches.

    Not a regular expression of many stars, whose tries grow with their power: this takes the length
    of the pattern times that of the path.

    >>> matcher("a/**/*.csv")("a/b/c/d.csv"), matcher("a/*.csv")("a/b/d.csv")
    (True, False)
    """
    parts = re.split(rf"(\*\*/|\*\*|\*|\?|{_CLASS.pattern})", pattern)
    steps = [_step(part) for part in parts if part]

    def matches(path: str) -> bool:
        ends = {0}  # of what the steps so far can match
        for step in steps:
            ends = step(path, ends) if ends else ends
        return len(path) in ends

    return matches


_Step = Callable[[str, set[int]], set[int]]


def _step(part: str) -> _Step:
    match part:
        case "**/":
            return _folders
        case "**":
            return lambda path, starts: set(range(min(starts), len(path) + 1))
        case "*":
            return _within_folder
        case "?":
            return _one_of(r"[^/]")
        case _ if _CLASS.fullmatch(part):
            return _one_of(fnmatch.translate(part))
        case _:
            return partial(_literal, part)


def _folders(path: str, starts: set[int]) -> set[int]:
    """None, or any number of them with the slash behind."""
    return starts | {at + 1 for at in range(min(starts), len(path)) if path[at] == "/"}


def _within_folder(path: str, starts: set[int]) -> set[int]:
    ends: set[int] = set()
    for start in starts:
        end = start
        while end not in ends:
            ends.add(end)
            end += end < len(path) and path[end] != "/"
    return ends


def _one_of(characters: str) -> _Step:
    is_one = re.compile(characters).fullmatch
    return lambda path, starts: {start + 1 for start in starts if is_one(path[start : start + 1])}


def _literal(text: str, path: str, starts: set[int]) -> set[int]:
    return {start + len(text) for start in starts if path.startswith(text, start)}
