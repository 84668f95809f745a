"""What users can do with wheels, and what their jobs need of them."""

from sqlalchemy.orm import Session

from roadless.service.clock import utc_now
from roadless.service.contract.ids import new_id
from roadless.service.contract.uploads.wheels import MAX_WHEELS
from roadless.service.db.tables import WheelRow
from roadless.service.errors import Conflict, Forbidden
from roadless.service.wheels import store
from roadless.service.wheels.inspection import WheelFacts

VARIABLE = "ROADLESS_ALLOW_WHEELS"
_SHOWN_JOBS = 5


def require_allowed(is_allowed: bool) -> None:
    """Raise Forbidden unless the operator of the service lets users bring wheels."""
    if not is_allowed:
        raise Forbidden(
            f"this service does not accept wheels; its operator can enable them ({VARIABLE}=1)"
        )


def require_room(session: Session, project: str) -> None:
    """Raise Conflict when the project has as many wheels as it may have."""
    num_wheels = store.count(session, project)
    if num_wheels >= MAX_WHEELS:
        raise Conflict(
            f"expected fewer than {MAX_WHEELS} wheels in a project, saw {num_wheels}; delete some"
        )


def announce(
    session: Session, facts: WheelFacts, *, project: str, file_name: str, size: int, sha256: str
) -> tuple[WheelRow, bool]:
    """Return the wheel of this content, and whether it is new, so that its file must be stored."""
    if (known := store.same(session, project, file_name=file_name, sha256=sha256)) is not None:
        return known, False
    require_room(session, project)
    row = WheelRow(
        id=new_id("whl"),
        project=project,
        file_name=file_name,
        distribution=facts.distribution,
        version=facts.version,
        sha256=sha256,
        size=size,
        is_stored=False,
        created_at=utc_now(),
    )
    store.insert(session, row)
    return row, True


def withdraw(session: Session, row: WheelRow) -> None:
    """Take a locked wheel out of use; raises Conflict while a job that has not ended uses it."""
    jobs = store.users(session, row.id, limit=_SHOWN_JOBS)
    if jobs:
        raise Conflict(f"expected no unfinished job to use {row.id}, saw {', '.join(jobs)}")
    row.is_stored = False
