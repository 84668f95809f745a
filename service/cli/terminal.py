"""What is printed: text of users and of the service, without what a terminal would act upon.

A name may hold anything, for instance a sequence that clears the screen, or a line that looks like
another job's.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

Item = TypeVar("Item")

out = Console()
err = Console(stderr=True)

#: Control characters, and those that turn the direction of text around or have no width.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_LINE_BREAKS = "\n\t"


def printable(text: str) -> str:
    """The text with such characters escaped, but for line breaks and tabs: for messages."""
    return _UNSAFE.sub(lambda found: _escaped(found[0], kept=_LINE_BREAKS), text)


def cell(text: str) -> str:
    """The text as one field of one line, line breaks and tabs escaped too: for names."""
    return _UNSAFE.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str, *, kept: str = "") -> str:
    return character if character in kept else character.encode("unicode_escape").decode()


def say(text: str) -> None:
    """Print a message to standard output."""
    typer.echo(printable(text))


def say_row(*fields: str) -> None:
    """Print fields as one line, with tabs in between."""
    typer.echo("\t".join(map(cell, fields)))


def say_json(text: str) -> None:
    """Print JSON, in which every character may be written as an escape."""
    typer.echo(_UNSAFE.sub(lambda found: _escaped_json(found[0]), text))


def _escaped_json(character: str) -> str:
    return character if character in _LINE_BREAKS else f"\\u{ord(character):04x}"


def say_error(text: str) -> None:
    """Print a message to standard error, in red on a terminal."""
    err.print(printable(text), style="red", markup=False, highlight=False, soft_wrap=True)


def first(items: Iterable[Item], limit: int) -> Iterator[Item]:
    """The first ``limit`` items; says on standard error that there are more, if there are."""
    for number, item in enumerate(items):
        if number == limit:
            err.print(f"(there are more than {limit}; --limit shows more)", highlight=False)
            return
        yield item


def transfer_progress() -> Progress:
    """Bars on standard error for bytes that move; nothing without a terminal."""
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=err, disable=not err.is_terminal)


def accept_any_text() -> None:
    """Have what the output's encoding lacks escaped, where Python would end with an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
