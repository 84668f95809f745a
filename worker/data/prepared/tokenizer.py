"""How texts become tokens: bytes as they are, or the tokens of a ``tokenizer.json``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from roadless.worker.data.lazy_import import lazy_import
from roadless.worker.data.sources.local_files import allowed_path
from roadless.worker.data.sources.source_file import Identity
from roadless.worker.errors import DataNotFound
from roadless.worker.rank_launch import DataSources

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """Encodes texts as numbers below ``vocabulary``."""

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""

    @property
    def separator(self) -> int:
        """The token after each text."""

    @property
    def identity(self) -> Identity:
        """What distinguishes it from any other."""

    def encode(self, texts: Sequence[bytes]) -> Sequence[NDArray[Any]]:
        """Return the tokens of each text, which is UTF-8."""


class Bytes:
    """Every byte is a token. Texts are separated by a zero, which no text contains."""

    vocabulary = 256
    separator = 0
    identity: Identity = {"tokenizer": "bytes"}

    def encode(self, texts: Sequence[bytes]) -> Sequence[NDArray[Any]]:
        """Return views of the bytes."""
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]


def load(path: str, *, separator: str | None, sources: DataSources) -> Tokenizer:
    """Return the tokenizer. Raises the JobFailed errors named ``Data...``.

    ``path``: ``bytes``, a ``tokenizer.json``, or a folder with one, as transformers saves it.
    ``separator``: the token between texts; None: what the folder names as the end of text.
    """
    if path == "bytes":
        return Bytes()
    found = allowed_path(path, sources=sources)
    is_folder = os.path.isdir(found)
    file = allowed_path(str(found / TOKENIZER_FILE), sources=sources) if is_folder else found
    allowed_path(str(config_beside(file)), sources=sources)
    if not os.path.isfile(file):
        raise DataNotFound(f"expected a {TOKENIZER_FILE} at {path}, saw none")
    loaded: Tokenizer = lazy_import("prepared.bpe").load(file, separator=separator, shown=path)
    return loaded


def narrowest(vocabulary: int) -> np.dtype[Any]:
    """The type that tokens are stored in."""
    return np.min_scalar_type(vocabulary - 1)


def config_beside(file: Path) -> Path:
    """Where transformers stores the roles of the tokenizer's tokens."""
    return file.with_name("tokenizer_config.json")
