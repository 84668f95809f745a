"""``roadless data``: upload files for jobs to train on, list and delete them."""

from pathlib import Path
from typing import Annotated

import typer

from roadless.service.cli.terminal import cell, first, say, say_row, transfer_progress
from roadless.service.client import Client, Datasets, require_names
from roadless.service.contract.job.data import Format
from roadless.service.contract.uploads.datasets import Dataset

app = typer.Typer(help="Upload, list and delete training data.", no_args_is_help=True)

DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="A data set ID, such as ds_...")]


@app.command()
def upload(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name for the data set.")],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="Files to upload."),
    ],
    format: Annotated[Format, typer.Option(help="Format of the files.")],
) -> None:
    """Upload files, seal them as a data set and print its ID.

    To resume an interrupted upload, run the command again with the same name and files.
    """
    require_names(files)
    with Client() as client:
        datasets = Datasets(client)
        dataset = datasets.create(name, format=format)
        for file in files:
            _upload(datasets, dataset.id, file)
        datasets.seal(dataset.id)
    say(dataset.id)


def _upload(datasets: Datasets, dataset_id: str, file: Path) -> None:
    with transfer_progress() as progress:
        task = progress.add_task(cell(file.name), total=file.stat().st_size)
        datasets.upload(
            dataset_id, file, on_progress=lambda done: progress.update(task, completed=done)
        )


@app.command("list")
def list_datasets(
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 50,
) -> None:
    """List data sets, newest first."""
    with Client() as client:
        for dataset in first(Datasets(client).list(), limit):
            say_row(*_cells(dataset))


def _cells(dataset: Dataset) -> tuple[str, ...]:
    created = dataset.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    size = f"{dataset.num_files} files, {dataset.total_bytes} bytes"
    return dataset.id, dataset.name, dataset.format, dataset.state, size, created


@app.command()
def delete(dataset: DatasetId) -> None:
    """Delete a data set and its files. Fails while an unfinished job uses it."""
    with Client() as client:
        Datasets(client).delete(dataset)
    say(f"{dataset} deleted")
