"""Tokenizers of the ``tokenizers`` library. Imported only by ranks that need it."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from roadless.worker.data.prepared.tokenizer import config_beside
from roadless.worker.data.sources.source_file import Identity
from roadless.worker.errors import DataInvalid, DataUnreadable


class Bpe:
    """A ``tokenizer.json``, used without the special tokens that it may put around a text."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, separator: int, sha256: str, shown: str
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        model = tokenizer.model
        self._may_drop = isinstance(model, tokenizers.models.BPE) and model.unk_token is None
        self._known: set[str] = set()
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.separator = separator
        self.vocabulary = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        self.identity: Identity = {"tokenizer": sha256, "separator": separator}

    def encode(self, texts: Sequence[bytes]) -> Sequence[NDArray[Any]]:
        """Return the tokens of each text. Raises DataInvalid where there is none for a word."""
        decoded = [text.decode() for text in texts]
        if self._may_drop:
            self._require_tokens(set().union(*map(set, decoded)))
        try:
            encoded = self._tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        except Exception as error:  # the library raises no narrower one
            raise DataInvalid(
                f"expected {self._shown} to have tokens for every text, saw: {error}; name a "
                "tokenizer that has one for unknown words"
            ) from error
        return [np.asarray(one.ids, dtype=np.uint32) for one in encoded]

    def _require_tokens(self, characters: set[str]) -> None:
        """Raise DataInvalid for a letter, digit or sign that the tokenizer would leave out.

        tokenizers 0.23 drops without a word what its BPE has no token for, unless it names one for
        the unknown. Blanks, accents and control characters are often left out on purpose.
        """
        for character in sorted(characters - self._known):
            tokens = self._tokenizer.encode(character, add_special_tokens=False).ids
            if not tokens and unicodedata.category(character)[0] in "LNPS":
                raise DataInvalid(
                    f"expected {self._shown} to have a token for every character, saw none for "
                    f"{character!r}, which it leaves out; name a tokenizer of bytes, or with an "
                    "unk_token"
                )
        self._known |= characters


def load(file: Path, *, separator: str | None, shown: str) -> Bpe:
    """Read the file. Raises DataInvalid if it is not a tokenizer or has no such separator."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataUnreadable(f"expected to read {shown}, saw: {error.strerror}") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no narrower one
        raise DataInvalid(f"expected a tokenizer at {shown}, saw: {error}") from error
    name = separator or _end_of_text(config_beside(file))
    if name is None:
        raise DataInvalid(
            f"expected data.separator, since {shown} names no end-of-text token; saw none"
        )
    number = tokenizer.token_to_id(name)
    if number is None:
        raise DataInvalid(f"expected the separator to be a token of {shown}, saw {name!r}")
    return Bpe(tokenizer, separator=number, sha256=hashlib.sha256(content).hexdigest(), shown=shown)


def _end_of_text(config: Path) -> str | None:
    try:
        token = json.loads(config.read_bytes()).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
