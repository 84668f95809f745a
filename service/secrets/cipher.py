"""How a secret is sealed: encrypted and authenticated (Fernet) together with the place it is for.

A sealed value that is moved to another project or name does not open.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.fernet import Fernet, InvalidToken

_KEY_BYTES = 32
_KEY_ID_LENGTH = 16


class KeyUnusable(Exception):
    """A key is not valid; the message does not contain it."""


class SecretUnreadable(Exception):
    """A sealed value does not open; the message is written for the owner of the secret."""


@dataclass(frozen=True)
class Sealed:
    """A value that only the key named by ``key_id`` opens."""

    token: bytes = field(repr=False)
    key_id: str


class Cipher:
    """Seals with the first of its keys, and opens what any of them has sealed."""

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys:
            raise KeyUnusable("expected at least one key, saw none")
        self._keys = {_key_id(key): Fernet(key) for key in keys}
        self.key_id = _key_id(keys[0])  #: of the key that seals

    def seal(self, value: str, *, project: str, name: str) -> Sealed:
        """Return the value, sealed for this name of this project."""
        content = json.dumps({"project": project, "name": name, "value": value})
        return Sealed(self._keys[self.key_id].encrypt(content.encode()), self.key_id)

    def open(self, sealed: Sealed, *, project: str, name: str) -> str:
        """Return the value. Raises SecretUnreadable: no such key, damaged, or of another place."""
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise SecretUnreadable(
                f"{name} was sealed with key {sealed.key_id}, which the service no longer has; "
                "store it again"
            )
        try:
            content = json.loads(key.decrypt(sealed.token))
        except InvalidToken as error:
            raise SecretUnreadable(
                f"the stored value of {name} is corrupt; store it again"
            ) from error
        if (content["project"], content["name"]) != (project, name):
            raise SecretUnreadable(f"{name} was sealed for another project or name; store it again")
        value: str = content["value"]
        return value


def new_key() -> str:
    """A key of 256 random bits."""
    return Fernet.generate_key().decode()


def _key_id(key: str) -> str:
    """A name for the key that reveals nothing about it. Raises KeyUnusable."""
    try:
        content = base64.b64decode(key.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        content = b""
    if len(content) != _KEY_BYTES:
        raise KeyUnusable(
            f"expected a key of {_KEY_BYTES} bytes as URL-safe base64, saw {len(key)} other "
            "characters"
        )
    return hashlib.sha256(content).hexdigest()[:_KEY_ID_LENGTH]
