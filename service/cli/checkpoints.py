"""``roadless checkpoint``: list, pin, delete and export what a job has saved."""

import subprocess
import sys
import tempfile
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from roadless.service.cli.terminal import cell, first, say, say_row, transfer_progress
from roadless.service.client import Client, ClientError
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.resources import Checkpoint

app = typer.Typer(help="List, pin, delete and export checkpoints.", no_args_is_help=True)

CheckpointId = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint ID, such as ckpt_...")
]


class Format(StrEnum):
    """What a model can be exported to."""

    ONNX = "onnx"
    TRANSFORMERS = "transformers"
    SAFETENSORS = "safetensors"


@app.command("list")
def list_checkpoints(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job ID, such as job_...")],
    kind: Annotated[
        CheckpointKind | None,
        typer.Option(help="Only models (eval) or only training states (resume)."),
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(
            min=1, max=200, help="Show only this many models with the lowest loss, best first."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 50,
) -> None:
    """List a job's checkpoints, newest first."""
    with Client() as client:
        for checkpoint in first(client.checkpoints(job, kind=kind, best=best), limit):
            say_row(*_cells(checkpoint))


def _cells(checkpoint: Checkpoint) -> tuple[str, ...]:
    receipt = checkpoint.evaluation
    created = checkpoint.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return (
        checkpoint.id,
        checkpoint.kind,
        f"step {checkpoint.step}",
        f"loss {receipt.loss:.6g}" if receipt else "",
        f"{checkpoint.total_bytes} bytes",
        "pinned" if checkpoint.pinned else "",
        created,
    )


@app.command()
def pin(checkpoint: CheckpointId) -> None:
    """Keep a checkpoint regardless of its job's retention rules."""
    with Client() as client:
        client.pin(checkpoint)
    say(f"{checkpoint} pinned")


@app.command()
def unpin(checkpoint: CheckpointId) -> None:
    """Let a job's retention rules apply to a checkpoint again (checked hourly)."""
    with Client() as client:
        client.unpin(checkpoint)
    say(f"{checkpoint} unpinned")


@app.command()
def delete(checkpoint: CheckpointId) -> None:
    """Delete a checkpoint and its files. Fails while it is pinned or a job needs it."""
    with Client() as client:
        client.delete_checkpoint(checkpoint)
    say(f"{checkpoint} deleted")


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT_OR_FOLDER",
            help="A checkpoint ID, or a folder created by roadless pull.",
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Output folder. It must not exist yet.")
    ],
    to: Annotated[Format, typer.Option(help="Output format.")],
    wheel: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The wheel that the model comes from."),
    ] = None,
) -> None:
    """Export a model to another format and verify the result.

    Requires the 'worker' extra.
    """
    if find_spec("torch") is None:
        raise ClientError("expected torch to be installed, saw none; install the extra 'worker'")
    if Path(source).is_dir():
        raise typer.Exit(_export(Path(source), out, to=to, wheel=wheel))
    with tempfile.TemporaryDirectory() as folder:
        with Client() as client:
            download(client, source, Path(folder))
        raise typer.Exit(_export(Path(folder), out, to=to, wheel=wheel))


def _export(folder: Path, out: Path, *, to: Format, wheel: Path | None) -> int:
    """Run a separate process, as the command line cannot import the worker; return its status."""
    arguments = [str(folder), str(out), "--to", to]
    if wheel is not None:
        arguments += ["--wheel", str(wheel)]
    command = [sys.executable, "-P", "-m", "roadless.worker.export", *arguments]
    return subprocess.run(command, check=False).returncode


def download(client: Client, checkpoint_id: str, folder: Path) -> None:
    """Fetch a checkpoint into the folder, and show on a terminal how far that is."""
    total = client.checkpoint(checkpoint_id).total_bytes
    with transfer_progress() as progress:
        task = progress.add_task(cell(checkpoint_id), total=total)
        client.download(
            checkpoint_id, folder, on_progress=lambda done: progress.update(task, completed=done)
        )
