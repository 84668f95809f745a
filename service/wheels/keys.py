"""Names of wheels in their blob store. The hash is part of the name."""

from roadless.service.db.tables import WheelRow


def folder_of(wheel: WheelRow) -> str:
    """The folder of the wheel."""
    return f"{wheel.project}/{wheel.id}"


def key_of(wheel: WheelRow) -> str:
    """The key of the wheel's content."""
    return f"{folder_of(wheel)}/{wheel.sha256}/{wheel.file_name}"
