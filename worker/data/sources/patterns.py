"""Patterns over paths: ``*`` and ``?`` within a folder, ``**`` across folders, ``[...]``."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Sequence

from roadless.worker.errors import DataInvalid

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


def matcher(pattern: str) -> re.Pattern[str]:
    """Return a regular expression for whole paths.

    >>> bool(matcher("a/**/*.csv").fullmatch("a/b/c/d.csv"))
    True
    >>> bool(matcher("a/*.csv").fullmatch("a/b/d.csv"))
    False
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", pattern)
    return re.compile("".join(map(_translated, parts)))


def _translated(part: str) -> str:
    if part.startswith("[") and part.endswith("]"):
        return re.sub(r"^\(\?s:|\)\\[Zz]$", "", fnmatch.translate(part))
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return known.get(part) or re.escape(part)
