"""The command line as a process, against the real app, with a rank played by the test."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

UTF8 = {"PYTHONIOENCODING": "utf-8"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
STEP = {"kind": "step", "tokens": 0, "gpu_seconds": 0}
Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(url, settings, tmp_path) -> Iterator[Command]:
    """Starts ``roadless`` with these arguments in ``tmp_path``."""
    started: list[subprocess.Popen[str]] = []
    # What a shell starts in the background ignores Ctrl-C, and all that it starts itself does too.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)

    def starting(
        *arguments: str,
        url: str = url,
        environment: Mapping[str, str] = UTF8,
        **options: Any,
    ) -> subprocess.Popen[str]:
        given = {"ROADLESS_URL": url, "ROADLESS_HOME": str(settings.home_dir), "TERM": "xterm"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(
            [sys.executable, "-m", "roadless.service.cli", *arguments],
            env=os.environ | given | environment,
            cwd=tmp_path,
            text=True,
            **pipes,
        )
        started.append(process)
        return process

    yield starting
    for process in started:
        process.kill()
        process.communicate()
    signal.signal(signal.SIGINT, usual)


@pytest.fixture
def roadless(start) -> Callable[..., tuple[int, str, str]]:
    """Runs ``roadless`` to its end: (exit code, stdout, stderr)."""

    def running(*arguments: str, **options: Any) -> tuple[int, str, str]:
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    return running


def step_event(step: int) -> dict[str, Any]:
    return STEP | {
        "step": step,
        "samples": 64 * step,
        "wall_seconds": step / 10,
        "values": {"train.loss": 1 / step},
    }


def eval_event(step: int, loss: float) -> dict[str, Any]:
    return step_event(step) | {"kind": "eval", "loss": loss, "metrics": {"eval.accuracy": 0.75}}


def end(service: Any, rank: Any, event: dict[str, Any]) -> None:
    rank.report(event)
    service.sync(released=[rank.assignment["attempt_id"]])


FINISHED = {"kind": "finished", "reason": "budget_reached", "step": 20}


@pytest.mark.parametrize(("name", "dump"), [("job.yaml", yaml.safe_dump), ("job.json", json.dumps)])
def test_submit_prints_the_id_of_the_job_it_made(
    service, roadless, tmp_path, digits_spec, name, dump
):
    (tmp_path / name).write_text(dump(digits_spec))
    code, out, _ = roadless("submit", name)
    assert code == 0
    assert service.job(out.strip())["name"] == "digits"


def test_a_wrong_spec_is_answered_with_pointers_and_exit_code_2(roadless, tmp_path, digits_spec):
    wrong = digits_spec | {"training": {"batch_size": -1}, "colour": "red"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(wrong))
    code, out, err = roadless("submit", "job.yaml")
    assert (code, out) == (2, "")
    assert "/training/batch_size: " in err
    assert "/colour: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "said"),
    [("- a list", "expected a mapping"), ("a: [", "expected YAML or JSON"), (None, "No such file")],
)
def test_a_file_that_is_no_spec_is_a_usage_error(roadless, tmp_path, text, said):
    if text is not None:
        (tmp_path / "job.yaml").write_text(text)
    code, _, err = roadless("submit", "job.yaml")
    assert code == 2
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("2026-12-01", "job.yaml, line 7, column 7: expected a value that JSON has, saw timestamp"),
        (".inf", "job.yaml, line 7, column 7: expected a finite number, saw .inf"),
        ("!!set {a}", "job.yaml, line 7, column 7: expected a value that JSON has, saw set"),
    ],
)
def test_a_value_that_only_yaml_has_is_one_line_and_no_job(
    service, roadless, tmp_path, value, said
):
    text = "name: a\nmodel: {}\ndata: {}\ntask: a\noptimizer:\n  name: sgd\n  lr: "
    (tmp_path / "job.yaml").write_text(f"{text}{value}\n")
    code, out, err = roadless("submit", "job.yaml")
    assert (code, out) == (2, "")
    assert err.startswith(said)
    assert len(err.splitlines()) == 1
    assert service.get("/jobs").json()["data"] == []


def test_numbers_that_json_does_not_have_are_usage_errors_elsewhere_too(roadless):
    for arguments in (
        ("plan", "--horizon", "10", "--grad-norm", "inf"),
        ("plan", "--horizon", "10", "--distance", "nan"),
        ("plan", "--horizon", "10", "--schedule", "wsd,cooldown_len=.inf"),
        ("plan", "--horizon", "10", "--schedule", "wsd,cooldown_len=2026-12-01"),
    ):
        code, _, err = roadless(*arguments)
        assert code == 2, arguments
        assert "expected" in err
        assert len(err.splitlines()) == 1
        assert "Traceback" not in err


def test_a_secret_that_is_no_text_is_one_line(roadless, tmp_path):
    (tmp_path / "value").write_bytes(b"\xff\xfe secret")
    with (tmp_path / "value").open("rb") as piped:
        code, _, err = roadless("secrets", "put", "A_TOKEN", stdin=piped)
    assert code == 1
    assert err.startswith("expected a value in UTF-8")
    assert "secret" not in err
    assert "Traceback" not in err


def test_a_name_that_no_data_set_can_have_is_one_line(roadless, tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    for name in ("", "x" * 101, b"\xff"):
        code, _, err = roadless("data", "upload", name, "a.csv", "--format", "csv")
        assert code == 2, err
        assert len(err.splitlines()) == 1
        assert "name" in err


def test_a_name_that_the_terminal_cannot_show_is_escaped(service, roadless, digits_spec):
    service.submit(digits_spec | {"name": "Grüße \U0001f600"})
    code, out, _ = roadless("jobs", environment=LATIN, encoding="latin-1")
    assert code == 0
    assert "Grüße \\U0001f600" in out


def test_an_unknown_command_is_a_usage_error(roadless):
    assert roadless("fly")[0] == 2


def test_an_unknown_job_is_said_plainly(roadless):
    code, _, err = roadless("stop", "job_" + "0" * 26)
    assert code == 1
    assert "Not found (404)" in err
    assert "Traceback" not in err


def test_jobs_lists_them_newest_first_and_by_phase(service, roadless, digits_spec):
    first = service.submit(digits_spec | {"name": "first"})
    second = service.submit(digits_spec | {"name": "second"})
    service.post(f"/jobs/{first}/cancel")
    _, out, _ = roadless("jobs")
    rows = [row.split("\t") for row in out.splitlines()]
    assert [row[:3] for row in rows] == [
        [second, "second", "QUEUED"],
        [first, "first", "CANCELLED"],
    ]
    _, out, _ = roadless("jobs", "--phase", "QUEUED")
    assert [row.split("\t")[0] for row in out.splitlines()] == [second]
    _, out, err = roadless("jobs", "--limit", "1")
    assert len(out.splitlines()) == 1
    assert "more than 1" in err, "what is left out is not left out in silence"
    assert roadless("jobs", "--limit", "2")[2] == ""


def test_stop_cancel_and_evaluate_reach_the_job(service, roadless, digits_spec):
    job, _ = service.running(digits_spec)
    assert roadless("evaluate", job)[0] == 0
    assert roadless("stop", job)[1] == f"{job} STOPPING\n"
    assert roadless("cancel", job)[1] == f"{job} CANCELLING\n"


def test_a_job_is_paused_extended_resumed_and_deleted(service, roadless, digits_spec):
    job, _ = service.running(digits_spec)
    assert roadless("pause", job)[1] == f"{job} PAUSING\n"
    assert roadless("pause", job, "--latest")[1] == f"{job} PAUSING\n"
    service.sync(released=[service.job(job)["attempt"]["id"]])
    assert roadless("extend", job, "--steps", "100")[1] == f"{job} PAUSED\n"
    assert service.job(job)["spec"]["budget"]["max_steps"] == 600
    assert roadless("resume", job)[1] == f"{job} QUEUED\n"
    assert roadless("delete", job)[0] == 1
    assert roadless("cancel", job)[0] == 0
    assert roadless("delete", job)[1] == f"{job} deleted\n"
    assert service.get(f"/jobs/{job}").status_code == 404


def test_a_failed_job_is_retried(service, roadless, digits_spec):
    job, rank = service.running(digits_spec)
    end(service, rank, {"kind": "failed", "reason": "data_not_found", "message": "no file"})
    assert roadless("retry", job)[1] == f"{job} QUEUED\n"


def test_a_plan_for_a_schedule_is_one_of_three(service, roadless, digits_spec):
    spec = digits_spec | {"schedule": {"name": "wsd"}, "optimizer": {"name": "adamw"}}
    job = service.submit(spec)
    code, _, err = roadless("extend", job, "--steps", "100")
    assert code == 2
    assert "/plan: expected a plan, saw none" in err
    both = roadless("extend", job, "--steps", "1", "--cooldown", "0.5", "--keep-last-rate")
    assert (both[0], "expected one of" in both[2]) == (2, True)
    code, _, err = roadless("extend", job, "--steps", "1", "--second-stage", "2")
    assert code == 2
    assert "plan/second_stage/factor: Input should be less than or equal to 1, saw 2.0" in err
    assert roadless("extend", job, "--steps", "100", "--cooldown", "0.5")[0] == 0
    (extension,) = service.job(job)["spec"]["schedule_extensions"]
    assert extension["plan"] == {"kind": "cooldown", "cooldown_len": 0.5}


def test_events_are_printed_oldest_first(service, roadless, digits_spec):
    job = service.submit(digits_spec)
    service.post(f"/jobs/{job}/cancel")
    code, out, _ = roadless("events", job)
    codes = [event["code"] for event in service.get(f"/jobs/{job}/events").json()["data"]]
    assert code == 0
    assert [row.split()[1] for row in out.splitlines()] == codes


def test_watching_ends_with_the_job_and_shows_its_progress(service, start, digits_spec):
    job, rank = service.running(digits_spec)
    watching = start("watch", job)
    rank.report(*(step_event(step) for step in range(2, 21)), eval_event(20, 0.125))
    assert "RUNNING" in watching.stdout.readline()
    end(service, rank, FINISHED)
    out, _ = watching.communicate(timeout=20)
    last = out.splitlines()[-1]
    assert watching.returncode == 0
    assert last.startswith("SUCCEEDED")
    assert "step 20" in last
    assert "train 0.05" in last
    assert "eval loss 0.125  eval.accuracy 0.75  (step 20)" in last


def test_submitting_with_watch_ends_with_1_when_the_job_fails(
    service, start, tmp_path, digits_spec
):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(digits_spec))
    watching = start("submit", "job.yaml", "--watch")
    job = watching.stdout.readline().strip()
    rank = service.claim()
    end(
        service,
        rank,
        {"kind": "failed", "reason": "data_not_found", "message": "no file /data/x"},
    )
    out, _ = watching.communicate(timeout=20)
    assert watching.returncode == 1
    assert "no file /data/x" in out.splitlines()[-1]
    assert service.phase(job) == "FAILED"


def test_ctrl_c_leaves_the_job_running_and_says_so(service, start, digits_spec):
    job, _ = service.running(digits_spec)
    watching = start("watch", job)
    watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert f"{job} is still running" in out
    assert f"roadless stop {job}" in out
    assert "Traceback" not in err
    assert service.phase(job) == "RUNNING"


def test_a_terminal_gets_a_panel_with_the_curve(service, start, digits_spec):
    job, rank = service.running(digits_spec, steps=30)
    rank.report(eval_event(10, 3.0), eval_event(20, 2.0), eval_event(30, 1.0))
    end(service, rank, FINISHED)
    terminal, theirs = pty.openpty()
    watching = start("watch", job, stdout=theirs, stderr=theirs)
    assert watching.wait(20) == 0
    os.close(theirs)
    shown = read_all(terminal)
    assert "SUCCEEDED" in shown
    assert "30 of 500" in shown
    assert "█▅▁" in shown
    assert job in shown


def read_all(terminal: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how a pseudo-terminal says that the other end is closed
            break
        parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


def test_pull_takes_the_newest_finished_model_of_a_job(service, roadless, tmp_path, digits_spec):
    job, rank = service.running(digits_spec)
    rank.save(10, content=b"old")
    newest = rank.save(20, content=b"newest")
    rank.save(30, kind="resume", content=b"a training state")
    code, out, _ = roadless("pull", job)
    assert (code, out.strip()) == (0, newest)
    assert (tmp_path / newest / "model.safetensors").read_bytes() == b"newest"
    manifest = json.loads((tmp_path / newest / "manifest.json").read_text())
    assert (manifest["checkpoint_id"], manifest["step"]) == (newest, 20)


def test_pull_takes_a_checkpoint_into_the_folder_given(service, roadless, tmp_path, digits_spec):
    _, rank = service.running(digits_spec)
    checkpoint = rank.save(10, content=b"old")
    code, out, _ = roadless("pull", checkpoint, "--dir", "models/one")
    assert (code, out.strip()) == (0, "models/one")
    assert (tmp_path / "models" / "one" / "model.safetensors").read_bytes() == b"old"


def test_pull_to_where_nothing_can_be_written_is_one_line(service, roadless, tmp_path, digits_spec):
    _, rank = service.running(digits_spec)
    checkpoint = rank.save(10, content=b"x" * 100_000)
    (tmp_path / "file").write_text("no folder")
    full = tmp_path / "full"
    full.mkdir()
    (full / "model.safetensors.part").symlink_to("/dev/full")
    for folder, seen in (("file/models", "Not a directory"), ("full", "No space left on device")):
        code, _, err = roadless("pull", checkpoint, "--dir", folder)
        assert code == 1
        assert err.startswith("expected a file")
        assert err.rstrip().endswith(seen)
        assert "Traceback" not in err


def test_pull_of_a_job_without_a_model_says_what_to_do(service, roadless, digits_spec):
    job, _ = service.running(digits_spec)
    code, _, err = roadless("pull", job)
    assert code == 1
    assert "roadless evaluate" in err


def test_a_service_that_is_not_there_is_said_plainly(roadless):
    code, _, err = roadless("jobs", url="http://127.0.0.1:9")
    assert code == 1
    assert "no answer from http://127.0.0.1:9" in err
    assert "Traceback" not in err
