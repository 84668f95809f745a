"""After a change of keys, the service reseals at its start what an older key has sealed."""

from dataclasses import dataclass

from roadless.service.db.session import Database
from roadless.service.db.tables import SecretRow
from roadless.service.secrets import store
from roadless.service.secrets.cipher import Cipher, Sealed, SecretUnreadable

_BATCH = 100


@dataclass(frozen=True)
class Rotated:
    """How many secrets are sealed with the first key now, and how many no key opens."""

    num_sealed: int = 0
    num_unreadable: int = 0


def rotate(db: Database, cipher: Cipher) -> Rotated:
    """Seal every secret with the first key; what does not open stays as it is. Call it alone."""
    num_sealed = num_unreadable = 0
    after = ("", "")
    while True:
        with db.write() as session:
            rows = store.sealed_otherwise(session, cipher.key_id, after=after, limit=_BATCH)
            for row in rows:
                if _seal_anew(row, cipher):
                    num_sealed += 1
                else:
                    num_unreadable += 1
        if len(rows) < _BATCH:
            return Rotated(num_sealed, num_unreadable)
        after = (rows[-1].project, rows[-1].name)


def _seal_anew(row: SecretRow, cipher: Cipher) -> bool:
    place = {"project": row.project, "name": row.name}
    try:
        value = cipher.open(Sealed(row.sealed, row.key_id), **place)
    except SecretUnreadable:
        return False
    sealed = cipher.seal(value, **place)
    row.sealed, row.key_id = sealed.token, sealed.key_id
    return True
