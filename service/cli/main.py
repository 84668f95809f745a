"""The command line: what a user does every day, over the same interface as everybody else.

Exit codes: 0 done, 1 failed, 2 the request was wrong, 130 left with Ctrl-C (the job continues).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from roadless.service.cli import checkpoints, datasets, secrets, wheels
from roadless.service.cli import up as local
from roadless.service.cli.checkpoints import download
from roadless.service.cli.documents import DocumentError, load, parse
from roadless.service.cli.terminal import (
    accept_any_text,
    cell,
    first,
    out,
    say,
    say_error,
    say_json,
    say_row,
)
from roadless.service.cli.theory import plan_tables, theory_tables
from roadless.service.cli.watch import watch as watch_job
from roadless.service.client import ApiError, Client, ClientError, NotJson
from roadless.service.client import client as sdk
from roadless.service.contract.checkpoint.manifest import CheckpointKind
from roadless.service.contract.requests import Extend
from roadless.service.contract.resources import Job
from roadless.service.contract.states import Phase
from roadless.service.contract.theory.analysis import Norms

FAILED, WRONG_REQUEST, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="roadless",
    help="A training service for runs whose end is not known in advance.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(datasets.app, name="data")
app.add_typer(secrets.app, name="secrets")
app.add_typer(wheels.app, name="wheels")
app.add_typer(checkpoints.app, name="checkpoint")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job ID, such as job_...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the raw JSON response.")]


class UsageError(Exception):
    """The command line or a file it names is wrong."""


def main() -> None:
    """Run the command line; errors become readable lines and an exit code."""
    accept_any_text()
    try:
        app()
    except ApiError as error:
        _complain(error)
        sys.exit(WRONG_REQUEST if error.status == 422 else FAILED)
    except ValidationError as error:
        say_error(_first_fault(error))
        sys.exit(WRONG_REQUEST)
    except (UsageError, DocumentError, NotJson) as error:
        say_error(str(error))
        sys.exit(WRONG_REQUEST)
    except (ClientError, local.UpError) as error:
        say_error(str(error))
        sys.exit(FAILED)
    except BrokenPipeError:  # who reads the output has left, as `head` does
        sys.exit(FAILED)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        say_error(f"expected a file{where} that can be read or written: {error.strerror or error}")
        sys.exit(FAILED)


def _complain(error: ApiError) -> None:
    if not error.errors:
        say_error(f"{error.title} ({error.status}): {error.detail}")
        return
    say_error(f"{error.title} ({error.status}):")
    for fault in error.errors:
        say_error(f"  {fault.pointer or '/'}: {fault.message}")


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    where = "/".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}, saw {str(fault['input'])[:80]}"


@app.command()
def up(
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            envvar="ROADLESS_PORT",
            help="Port to listen on; 0 picks a free one.",
        ),
    ] = 8700,
    num_cpus: Annotated[
        int | None, typer.Option(min=1, help="CPU cores for training. Default: all.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Data folder. Default: ~/.roadless.")] = None,
) -> None:
    """Start all components on this machine and run until Ctrl-C."""
    folder = (home or sdk.home()).expanduser().absolute()
    host = os.environ.get("ROADLESS_HOST") or "127.0.0.1"
    local.run(local.Plan(home=folder, port=port, host=host, num_cpus=num_cpus), say=say)


@app.command()
def submit(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Job specification in YAML or JSON.")
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
) -> None:
    """Create a job from a file and print its ID."""
    spec = load(file)
    with Client() as client:
        job = client.submit(spec)
        say(job.id)
        if watch:
            _watch(client, job.id)


@app.command()
def watch(job: JobId) -> None:
    """Follow a job until it ends. Ctrl-C leaves it running."""
    with Client() as client:
        _watch(client, job)


def _watch(client: Client, job_id: str) -> None:
    try:
        job = watch_job(client, job_id, console=out)
    except KeyboardInterrupt:
        say(f"{job_id} is still running. To watch it again: roadless watch {job_id}")
        say(f"To stop it: roadless stop {job_id}")
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(0 if job.phase in {Phase.SUCCEEDED, Phase.STOPPED} else FAILED)


@app.command()
def jobs(
    phase: Annotated[Phase | None, typer.Option(help="Only jobs in this phase.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number to list.")] = 50,
) -> None:
    """List jobs, newest first."""
    with Client() as client:
        found = list(first(client.jobs(phase=phase), limit))
    if not found:
        say_error("no jobs found; create one with: roadless submit FILE.yaml")
    elif out.is_terminal:
        out.print(_table(found))
    else:
        for job in found:
            say_row(*_cells(job))


def _table(found: list[Job]) -> Table:
    table = Table("job", "name", "phase", "reason", "step", "created", box=None)
    for job in found:
        table.add_row(*(Text(cell(field)) for field in _cells(job)))
    return table


def _cells(job: Job) -> tuple[str, ...]:
    created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    step = str(job.progress.step)
    return job.id, job.name, str(job.phase), job.reason or "", step, created


@app.command()
def pause(
    job: JobId,
    latest: Annotated[
        bool, typer.Option("--latest", help="Pause immediately, without saving first.")
    ] = False,
) -> None:
    """Pause a job and free its resources. Use resume to continue it."""
    with Client() as client:
        paused = client.pause(job, checkpoint="latest" if latest else "save")
    say(f"{job} {paused.phase}")


@app.command()
def resume(job: JobId) -> None:
    """Resume a paused or stopped job."""
    with Client() as client:
        say(f"{job} {client.resume(job).phase}")


@app.command()
def extend(
    job: JobId,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps to add.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples to add.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to add.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds to add.")] = None,
    gpu_seconds: Annotated[float | None, typer.Option(help="GPU seconds to add.")] = None,
    cooldown: Annotated[
        float | None,
        typer.Option(help="Scheduled jobs: end with a cooldown over this fraction of all steps."),
    ] = None,
    second_stage: Annotated[
        float | None,
        typer.Option(help="Scheduled jobs: continue at this fraction of the learning rate."),
    ] = None,
    keep_last_rate: Annotated[
        bool,
        typer.Option(
            "--keep-last-rate", help="Scheduled jobs: continue at the last learning rate."
        ),
    ] = False,
) -> None:
    """Extend a job's budget. Without amounts, make the job open-ended.

    A job that has finished is continued.
    """
    amounts = {
        "steps": steps,
        "samples": samples,
        "tokens": tokens,
        "seconds": seconds,
        "gpu_seconds": gpu_seconds,
    }
    plans = [
        {"kind": "cooldown", "cooldown_len": cooldown} if cooldown is not None else None,
        {"kind": "second_stage", "factor": second_stage} if second_stage is not None else None,
        {"kind": "keep_last_rate"} if keep_last_rate else None,
    ]
    with Client() as client:
        extended = client.extend(job, _extend_of(amounts, [plan for plan in plans if plan]))
    say(f"{job} {extended.phase}")


def _extend_of(amounts: Mapping[str, Any], plans: Sequence[Mapping[str, Any]]) -> Extend:
    if len(plans) > 1:
        raise UsageError(
            "expected one of --cooldown, --second-stage and --keep-last-rate, saw more; choose one"
        )
    try:
        return Extend.model_validate({**amounts, "plan": plans[0] if plans else None})
    except ValidationError as error:
        raise UsageError(_first_fault(error)) from error


@app.command()
def retry(job: JobId) -> None:
    """Retry a failed job from its latest training state."""
    with Client() as client:
        say(f"{job} {client.retry(job).phase}")


@app.command()
def delete(job: JobId) -> None:
    """Delete a finished job and its metrics, events and checkpoints."""
    with Client() as client:
        client.delete(job)
    say(f"{job} deleted")


@app.command()
def stop(job: JobId) -> None:
    """Stop a job gracefully: evaluate, then save the model and the training state."""
    with Client() as client:
        say(f"{job} {client.stop(job).phase}")


@app.command()
def cancel(job: JobId) -> None:
    """Cancel a job immediately. Saved checkpoints are kept."""
    with Client() as client:
        say(f"{job} {client.cancel(job).phase}")


@app.command()
def evaluate(job: JobId) -> None:
    """Evaluate now and keep the checkpoint. Training continues."""
    with Client() as client:
        client.evaluate(job)
    say(f"{job} will evaluate after the current step; see: roadless events {job}")


@app.command()
def events(job: JobId) -> None:
    """Show a job's event history, oldest first."""
    with Client() as client:
        for event in client.events(job):
            at = event.at.astimezone().strftime("%H:%M:%S")
            say(f"{at}  {cell(event.code)}  {event.message}")


