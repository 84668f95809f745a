"""``roadless data``: upload files for jobs to train on, list and delete them."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from roadless.service.client.client import Client
from roadless.service.client.datasets import Datasets
from roadless.service.contract.job.data import Format
from roadless.service.contract.uploads.datasets import Dataset

app = typer.Typer(help="Upload data for jobs to train on.", no_args_is_help=True)
err = Console(stderr=True)

DatasetId = Annotated[str, typer.Argument(metavar="DATASET", help="a data set id: ds_...")]


@app.command()
def upload(
    name: Annotated[str, typer.Argument(metavar="NAME", help="what to call the data set")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False, help="its files")
    ],
    format: Annotated[Format, typer.Option(help="of all the files")],
) -> None:
    """Upload files and seal them as a data set; prints its id.

    An upload that was cut is gone on with: give the same name and files again.
    """
    with Client() as client:
        datasets = Datasets(client)
        dataset = datasets.create(name, format=format)
        for file in files:
            _upload(datasets, dataset.id, file)
        datasets.seal(dataset.id)
    typer.echo(dataset.id)


def _upload(datasets: Datasets, dataset_id: str, file: Path) -> None:
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task(file.name, total=file.stat().st_size)
        datasets.upload(
            dataset_id, file, on_progress=lambda done: progress.update(task, completed=done)
        )


@app.command("list")
def list_datasets(
    limit: Annotated[int, typer.Option(min=1, help="how many at most")] = 50,
) -> None:
    """List data sets, newest first."""
    with Client() as client:
        for dataset in islice(Datasets(client).list(), limit):
            typer.echo("\t".join(_cells(dataset)))


def _cells(dataset: Dataset) -> tuple[str, ...]:
    created = dataset.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    size = f"{dataset.num_files} files, {dataset.total_bytes} bytes"
    return dataset.id, dataset.name, dataset.format, dataset.state, size, created


@app.command()
def delete(dataset: DatasetId) -> None:
    """Delete a data set with its files; refused while a job that has not ended uses it."""
    with Client() as client:
        Datasets(client).delete(dataset)
    typer.echo(f"{dataset} deleted")
