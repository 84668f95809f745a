"""Rows to answers."""

from roadless.service.contract.uploads.wheels import AssignedWheel, Wheel
from roadless.service.db.tables import WheelRow


def wheel_resource(row: WheelRow) -> Wheel:
    """The wheel as the API shows it."""
    return Wheel(
        id=row.id,
        project=row.project,
        file_name=row.file_name,
        distribution=row.distribution,
        version=row.version,
        sha256=row.sha256,
        size=row.size,
        created_at=row.created_at,
    )


def assigned_wheel(row: WheelRow) -> AssignedWheel:
    """The wheel as it is sent to a runner."""
    return AssignedWheel(wheel_id=row.id, file_name=row.file_name, sha256=row.sha256)
