"""Modules whose libraries a fork server must not load: imported by the rank that needs them.

Some start threads, which a forking process must not have, and all cost time that few jobs need.
"""

import importlib
from typing import Any, Literal

from roadless.worker.errors import DataNotFound

LazyModule = Literal[
    "formats.arrow_rows", "prepared.bpe", "records.hub", "formats.images", "sources.object_files"
]


def lazy_import(name: LazyModule) -> Any:
    """Return the module of this package. Raises DataNotFound where its library is not installed."""
    try:
        return importlib.import_module(f"roadless.worker.data.{name}")
    except ModuleNotFoundError as error:
        raise DataNotFound(
            f"expected the package {error.name} on this node (roadless[data]), saw none"
        ) from error
