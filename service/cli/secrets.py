"""``roadless secrets``: put, list and delete credentials for the ranks of jobs."""

import getpass
import sys
from typing import Annotated

import typer

from roadless.service.cli.terminal import say, say_row
from roadless.service.client import Client, ClientError, Secrets
from roadless.service.contract.secrets import Secret

app = typer.Typer(help="Store, list and delete credentials for jobs.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the environment variable, such as HF_TOKEN.")
]


@app.command()
def put(name: Name) -> None:
    """Store a secret. Its value is read from a prompt, or from standard input if that is a pipe.

    It cannot be passed as an argument, which other users of this machine could see.
    """
    value = _asked(name) if sys.stdin.isatty() else _piped()
    with Client() as client:
        Secrets(client).put(name, value)
    say(f"{name} stored; jobs that list it in their secrets receive it")


def _asked(name: str) -> str:
    return getpass.getpass(f"Value of {name} (hidden): ")


def _piped() -> str:
    """All of the input, without the end of line that ``echo`` adds."""
    try:
        return sys.stdin.read().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ClientError(
            f"expected a value in UTF-8, saw other bytes at {error.start}; encode it, for instance "
            "with base64"
        ) from None


@app.command("list")
def list_secrets() -> None:
    """List secrets by name; values are never shown."""
    with Client() as client:
        for secret in Secrets(client).list():
            say_row(*_cells(secret))


def _cells(secret: Secret) -> tuple[str, ...]:
    updated = secret.updated_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    note = "" if secret.is_readable else "unreadable: its key is lost; store it again"
    return secret.name, updated, note


@app.command()
def delete(name: Name) -> None:
    """Delete a secret. Jobs that use it will fail the next time they start."""
    with Client() as client:
        Secrets(client).delete(name)
    say(f"{name} deleted")
