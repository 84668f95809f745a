"""Patterns over paths: ``*`` and ``?`` within a folder, ``**`` across folders, ``[...]``."""

import glob
import os
import re


def has_magic(pattern: str) -> bool:
    """Whether the path is a pattern."""
    return glob.has_magic(pattern)


def before_magic(pattern: str) -> str:
    """Return the folder that every match lies in; a path without magic is returned as it is."""
    if not glob.has_magic(pattern):
        return pattern
    first = min(pattern.find(sign) for sign in "*?[" if sign in pattern)
    return os.path.dirname(pattern[:first])


def matcher(pattern: str) -> re.Pattern[str]:
    """Return what matches the whole of a path.

    >>> bool(matcher("a/**/*.csv").fullmatch("a/b/c/d.csv"))
    True
    >>> bool(matcher("a/*.csv").fullmatch("a/b/d.csv"))
    False
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return re.compile("".join(map(_translated, parts)))


def _translated(part: str) -> str:
    if part.startswith("[") and part.endswith("]") and len(part) > 2:
        return f"[{part[1:-1].replace('!', '^', 1) if part[1] == '!' else part[1:-1]}]"
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return known.get(part) or re.escape(part)
