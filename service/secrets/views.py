"""Rows to answers."""

from roadless.service.contract.secrets import Secret
from roadless.service.db.tables import SecretRow
from roadless.service.secrets.cipher import Cipher, Sealed, SecretUnreadable


def secret_resource(row: SecretRow, *, cipher: Cipher) -> Secret:
    """The secret as the API shows it: everything but the value."""
    return Secret(
        name=row.name,
        is_readable=_is_readable(row, cipher),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _is_readable(row: SecretRow, cipher: Cipher) -> bool:
    try:
        cipher.open(Sealed(row.sealed, row.key_id), project=row.project, name=row.name)
    except SecretUnreadable:
        return False
    return True
