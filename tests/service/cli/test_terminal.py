"""Whatever a name holds, a terminal shows it and does not act upon it."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from roadless.service.cli import datasets, main, secrets, wheels
from roadless.service.cli.terminal import cell, printable, say_json
from roadless.service.cli.watch import Look, line, panel
from roadless.service.client import ApiError, Client
from roadless.service.contract.resources import CurvePoint, Job, JobEvent, Page, ProblemError

#: Clears the screen, moves up, sets the title, turns the text around, hides, begins a new line.
HOSTILE = "a\x1b[2J\x9b1A\x1b]0;b\x07\u202ec\u200bd\r\ne\tf\x7f"
UNSAFE = set("\x1b\x9b\x07\u202e\u200b\r\x7f")
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@given(st.text(st.characters(codec=None)))
def test_what_is_printed_holds_nothing_that_a_terminal_acts_upon(text):
    for shown, kept in ((printable(text), "\n\t"), (cell(text), "")):
        assert all(one.isprintable() or one == "\u3000" or _is_letter(one, kept) for one in shown)
        shown.encode()


def _is_letter(character, kept):
    """Not printable to Python, but harmless: what is not assigned, for private use, or a space."""
    return character in kept or (ord(character) > 0x9F and cell(character) == character)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_ordinary_text_stays_as_it_is(text):
    assert printable(text) == cell(text) == text


def test_a_message_keeps_its_lines_and_a_name_has_only_one():
    assert printable("a\n\tb\x1b") == "a\n\tb\\x1b"
    assert cell("a\n\tb\x1b") == "a\\n\\tb\\x1b"


def test_json_stays_the_same_json(capsys):
    value = {"name": HOSTILE, "plain": "ü"}
    say_json(json.dumps(value, ensure_ascii=False, indent=2))
    shown = capsys.readouterr().out
    assert not UNSAFE & set(shown)
    assert json.loads(shown) == value


# ---- every place that prints a name --------------------------------------------------------------


def hostile_job(digits_spec):
    return Job(
        id="job_1",
        project="default",
        name=HOSTILE,
        phase="FAILED",
        reason="data_invalid",
        message=HOSTILE,
        desired="run",
        version=1,
        spec=digits_spec,
        progress={"step": 3},
        created_at=NOW,
    )


@pytest.fixture
def answering(monkeypatch, digits_spec):
    """A service whose every text is hostile."""
    job = hostile_job(digits_spec)
    event = JobEvent(id="1", at=NOW, code=f"code.{HOSTILE}", message=HOSTILE)
    listed = {
        "/v1/datasets": {
            "id": "ds_1",
            "project": "default",
            "name": HOSTILE,
            "format": "csv",
            "state": "open",
            "num_files": 0,
            "total_bytes": 0,
            "created_at": NOW.isoformat(),
        },
        "/v1/wheels": {
            "id": "whl_1",
            "project": "default",
            "file_name": HOSTILE,
            "distribution": "a",
            "version": "1",
            "sha256": "0",
            "size": 1,
            "created_at": NOW.isoformat(),
        },
        "/v1/secrets": {
            "name": HOSTILE,
            "is_readable": True,
            "created_at": NOW.isoformat(),
            "updated_at": NOW.isoformat(),
        },
    }

    class Answer:
        def __init__(self, path):
            self.content = Page(data=[listed[path]]).model_dump_json()

    def refuse(*_, **__):
        fault = ProblemError(pointer=f"/labels/{HOSTILE}", message=HOSTILE)
        raise ApiError(422, "Invalid request", detail=HOSTILE, errors=(fault,))

    monkeypatch.setenv("ROADLESS_TOKEN", "t")
    monkeypatch.setattr(Client, "jobs", lambda *_, **__: iter([job]))
    monkeypatch.setattr(Client, "events", lambda *_, **__: iter([event]))
    monkeypatch.setattr(Client, "request", lambda _self, _method, path, **_options: Answer(path))
    monkeypatch.setattr(Client, "stop", refuse)


@pytest.mark.parametrize(
    ("app", "command"),
    [
        (main.app, ["jobs"]),
        (main.app, ["events", "job_1"]),
        (datasets.app, ["list"]),
        (wheels.app, ["list"]),
        (secrets.app, ["list"]),
    ],
)
@pytest.mark.usefixtures("answering")
def test_every_list_shows_a_hostile_name_escaped_and_in_its_line(app, command):
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert not UNSAFE & set(shown.output)
    assert "a\\x1b[2J\\x9b1A" in shown.output
    if command != ["events", "job_1"]:
        assert len(shown.output.splitlines()) == 1


@pytest.mark.usefixtures("answering")
def test_so_does_the_table_of_jobs_on_a_terminal(monkeypatch):
    console = Console(force_terminal=True, width=200, color_system=None, no_color=True)
    monkeypatch.setattr(main, "out", console)
    with console.capture() as shown:
        main.jobs(phase=None, limit=1)
    assert not UNSAFE & set(shown.get())
    assert "a\\x1b[2J" in shown.get()


@pytest.mark.usefixtures("answering")
def test_so_does_an_error_of_the_service(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["roadless", "stop", "job_1"])
    with pytest.raises(SystemExit, match="2"):
        main.main()
    shown = capsys.readouterr().err
    assert not UNSAFE & set(shown)
    assert "/labels/a\\x1b[2J" in shown


def test_so_does_what_is_watched(digits_spec):
    point = CurvePoint(
        step=1,
        samples=1,
        tokens=0,
        wall_seconds=1,
        gpu_seconds=0,
        loss=1.0,
        metrics={HOSTILE: 1.0},
    )
    job = hostile_job(digits_spec)
    look = Look(job=job, curve=(point,), train_loss=None, steps_per_second=None)
    console = Console(force_terminal=True, width=200, color_system=None)
    with console.capture() as shown:
        console.print(panel(look))
    for text in (shown.get(), line(look)):
        assert not UNSAFE & set(text)
        assert "a\\x1b[2J" in text


def test_markup_in_a_name_is_no_markup(digits_spec):
    job = hostile_job(digits_spec).model_copy(update={"name": "[red]x[/red]", "message": None})
    look = Look(job=job, curve=(), train_loss=None, steps_per_second=None)
    console = Console(force_terminal=True, width=200, color_system=None)
    with console.capture() as shown:
        console.print(panel(look))
    assert "[red]x[/red]" in shown.get()
