"""What comes from the npm registry: in a checkout `make setup` fetches it, a wheel carries it.

``setup.py`` runs this file by its path: it imports the standard library alone.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "static" / "vendor"
FILES = ("uplot.min.js", "uplot.min.css", "uplot.LICENSE")


def problem() -> str | None:
    """What is missing and how to get it, or None when everything is there."""
    missing = [name for name in FILES if not (FOLDER / name).is_file()]
    if not missing:
        return None
    return f"The chart library is missing ({', '.join(missing)}): run `make setup` in the checkout."
