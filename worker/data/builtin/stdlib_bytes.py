"""The source of the running Python's standard library: a corpus that every machine has."""

import hashlib
import sysconfig
from pathlib import Path

import numpy as np

from roadless.worker.data.prepared.token_dataset import TokenString, TokenWindows
from roadless.worker.data.prepared.tokenizer import Bytes
from roadless.worker.errors import DataNotFound

_HELD_OUT_DIVISOR = 20  # the last 5 %


def load(*, context: int) -> TokenWindows:
    """Return windows over the ``*.py`` files at the top of the library, joined in name order.

    Its folders are left out, and with them ``test`` and ``site-packages``. The content differs
    between Python versions; the fingerprint says which one it was. Raises DataNotFound where Python
    was installed without its source.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    if not content:
        raise DataNotFound(f"expected the standard library's *.py files in {folder}, saw none")
    string = TokenString(
        tokens=np.frombuffer(content, dtype=np.uint8),
        num_train=len(content) - len(content) // _HELD_OUT_DIVISOR,
        vocabulary=Bytes.vocabulary,
        bytes_per_token=1.0,
        fingerprint=hashlib.sha256(content).hexdigest(),
        source="python_stdlib_bytes",
    )
    return TokenWindows(string, context=context)