@app.command()
def theory(
    job: JobId,
    steps: Annotated[
        int | None,
        typer.Option(min=2, help="Total steps of the extension. Default: twice as many."),
    ] = None,
    distance: Annotated[
        float | None, typer.Option(help="Distance from the start to the optimum. Default: fitted.")
    ] = None,
    norms: Annotated[
        Norms, typer.Option(help="Use each step's own gradient norm, or the same for all.")
    ] = "logged",
    as_json: AsJson = False,
) -> None:
    """Analyse a job with convex theory: bound, other schedules, how to extend it."""
    with Client() as client:
        found = client.theory(job, steps=steps, distance=distance, norms=norms)
    if as_json:
        say_json(found.model_dump_json(indent=2))
    else:
        out.print(theory_tables(found))


@app.command()
def plan(
    horizon: Annotated[int, typer.Option(help="Number of steps in the run.")],
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,KEY=VALUE...]",
            help="Schedule to compare; may be repeated. Default: the common ones.",
        ),
    ] = None,
    grad_norm: Annotated[float, typer.Option(help="Gradient norm of all steps.")] = 1.0,
    distance: Annotated[
        float | None, typer.Option(help="Distance from the start to the optimum. Default: 1.")
    ] = None,
    tuned: Annotated[
        str | None,
        typer.Option(
            metavar="LR:HORIZON:SCHEDULE", help="A tuned learning rate, in place of a distance."
        ),
    ] = None,
    extend: Annotated[
        str | None,
        typer.Option(metavar="FROM:TO:SCHEDULE", help="A run to extend."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the best base learning rates of schedules, and how to extend a run."""
    numbers = {"horizon": horizon, "grad_norm": grad_norm, "distance": distance}
    request = numbers | _runs(schedule or (), tuned=tuned, extend=extend)
    with Client() as client:
        found = client.plan(request)
    if as_json:
        say_json(found.model_dump_json(indent=2))
    else:
        out.print(plan_tables(found))


def _runs(schedules: Sequence[str], *, tuned: str | None, extend: str | None) -> dict[str, Any]:
    """The part of a request for a plan that names schedules."""
    found: dict[str, Any] = {}
    if schedules:
        found["schedules"] = [_schedule(text) for text in schedules]
    if tuned:
        lr, steps, name = _three(tuned, "--tuned", "LR:HORIZON:SCHEDULE")
        found["tuned"] = {"lr": lr, "horizon": steps, "schedule": _schedule(name)}
    if extend:
        start, end, name = _three(extend, "--extend", "FROM:TO:SCHEDULE")
        found["extend"] = {"from_steps": start, "to_steps": end, "schedule": _schedule(name)}
    return found


def _three(text: str, option: str, form: str) -> tuple[str, str, str]:
    first, _, rest = text.partition(":")
    second, _, name = rest.partition(":")
    if not name:
        raise UsageError(f"expected {option} {form}, saw {text!r}")
    return first, second, name


def _schedule(text: str) -> dict[str, Any]:
    """Parse ``wsd,cooldown_len=0.5``; the service says what is wrong with names and values."""
    name, _, arguments = text.partition(",")
    source = f"expected --schedule NAME[,KEY=VALUE...], saw {text!r}"
    settings = parse("{" + arguments.replace("=", ": ") + "}", source=source)
    return {"name": name, **settings}


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT_OR_JOB", help="A checkpoint ID, or a job ID for its latest model."
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Target folder. Default: one named after the checkpoint."),
    ] = None,
) -> None:
    """Download a checkpoint. An interrupted download is resumed."""
    with Client() as client:
        checkpoint_id = _newest(client, source) if source.startswith("job_") else source
        target = folder or Path(checkpoint_id)
        download(client, checkpoint_id, target)
    say(str(target))


def _newest(client: Client, job_id: str) -> str:
    newest = next(client.checkpoints(job_id, kind=CheckpointKind.EVAL), None)
    if newest is None:
        raise ClientError(
            f"expected a job with a model, saw that {job_id} has none; while it trains, create one "
            f"with: roadless evaluate {job_id}"
        )
    return newest.id
