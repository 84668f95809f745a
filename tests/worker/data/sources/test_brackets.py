"""Names with brackets: a file of exactly that name is meant, unless the pattern matches others."""

import fnmatch
import re
from pathlib import Path

import pytest
from data_cases import Node
from hypothesis import given
from hypothesis import strategies as st

from roadless.service.contract.states import Reason
from roadless.worker.data.sources import local_files
from roadless.worker.data.sources.patterns import matcher, readings
from roadless.worker.errors import JobFailed


def found(node: Node, pattern: str) -> list[str]:
    files = local_files.find(f"{node.root}/{pattern}", sources=node.sources)
    return [Path(file.name).relative_to(node.root).as_posix() for file in files]


@pytest.mark.parametrize(
    "name", ["data[v2].csv", "a[].csv", "[x]/y.csv", "run[1]/day[01]/a.csv", "a[b.csv", "a]b[.csv"]
)
def test_a_file_with_brackets_in_its_path_is_found_by_its_path(node, name):
    node.write(name, "x,y\n1,0\n")
    assert found(node, name) == [name]
    assert found(node, f"{name.removesuffix('.csv')}.*") == [name]


def test_files_in_a_folder_with_brackets_are_found_by_a_pattern(node):
    for name in ("run[1]/a.csv", "run[1]/b.csv", "run2/c.csv"):
        node.write(name, "x,y\n1,0\n")
    assert found(node, "run[1]/*.csv") == ["run[1]/a.csv", "run[1]/b.csv"]
    assert found(node, "run[2]/*.csv") == ["run2/c.csv"]


def test_a_path_that_means_two_things_is_refused_and_both_are_named(node):
    for name in ("part[12].csv", "part1.csv"):
        node.write(name, "x,y\n1,0\n")
    with pytest.raises(JobFailed) as caught:
        found(node, "part[12].csv")
    assert caught.value.reason is Reason.DATA_INVALID
    for said in ("part1.csv, which it matches", "part[12].csv, whose name", "write [[] for"):
        assert said in str(caught.value)
    assert found(node, "part[[]12].csv") == ["part[12].csv"]
    assert found(node, "part?.csv") == ["part1.csv"]


def test_brackets_lead_nowhere_that_is_not_allowed(node, tmp_path):
    (tmp_path / "out[1]").mkdir()
    (tmp_path / "out[1]" / "a.csv").write_text("x,y\n1,0\n")
    with pytest.raises(JobFailed) as caught:
        found(node, "../out[1]/a.csv")
    assert caught.value.reason is Reason.DATA_FORBIDDEN


names = st.text("ab[]!-^\\.", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))


@given(st.text("ab[]!-^z*?", max_size=8), st.text("ab[]!-^z", max_size=4))
def test_within_a_folder_a_pattern_means_what_it_means_to_a_shell(pattern, name):
    plain = pattern.replace("**", "*")
    assert matcher(plain)(name) == fnmatch.fnmatchcase(name, plain)


@given(names)
def test_every_name_is_matched_by_the_reading_with_literal_brackets(name):
    assert matcher(readings(name)[-1])(name)


parts = st.sampled_from(["*", "**", "**/", "?", "[ab]", "[!a]", "a", "b", "/", "ab/"])


def expression_of(parts: list[str]) -> str:
    """The parts as a regular expression, which is right where it ends in time."""
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "[!a]": "[^a]"}
    return "".join(known.get(part, part) for part in parts)


@given(st.lists(parts, max_size=6), st.text("ab/", max_size=8))
def test_a_pattern_matches_what_its_regular_expression_does(parts, path):
    pattern = "".join(parts)
    # Two parts may make another one: "*" and "*", "**" and "/".
    parts = [part for part in re.split(r"(\*\*/|\*\*|\*|\?|\[!?[ab]\])", pattern) if part]
    assert matcher(pattern)(path) == bool(re.fullmatch(expression_of(parts), path))


@pytest.mark.parametrize("pattern", ["*a" * 400 + "b", "**a" * 400 + "b", "**/" * 400 + "b"])
def test_many_stars_end_at_once(pattern):
    """A regular expression of six tries for minutes, and no other thread runs meanwhile."""
    assert not matcher(pattern)("a" * 400)
    assert not matcher(pattern)("a/" * 200)
