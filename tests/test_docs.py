"""Documents stay true: what the code has is in them, and what they name exists."""

import json
import re
import runpy
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from roadless.service.cli.main import app as command_line
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.job.tasks import Task
from roadless.service.contract.states import Phase, Reason
from roadless.service.db.tables import Table
from roadless.service.errors import ServiceError
from roadless.service.main import create_app
from roadless.service.settings import Settings
from roadless.worker import settings as runner_settings
from roadless.worker.evaluation.task import metrics, score_names
from roadless.worker.settings import RunnerSettings

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "deploy/*.md", "migrations/*.md")
    for path in ROOT.glob(pattern)
)
#: Made by tools or by users; not part of the repository.
UNTRACKED = {"build", "dist", "node_modules", "roadless.egg-info"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def missing(wanted: Iterable[str], document: str) -> list[str]:
    """Which of these the document does not have in code type."""
    text = text_of(document)
    return [name for name in wanted if f"`{name}`" not in text]


def flat(routes: Iterable[Any]) -> Iterator[Any]:
    """FastAPI keeps an included router as one route with the others inside."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is None:
            yield route
        else:
            yield from flat(inner.routes)


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """``METHOD path`` of everything that the service answers."""
    app = create_app(Settings(home=tmp_path_factory.mktemp("home"), DATABASE_URL=None))
    app.state.db.close()
    found = set()
    for route in flat(app.routes):
        methods = (getattr(route, "methods", None) or {"GET"}) - {"HEAD"}
        found |= {f"{method} {route.path}" for method in methods}
    return found


def test_every_route_is_described_and_every_described_route_exists(routes):
    assert len(routes) > 25
    described = re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`?]*)`", text_of("docs/api.md"))
    assert {route.rstrip() for route in described} - {"GET /static"} == routes - {"GET /static"}
    assert "GET /static" in described


def test_every_phase_reason_and_error_code_is_described():
    codes = [error.code for error in every_error(ServiceError)]
    assert missing([*Phase, *Reason, *codes], "docs/api.md") == []


def every_error(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield root
    for error in root.__subclasses__():
        yield from every_error(error)


def test_every_metric_is_described():
    said_by_the_loop = re.findall(r'"([a-z]+\.[a-z_]+)":', text_of("worker/training/loop.py"))
    evaluated = {name for task in get_args(Task) for name in scores(task)}
    assert said_by_the_loop
    assert missing([*said_by_the_loop, *evaluated], "docs/api.md") == []


def scores(task: Any) -> dict[str, float]:
    means = dict.fromkeys(score_names(task, num_classes=10), 1.0)
    told = metrics(task, means, bytes_per_token=1.0)
    return {f"eval.{name}": value for name, value in told.items()}


def test_every_setting_of_the_service_is_described_with_its_default():
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias or f"ROADLESS_{name.upper()}")
        default = "none" if field.default is None else f"`{field.default}`"
        assert f"| `{variable}` | {default} |" in text_of("docs/settings.md")


def test_every_setting_of_the_runner_is_described_with_its_default():
    source = Path(runner_settings.__file__).read_text()
    settings = RunnerSettings.from_environment({})
    defaults = {str(getattr(settings, field.name)) for field in fields(settings)}
    variables = set(re.findall(r'environ(?:\.get\(|, )"([A-Z_]+)"', source))
    assert len(variables) == len(fields(settings))
    section = text_of("docs/settings.md").partition("## The runner")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]*) \|", section, re.MULTILINE))
    assert rows.keys() == variables
    described = {shown.strip("`").replace("~", str(Path.home())) for shown in rows.values()}
    expanded = {default.replace("~", str(Path.home())) for default in defaults}
    assert described - {"none", "0"} == expanded - {"None", "()", "False"}


def test_every_field_of_a_job_is_described_as_the_contract_has_it():
    render = runpy.run_path(str(ROOT / "docs" / "make_spec.py"))["render"]
    assert text_of("docs/spec.md") == render()


def test_the_specification_of_the_api_document_is_the_one_that_all_tests_train(digits_spec):
    (example,) = re.findall(r"```json\n(.*?)```", text_of("docs/api.md"), re.DOTALL)
    assert json.loads(example) == digits_spec
    JobSpec.model_validate(json.loads(example))


def test_the_specification_of_the_walk_is_a_valid_one():
    (example,) = re.findall(r"digits.json <<'END'\n(.*?)END\n", text_of("README.md"), re.DOTALL)
    assert JobSpec.model_validate_json(example).budget is None


def test_every_command_is_in_the_readme():
    commands = get_command(command_line).commands  # type: ignore[attr-defined]
    described = re.findall(r"^\| `roadless ([a-z]+)", text_of("README.md"), re.MULTILINE)
    assert sorted(described) == sorted(commands)


def test_every_verb_is_in_the_readme():
    verbs = re.findall(r"^([a-z-]+):.*##", text_of("Makefile"), re.MULTILINE)
    described = re.findall(r"^\| `make ([a-z-]+)`", text_of("README.md"), re.MULTILINE)
    assert sorted(described) == sorted(verbs)


def test_every_top_level_folder_is_in_the_readme():
    folders = [path.name for path in ROOT.iterdir() if path.is_dir()]
    kept = {name for name in folders if not name.startswith(".")} - UNTRACKED | {".ci"}
    assert missing([f"{name}/" for name in sorted(kept)], "README.md") == []


def test_every_table_of_the_database_is_in_the_architecture():
    assert missing(Table.metadata.tables, "ARCHITECTURE.md") == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    local = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in local if link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_named_file_exists(document):
    words = re.findall(r"`([\w.][\w./-]*)`", text_of(document))
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = {word for word in words if is_path(word, folders)}
    assert len(named) > 5
    assert sorted(word for word in named if not (ROOT / word).exists()) == []


def is_path(word: str, folders: set[str]) -> bool:
    """Whether the word names one file or folder; `routes.py` alone is many."""
    first, slash, _ = word.partition("/")
    if not slash:
        return word.endswith((".md", ".toml", ".yml", ".txt"))
    return first in folders or word.endswith(".py")


def test_every_decision_is_in_the_list():
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[^)]*)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("0*.md"))
