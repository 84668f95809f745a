"""The files that a saved model's own descriptions name: they must lie beside them.

transformers (5.23) joins such names to the folder, whatever they are. So an index of weights could
name those of any model that the node can read, and they would be in the job's checkpoints.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from roadless.worker.errors import ModelForbidden

_CONFIG = "config.json"


def require_own_files(folder: Path, *, shown: str) -> None:
    """Raise ModelForbidden if the folder names a file elsewhere, whether or not one is there."""
    for source, name in _named(folder):
        if not isinstance(name, str) or os.path.basename(name) != name:
            raise ModelForbidden(
                f"expected {source} of {shown} to name files of its folder, saw {name!r}"
            )


def _named(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.glob("*.index.json")):
        names = _content(path).get("weight_map")
        if isinstance(names, dict):
            yield from ((path.name, name) for name in names.values())
    config = _content(folder / _CONFIG)
    if (weights := config.get("transformers_weights")) is not None:
        yield _CONFIG, weights
    versions = config.get("configuration_files")
    if isinstance(versions, list):
        yield from ((_CONFIG, name) for name in versions)


def _content(path: Path) -> dict[str, Any]:
    """What is in it, if it can be read; what is wrong with it, the library says."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
