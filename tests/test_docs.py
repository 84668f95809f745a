"""Documents stay true: what the code has is in them, and what they name exists."""

import configparser
import inspect
import json
import re
import runpy
import subprocess
from collections.abc import Iterable, Iterator, Sized
from dataclasses import fields, is_dataclass
from datetime import timedelta
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from typer.main import get_command

from roadless.service.cli.main import app as command_line
from roadless.service.contract import resources
from roadless.service.contract.job.spec import JobSpec
from roadless.service.contract.job.tasks import Task
from roadless.service.contract.reports.events import Event
from roadless.service.contract.states import Desired, Phase, Reason, Signal
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
    for pattern in ("*.md", "docs/**/*.md", "deploy/*.md", "migrations/*.md", "findings/*.md")
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
    assert described - {"none", "0", "1"} == expanded - {"None", "()", "False", "True"}


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


def test_the_readme_is_short():
    walk = text_of("README.md").partition("\n## A walk")[2].partition("\n## ")[0]
    assert walk.count("\n") <= 60
    assert text_of("ARCHITECTURE.md").count("\n") <= 125


def test_every_command_is_described():
    commands = get_command(command_line).commands  # type: ignore[attr-defined]
    described = re.findall(r"^\| `roadless ([a-z]+)", text_of("docs/cli.md"), re.MULTILINE)
    assert sorted(described) == sorted(commands)


def test_every_target_of_make_is_described():
    targets = re.findall(r"^([a-z-]+):.*##", text_of("Makefile"), re.MULTILINE)
    described = re.findall(r"^\| `make ([a-z-]+)`", text_of("CONTRIBUTING.md"), re.MULTILINE)
    assert sorted(described) == sorted(targets)


# ---- the architecture ----------------------------------------------------------------------------


def test_every_top_level_folder_is_in_the_architecture():
    folders = [path.name for path in ROOT.iterdir() if path.is_dir()]
    kept = {name for name in folders if not name.startswith(".")} - UNTRACKED | {".ci"}
    assert missing([f"{name}/" for name in sorted(kept)], "ARCHITECTURE.md") == []


@pytest.mark.parametrize("package", ["service", "worker", "optim"])
def test_the_layers_of_the_architecture_are_those_that_the_linter_holds(package):
    section = text_of("ARCHITECTURE.md").partition(f"### `{package}/`")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| \d+ \| (.*) \|$", section, re.MULTILINE)
    described = [set(re.findall(r"`([a-z_]+)(?:/|\.py)`", row)) for row in rows]
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    (held,) = (
        contract["layers"]
        for contract in contracts.values()
        if contract.get("containers", "").split() == [f"roadless.{package}"]
    )
    assert described == [set(layer.split(" | ")) for layer in held.split("\n") if layer]


def test_every_table_of_the_database_is_described():
    assert missing(Table.metadata.tables, "docs/architecture/tables.md") == []


COUNTS = {"": 1, "characters": 1, "%": 0.01}
SECONDS = {"ms": 0.001, "s": 1, "h": 3600, "day": 86400, "days": 86400}
BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
UNITS = COUNTS | SECONDS | BYTES
BOUNDS = "docs/architecture/bounds.md"
BOUND_ROW = re.compile(r"^\| .+ \| ([^|]+) \| `([\w/]+)\.py` `([\w.\[\]@]+)` \|$", re.MULTILINE)


@pytest.mark.parametrize(
    ("printed", "module", "name"),
    [pytest.param(*row, id=f"{row[1]}:{row[2]}") for row in BOUND_ROW.findall(text_of(BOUNDS))],
)
def test_a_bound_is_the_number_of_the_code(printed, module, name):
    number, _, unit = printed.partition(" ")
    expected = float(number.replace(",", "")) * UNITS[unit]
    assert in_code(f"roadless.{module.replace('/', '.')}", name) == pytest.approx(expected)


def in_code(module: str, name: str) -> float:
    """The number that `name` has: a constant, a field, an item, or how many items there are."""
    dotted, _, wants_most = name.partition("@")
    value: Any = import_module(module)
    for part in dotted.removesuffix("]").replace("[", ".").split("."):
        value = part_of(value, part, wants_most=bool(wants_most))
    if isinstance(value, timedelta):
        return value.total_seconds()
    return len(value) if isinstance(value, Sized) else float(value)


def part_of(value: Any, part: str, *, wants_most: bool) -> Any:
    """One step of a dotted name; of a field its default, or the most that it takes."""
    if part.isdecimal():
        return value[int(part)]
    if inspect.isclass(value) and issubclass(value, BaseModel):
        field = value.model_fields[part]
        most = (getattr(limit, kind, None) for limit in field.metadata for kind in MOST)
        return next(one for one in most if one is not None) if wants_most else field.default
    if inspect.isclass(value) and is_dataclass(value):
        return next(field.default for field in fields(value) if field.name == part)
    return getattr(value, part)


#: How pydantic's limits name the most that a field takes.
MOST = ("le", "max_length")


