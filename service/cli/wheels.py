"""``roadless wheels``: upload packages that models of jobs come from, list and delete them."""

from pathlib import Path
from typing import Annotated

import typer

from roadless.service.cli.terminal import first, say, say_row
from roadless.service.client import Client, Wheels
from roadless.service.contract.uploads.wheels import Wheel

app = typer.Typer(help="Upload, list and delete wheels with your own models.", no_args_is_help=True)


@app.command()
def upload(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A .whl file.")
    ],
) -> None:
    """Upload a wheel and print its ID, for the 'wheel' field of a model."""
    with Client() as client:
        say(Wheels(client).upload(file).id)


@app.command("list")
def list_wheels(
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 50,
) -> None:
    """List wheels, newest first."""
    with Client() as client:
        for wheel in first(Wheels(client).list(), limit):
            say_row(*_cells(wheel))


def _cells(wheel: Wheel) -> tuple[str, ...]:
    created = wheel.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return wheel.id, wheel.file_name, f"{wheel.size} bytes", created


@app.command()
def delete(
    wheel: Annotated[str, typer.Argument(metavar="WHEEL", help="A wheel ID, such as whl_...")],
) -> None:
    """Delete a wheel. Fails while an unfinished job uses it."""
    with Client() as client:
        Wheels(client).delete(wheel)
    say(f"{wheel} deleted")
