"""The front door: names, laziness, and examples that run as printed."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest
import torch

from roadless import optim

#: Backends are left out: what they import may be absent.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(optim.__path__, "roadless.optim.")
    if not module.name.startswith("roadless.optim.backends")
]
OPTIMIZERS = [name for name in optim.__all__ if isinstance(getattr(optim, name), type)]


@pytest.mark.parametrize("name", optim.__all__)
def test_public_names_are_there_and_explained(name: str) -> None:
    assert inspect.getdoc(getattr(optim, name))
    assert name in dir(optim)


def test_every_public_name_has_a_home() -> None:
    assert sorted(optim.__all__) == sorted(optim._HOMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Adagrad'"):
        optim.Adagrad  # noqa: B018 -- the access is the test


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_those_of_torch(name: str) -> None:
    assert issubclass(getattr(optim, name), torch.optim.Optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_name_their_source_and_show_an_example(name: str) -> None:
    """On its own page, on its module's, or on that of an optimizer it is a form of."""
    kinds = [
        kind
        for kind in getattr(optim, name).__mro__
        if kind.__module__.startswith("roadless.optim.")
    ]
    public = [kind for kind in kinds if kind.__name__ in optim.__all__]
    pages = [*public, sys.modules[kinds[0].__module__]]
    page = "".join(inspect.getdoc(explained) or "" for explained in pages)
    assert re.search(r"arXiv\s+\d{4}\.\d{5}", page)
    assert ">>> " in page


@pytest.mark.parametrize("module", MODULES)
def test_examples_run_as_printed(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    examples = [t for m in MODULES for t in finder.find(importlib.import_module(m)) if t.examples]
    assert len(examples) >= len(OPTIMIZERS)


def test_importing_the_package_or_its_pure_part_loads_no_torch() -> None:
    code = (
        "import sys, roadless.optim.averaging; from roadless import optim; "
        "dir(optim); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