def test_every_bound_has_a_constant_or_is_listed_apart():
    compared, _, apart = text_of(BOUNDS).partition("## Without a constant")
    rows = re.findall(r"^\| (?!what \|).+\|$", compared, re.MULTILINE)
    assert len(BOUND_ROW.findall(compared)) == len(rows)
    assert BOUND_ROW.findall(apart) == []
    assert len(rows) > 130


# ---- words ---------------------------------------------------------------------------------------


def test_every_name_of_the_contract_is_in_the_glossary():
    objects = {name: one for name, one in vars(resources).items() if is_resource(one)}
    tags = {
        one.model_fields[field].default
        for one, field in [
            *((one, "object") for one in objects.values() if "object" in one.model_fields),
            *((one, "kind") for one in get_args(get_args(Event)[0])),
        ]
    }
    wanted = [*Phase, *Signal, *Desired, *objects, *tags]
    assert len(tags) > 12
    assert missing(wanted, "docs/glossary.md") == []


def is_resource(value: Any) -> bool:
    return (
        inspect.isclass(value) and value.__module__ == resources.__name__ and "[" not in str(value)
    )


def test_every_name_in_the_glossary_exists():
    said = set(re.findall(r"`([^`]+)`", text_of("docs/glossary.md"))) - {"code type"}
    named = {word for word in said if not (ROOT / word).exists()}
    known = words_of_the_code()
    assert sorted(name for name in named if not set(name.split(".")) <= known) == []


@cache
def words_of_the_code() -> frozenset[str]:
    code = (path.read_text() for path in tracked() if path.suffix == ".py")
    return frozenset(re.findall(r"[A-Za-z_]\w*", "\n".join(code)))


@cache
def tracked() -> tuple[Path, ...]:
    """The texts of the repository: what git has or would add, links and pictures apart."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = (ROOT / name for name in listed.splitlines())
    texts = {".py", ".md", ".js", ".html", ".css", ".toml", ".yml", ".sh", ".Dockerfile", ""}
    return tuple(
        path for path in paths if path.suffix in texts and path.is_file() and not path.is_symlink()
    )


#: Pattern of what is no longer said -> what is said instead. In lower case: in any case.
OLD_WORDS = {
    r"nurser(?:y|ies)": "zygote",
    r"give_birth|newborns?": "fork, ForkedProcess",
    r"be_rank": "run_rank",
    r"examiners?": "CheckpointValidator",
    r"Verdict|_VERDICT": "ValidatedManifest | None",
    r"Milestones": "EvaluationManager",
    r"peeks": "diagnostics",
    r"class Rates|Rates\(|training/rates\.py": "LrSchedule",
    r"goals\.py|standing\(": "early_stopping.py, reached",
    r"heldoutsets": "Datasets",
    r"class Built|Built\(|worker/(?:build|built|assemble)\.py": "TrainingSetup, setup.py",
    r"num_parts\((?:training|TrainingSpec)": "accumulation_steps",
    r"(?:def|=|import) ?unheard": "noop",
    r"insist": "call_with_retry",
    r"Turns": "ConcurrencyLimit",
    r"class (?:Voice|Word|Beginning|Found|Unfit)": "EventSink, Reply, Setup, Result, BadFiles",
    r"class (?:Door|Verb)|(?:Door|Verb)\(": "JobAction",
    r"def wish|\.wish": "set_desired_state",
    r"class Standard|Standard\(": "Normalization",
    r"class Shares|Shares\(": "Sampler",
    r"late\.room": "lazy_import",
    r"manners": "conventions",
    r"(?:front|back) of (?:the )?house": "control plane, worker",
    r"go(?:es)? on with|going on with": "continues, resumes from",
    r"(?:a|one|each|only|this|own|theory|metrics|transformers)[ _]rooms?": "package, module",
    r"rooms of|room: str|_room\(\)": "package, module",
    r"floors\]|floors of": "layers",
}
#: Records are never rewritten, that of the moves lists old files, and this list says what it seeks.
MAY_SAY_THEM = re.compile(r"docs/decisions/00(?:[01]\d|2[0-46])-|tests/test_docs\.py")


@pytest.mark.parametrize("word", OLD_WORDS)
def test_an_old_word_is_gone(word):
    pattern = re.compile(
        rf"(?<![A-Za-z])(?:{word})(?![a-z])", re.IGNORECASE if word.islower() else 0
    )
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in tracked()
        if not MAY_SAY_THEM.match(str(path.relative_to(ROOT)))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert hits == [], f"say instead: {OLD_WORDS[word]}"


# ---- links, names, lists -------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    local = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in local if link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize(
    "document",
    [
        *("ARCHITECTURE.md", "CONTRIBUTING.md", "docs/glossary.md"),
        *sorted(f"docs/architecture/{path.name}" for path in ROOT.glob("docs/architecture/*.md")),
    ],
)
def test_every_named_file_exists(document):
    words = re.findall(r"`([\w.][\w./-]*)`", text_of(document))
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = {word for word in words if is_path(word, folders)}
    assert named
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
