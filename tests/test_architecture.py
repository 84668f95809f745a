"""The rules of the house about outside packages, SQL, size and shape (ARCHITECTURE.md).

Rules among our own packages are import-linter's; these are the ones that it cannot say.
"""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("service", "worker", "optim", "migrations")
#: One generated migration is one long list of columns.
GENERATED = ROOT / "migrations" / "versions"
#: Modules that run on a user's machine, with the smallest installation.
CLIENT_SIDE = ("roadless.service.client", "roadless.service.cli")

#: Package -> the outside packages that it may import, besides the standard library.
MAY_IMPORT = {
    "roadless.service.contract": {"pydantic"},
    "roadless.optim": {"numpy", "torch"},
    "roadless.optim.backends": {"llvmlite", "numba", "numpy", "torch", "triton"},
    "roadless.migrations": {"alembic", "sqlalchemy", "roadless.service"},
    "roadless.worker": {
        *{"httpx", "numpy", "roadless.optim", "pydantic", "ray", "safetensors", "roadless.service"},
        *{"packaging", "psutil", "sklearn", "torch"},
    },
    "roadless.worker.model.huggingface": {
        *{"huggingface_hub", "roadless.service", "torch", "transformers"}
    },
    "roadless.worker.data.formats.arrow_rows": {"numpy", "pyarrow", "roadless.service"},
    "roadless.worker.data.prepared.bpe": {"numpy", "roadless.service", "tokenizers"},
    "roadless.worker.data.records.described_files": {"datasets"},
    "roadless.worker.data.records.hub": {
        "datasets",
        "huggingface_hub",
        "numpy",
        "roadless.service",
    },
    "roadless.worker.data.formats.images": {"PIL", "numpy", "roadless.service"},
    "roadless.worker.data.formats.pixels": {"PIL", "numpy", "roadless.service"},
    "roadless.worker.data.sources.object_files": {"obstore", "roadless.service"},
    **{name: {"click", "httpx", "pydantic", "rich", "typer", "yaml"} for name in CLIENT_SIDE},
}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of ours."""
    found = {"roadless": ROOT / "src" / "roadless" / "__init__.py"}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(("roadless", *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) of each import below the node that happens at run time."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, None) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from ((child.module, alias.name) for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from imports(child)


def package_of(module: str) -> str:
    """The name at the top; of ours, the folder below it."""
    first, _, rest = module.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "roadless" and rest else first


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def modules_of(package: str) -> dict[str, Path]:
    return {name: path for name, path in MODULES.items() if is_in(name, package)}


# ---- who may import whom -------------------------------------------------------------------------


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_of_outside_ones_what_it_may(package):
    apart = [other for other in MAY_IMPORT if other != package and is_in(other, package)]
    seen = {
        package_of(f"{module}.{what}" if what else module)
        for name, path in modules_of(package).items()
        if not any(is_in(name, other) for other in apart)
        for module, what in imports(tree_of(path))
    }
    own = package_of(package)
    assert modules_of(package)
    assert seen - sys.stdlib_module_names - {own} <= MAY_IMPORT[package]


@pytest.mark.parametrize("package", ["roadless.worker", *CLIENT_SIDE])
def test_of_the_service_only_the_contract_is_seen_from_outside(package):
    seen = {
        f"{module}.{name}"
        for path in modules_of(package).values()
        for module, name in imports(tree_of(path))
        if is_in(module, "roadless.service")
    }
    assert {
        name
        for name in seen
        if not is_in(name, "roadless.service.contract") and not name.startswith(CLIENT_SIDE)
    } == set()


def loaded_by(statement: str) -> set[str]:
    """The packages that a fresh interpreter has parts of after the statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = {package_of(name) for name in result.stdout.split()}
    assert "roadless" in names
    return names


HEAVY = {"torch", "ray", "transformers", "sklearn", "safetensors"}
SERVERS = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "alembic", "numpy"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import roadless.service.main", HEAVY | {"roadless.worker"}),
        (
            f"import {', '.join(CLIENT_SIDE)}",
            HEAVY | SERVERS | {"roadless.worker", "roadless.optim"},
        ),
        (
            f"import {', '.join(modules_of('roadless.service.contract'))}",
            HEAVY | SERVERS | {"httpx", "roadless.worker", "roadless.optim"},
        ),
        ("import roadless", HEAVY | SERVERS | {f"roadless.{folder}" for folder in FOLDERS}),
        (
            "from roadless import optim",
            {"torch", "numpy", "ray", "roadless.service", "roadless.worker"},
        ),
    ],
    ids=["service", "client side", "contract", "roadless", "optim"],
)
def test_importing_costs_only_what_is_needed(statement, absent):
    assert loaded_by(statement) & absent == set()


def test_imports_among_our_modules_have_no_cycle():
    graph = {
        name: {target for one in imports(tree_of(path)) for target in targets(*one)} - {name}
        for name, path in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())


def targets(module: str, name: str | None) -> set[str]:
    """The modules of ours that an import names: the module, or the submodule in it."""
    return {one for one in (f"{module}.{name}",) if one in MODULES} or {module} & MODULES.keys()


def test_every_module_has_one_name():
    """A module that is imported by its folder's name, too, is there twice, and so are its classes.

    The root of the repository is on the path where its own tools run. Imports are ruff's (TID251);
    here are names in strings: of ``python -m``, ``import_module``, patches.
    """
    dotted = re.compile(rf"(?:{'|'.join(FOLDERS)})\.\w+(?=$|[.:])")
    written = ("deploy", "docs", "src/roadless", "tests", *FOLDERS)
    for path in (path for folder in written for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said = dotted.match(node.value)
                assert not said or f"roadless.{said[0]}" not in MODULES, (path, node.value)


# ---- where SQL is --------------------------------------------------------------------------------

#: What the rest of the service may know of SQLAlchemy: to pass a session on, and its errors.
SESSION_ONLY = {"sqlalchemy.orm.Session"}


def test_sql_is_in_db_and_in_stores_only():
    for name, path in modules_of("roadless.service").items():
        if not is_in(name, "roadless.service.db") and path.name != "store.py":
            seen = {f"{module}.{what}" for module, what in imports(tree_of(path))}
            sql = {one for one in seen if is_in(one, "sqlalchemy")}
            assert {one for one in sql if not is_in(one, "sqlalchemy.exc")} <= SESSION_ONLY, name


# ---- shape -------------------------------------------------------------------------------------


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("name", MODULES)
def test_no_import_is_inside_a_function(name):
    for function in functions(MODULES[name]):
        assert list(imports(function)) == [], f"{name}.{function.name}"


def test_every_module_says_why_it_is_there():
    silent = {
        name
        for name, path in MODULES.items()
        if tree_of(path).body and ast.get_docstring(tree_of(path)) is None
    }
    assert silent == set()


def test_the_service_package_itself_costs_nothing():
    """The contract lives in it, and every rank imports the contract."""
    assert tree_of(MODULES["roadless.service"]).body == []


def test_functions_are_short():
    lengths = [
        function.end_lineno - function.lineno + 1
        for path in MODULES.values()
        if not path.is_relative_to(GENERATED)
        for function in functions(path)
    ]
    assert statistics.median(lengths) <= 10
    assert statistics.quantiles(lengths, n=10)[-1] <= 25
    assert sum(length > 40 for length in lengths) <= 0.05 * len(lengths)
