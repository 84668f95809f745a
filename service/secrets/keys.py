"""Where the keys come from: the operator's setting, or a file in the home folder."""

import os
from pathlib import Path

from roadless.service.secrets.cipher import Cipher, KeyUnusable, new_key
from roadless.service.settings import Settings

KEY_FILE = "secrets.key"


def open_cipher(settings: Settings) -> Cipher:
    """Return the cipher with the keys of ``ROADLESS_SECRETS_KEY``, else of the key file.

    The file is created if absent. Raises KeyUnusable, which says where the key is from.
    """
    if settings.secrets_key is not None:
        return _cipher(settings.secrets_key.get_secret_value(), "ROADLESS_SECRETS_KEY")
    path = settings.home_dir / KEY_FILE
    if not path.exists():
        _write(path, new_key())
    return _cipher(path.read_text(), str(path))


def _cipher(text: str, source: str) -> Cipher:
    try:
        return Cipher([key.strip() for key in text.split(",") if key.strip()])
    except KeyUnusable as error:
        raise KeyUnusable(f"{source}: {error}") from error


def _write(path: Path, key: str) -> None:
    """Write the whole file or none, and flush it before anything is sealed with it."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(descriptor)
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
