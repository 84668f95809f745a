"""``roadless secrets``: put, list and delete credentials for the ranks of jobs."""

import getpass
import sys
from typing import Annotated

import typer

from roadless.service.client.client import Client
from roadless.service.client.secrets import Secrets
from roadless.service.contract.secrets import Secret

app = typer.Typer(help="Keep credentials for jobs that name them.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="of the environment variable, such as HF_TOKEN")
]


@app.command()
def put(name: Name) -> None:
    """Keep a secret; its value is asked for, or read from standard input when that is a pipe.

    It is never an argument, which every user of this machine could see.
    """
    value = _asked(name) if sys.stdin.isatty() else _piped()
    with Client() as client:
        Secrets(client).put(name, value)
    typer.echo(f"{name} is kept; jobs that list it under secrets get it")


def _asked(name: str) -> str:
    return getpass.getpass(f"value of {name} (not shown): ")


def _piped() -> str:
    """All of the input, without the end of line that ``echo`` adds."""
    return sys.stdin.read().removesuffix("\n").removesuffix("\r")


@app.command("list")
def list_secrets() -> None:
    """List secrets by name; values are never shown."""
    with Client() as client:
        for secret in Secrets(client).list():
            typer.echo("\t".join(_cells(secret)))


def _cells(secret: Secret) -> tuple[str, ...]:
    updated = secret.updated_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    note = "" if secret.is_readable else "its key is lost; put it again"
    return secret.name, updated, note


@app.command()
def delete(name: Name) -> None:
    """Forget a secret; a job that names it fails when it starts next."""
    with Client() as client:
        Secrets(client).delete(name)
    typer.echo(f"{name} deleted")
