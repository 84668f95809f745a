"""What users can do with secrets, and which of them a job gets. Each is one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr
from sqlalchemy.orm import Session

from roadless.service.clock import utc_now
from roadless.service.contract.resources import ProblemError
from roadless.service.contract.secrets import MAX_SECRETS, NewSecret
from roadless.service.errors import Conflict, Invalid
from roadless.service.secrets import store
from roadless.service.secrets.cipher import Cipher, Sealed, SecretUnreadable


def put(session: Session, asked: NewSecret, *, project: str, name: str, cipher: Cipher) -> bool:
    """Keep a value; return whether its name is new. Raises Conflict beyond 100 of a project."""
    sealed = cipher.seal(asked.value.get_secret_value(), project=project, name=name)
    is_new = store.put(session, project=project, name=name, sealed=sealed, now=utc_now())
    if is_new and store.count(session, project) > MAX_SECRETS:
        raise Conflict(f"expected at most {MAX_SECRETS} secrets in a project, saw one more")
    return is_new


def require_known(session: Session, names: Sequence[str], *, project: str) -> None:
    """Raise Invalid unless the project has a secret of each name that a new job wants."""
    known = store.named(session, project, names)
    faults = tuple(
        ProblemError(
            pointer=f"/secrets/{index}",
            message=f"expected a secret of this project, saw {name!r}, which does not exist",
        )
        for index, name in enumerate(names)
        if name not in known
    )
    if faults:
        missing = ", ".join(name for name in names if name not in known)
        raise Invalid(f"expected secrets of this project, saw {missing}", errors=faults)


@dataclass(frozen=True)
class Handed:
    """What the ranks of a job get: values by name, and why others are not available."""

    values: dict[str, SecretStr]
    faults: list[str]


def hand_over(session: Session, names: Sequence[str], *, project: str, cipher: Cipher) -> Handed:
    """Open the secrets that a job names, for its ranks and nobody else."""
    rows = store.named(session, project, names)
    values, faults = {}, []
    for name in names:
        row = rows.get(name)
        if row is None:
            faults.append(f"{name} was deleted; put it again")
            continue
        try:
            value = cipher.open(Sealed(row.sealed, row.key_id), project=project, name=name)
        except SecretUnreadable as error:
            faults.append(str(error))
        else:
            values[name] = SecretStr(value)
    return Handed(values, faults)
