"""A value that must not be seen, and the places where it could be."""

import base64
from pathlib import Path
from urllib.parse import quote

VALUE = 'hf_+/"quoted" & never/logged=='

#: The value as programs write it, by accident or not.
FORMS = (
    VALUE,
    quote(VALUE, safe=""),
    base64.b64encode(VALUE.encode()).decode().rstrip("="),
    VALUE.replace('"', '\\"'),
)


def forms_in(text: str, value: str = VALUE) -> list[str]:
    """Which forms of the value the text holds."""
    forms = FORMS if value == VALUE else (value,)
    return [form for form in forms if form in text]


def files_with(folder: Path, value: str) -> list[Path]:
    """Which files below the folder hold the value."""
    return [
        path for path in folder.rglob("*") if path.is_file() and value.encode() in path.read_bytes()
    ]
