"""Columns that folders name, as Hive and Spark write them: ``label=0/part.parquet``."""

from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from roadless.worker.data.formats.columns import written_number

#: How Hive writes that a row has no value in the column.
_NOTHING = "__HIVE_DEFAULT_PARTITION__"

#: A number if the folder names one, else a text, or None.
Value = float | str | None


def folder_columns(name: str) -> dict[str, Value]:
    """Return the columns that the folders of this path or URL name; each has one value.

    >>> folder_columns("s3://bucket/year=2024/month=05/part-0.csv")
    {'year': 2024, 'month': 5}
    """
    path = urlsplit(name).path if "://" in name else name
    pairs = (folder.partition("=") for folder in path.split("/")[:-1])
    return {unquote(key): _value(unquote(value)) for key, sign, value in pairs if key and sign}


def _value(text: str) -> Value:
    if text == _NOTHING:
        return None
    number = written_number(text)
    return text if number is None else number


def varying(names: Iterable[str]) -> set[str]:
    """Return the columns of folders that are not the same for all of these files."""
    each = [folder_columns(name) for name in names]
    keys = {key for columns in each for key in columns}
    return {key for key in keys if any(key not in one or one[key] != each[0][key] for one in each)}
