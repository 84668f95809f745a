"""Keeps the library ``datasets`` within a data set while it looks for the files of one.

The description of a data set may name files by any path, URL or pattern, and the library (5.2.0)
looks for them wherever that is: it lists folders of the node, and sends requests to hosts. So each
pattern is judged before the library resolves it, and what it finds before it opens any.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import config, data_files

from roadless.worker.data.sources.access import is_below
from roadless.worker.data.sources.patterns import before_magic
from roadless.worker.errors import DataForbidden

_DESCRIPTIONS = (
    config.REPOCARD_FILENAME,
    config.REPOYAML_FILENAME,
    config.DATASETDICT_INFOS_FILENAME,
)


@contextmanager
def kept_inside(path: str) -> Iterator[None]:
    """Within the block, the library finds files in the data set at ``path`` only.

    ``path``: an absolute folder, or an id on the hub. Raises DataForbidden, whether or not anything
    is where a description leads.
    """
    resolve = data_files.resolve_pattern

    def resolve_inside(pattern: str, base_path: str, *args: Any, **options: Any) -> list[str]:
        place = pattern if "://" in pattern else os.path.join(base_path, pattern)
        require_inside([before_magic(place) if os.path.isabs(path) else place], path=path)
        found: list[str] = resolve(pattern, base_path, *args, **options)
        require_inside(found, path=path)
        return found

    if os.path.isabs(path):
        require_inside([os.path.join(path, name) for name in _DESCRIPTIONS], path=path)
    data_files.resolve_pattern = resolve_inside
    try:
        yield
    finally:
        data_files.resolve_pattern = resolve


def require_inside(files: Sequence[str], *, path: str) -> None:
    """Raise DataForbidden unless all files, by path or URL, lie in the data set."""
    for file in files:
        if not (_is_of_folder(file, path) if os.path.isabs(path) else _is_of_hub(file, path)):
            raise DataForbidden(f"expected the files of {path} to lie in it, saw {file}")


def _is_of_folder(file: str, path: str) -> bool:
    return "://" not in file and "::" not in file and is_below(file, (path,))


def _is_of_hub(file: str, path: str) -> bool:
    of_it = tuple(f"hf://datasets/{path}{sign}" for sign in "@/")
    return file.startswith(of_it) and "::" not in file and ".." not in file.split("/")
