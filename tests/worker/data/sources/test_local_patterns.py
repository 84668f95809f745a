"""Patterns over a node's files: they match what a shell's do, and tell nothing of other folders."""

import glob
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from data_cases import Node
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from roadless.service.contract.states import Reason
from roadless.worker.data.prepared import tokenizer
from roadless.worker.data.sources import local_files, local_patterns
from roadless.worker.errors import JobFailed
from roadless.worker.model.sources import allowed_folder

INSIDE = [
    "a.csv",
    "b.csv",
    ".hidden.csv",
    "sub/a.csv",
    "sub/deep/c.csv",
    "sub/[x]/d.csv",
    ".h/a.csv",
]
OUTSIDE = ["secret.csv", "sub/secret.csv", "root.csv"]
LINKS = {
    "out": "../outside",
    "sub/out": "../../outside",
    "sub/up": "../..",
    "file.csv": "../outside/secret.csv",
    "absent": "../outside/none/at/all",
}

#: What changes nothing for those who may read the root alone.
World = Callable[[Path], None]


def nothing(_outside: Path) -> None:
    pass


def an_empty_folder(outside: Path) -> None:
    outside.mkdir()


def a_file(outside: Path) -> None:
    outside.write_text("x")


def files(outside: Path) -> None:
    for name in OUTSIDE:
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_text("x,y\n1,0\n")
    (outside / "link").symlink_to("/usr/lib")


def unreadable(outside: Path) -> None:
    files(outside)
    (outside / "sub").chmod(0)
    outside.chmod(0)


WORLDS: list[World] = [nothing, an_empty_folder, a_file, files, unreadable]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The same root, with other things beside it."""
    made = []
    for world in WORLDS:
        folder = tmp_path_factory.mktemp(world.__name__).resolve()
        for name in INSIDE:
            (folder / "root" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "root" / name).write_text("x,y\n1,0\n")
        for name, target in LINKS.items():
            (folder / "root" / name).symlink_to(target)
        world(folder / "outside")
        made.append(folder)
    yield made
    for folder in made:
        if (folder / "outside").is_dir():
            (folder / "outside").chmod(0o755)


def outcome(folder: Path, path: str, look: Callable[[str, Node], object]) -> str:
    """What a user learns, with the folder's own name taken out."""
    node = Node.at(folder).allowing(roots=(str(folder / "root"),))
    try:
        seen = repr(look(path.replace("ROOT", f"{folder}/root"), node))
    except JobFailed as failure:
        seen = f"{failure.reason}: {failure}"
    return seen.replace(str(folder), "")


def names(path: str, node: Node) -> list[str]:
    return [file.name for file in local_files.find(path, sources=node.sources)]


def tokens(path: str, node: Node) -> object:
    return tokenizer.load(path, separator=None, sources=node.sources)


def model(path: str, node: Node) -> str:
    return str(allowed_folder(path, roots=node.sources.roots))


PARTS = (
    "* ** .. . ?ut [o]ut s* [!a]* *.csv sub out up absent root outside secret.csv secret* file.csv"
    " file* link lib deep"
)
parts = st.sampled_from(["", *PARTS.split()])


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(parts, min_size=1, max_size=6).map("/".join))
@example("*/../../outside/*")
@example("*/../../outside/secret.csv")
@example("s*/up/outside/*")
@example("**/secret.csv")
@example("[o]ut/secret.csv")
@example("o*/*.csv")
@example("file*")
@example("../outside/../root/a.csv")
@example("../outside/link/../../root/a.csv")
@example("../outside/link/../../root/sub")
@example("out/link/../../a.csv")
def test_what_is_outside_changes_nothing_that_a_user_is_told(worlds, pattern):
    for look in (names, tokens, model):
        told = {outcome(folder, f"ROOT/{pattern}", look) for folder in worlds}
        assert len(told) == 1, told


@pytest.mark.parametrize(
    "pattern", ["s*/../../outside/*", "s*/up/*", "[o]ut/*", "o*", "**/*.csv", "f*", "s*/../../*"]
)
def test_a_pattern_that_leads_out_is_forbidden_and_names_nothing_there(worlds, pattern):
    told = outcome(worlds[WORLDS.index(files)], f"ROOT/{pattern}", names)
    assert told.startswith(Reason.DATA_FORBIDDEN)
    assert "secret" not in told.replace(pattern, "")


plain = st.lists(
    st.sampled_from(
        ["*", "**", "?", "s*", "[a-c].csv", "*.csv", "sub", "deep", "a.csv", ".*", "."]
    ),
    min_size=1,
    max_size=4,
)


@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(plain.map("/".join).filter(glob.has_magic))
def test_within_the_root_a_pattern_matches_what_glob_finds(tmp_path, pattern):
    node = Node.at(tmp_path)
    for name in INSIDE:
        node.write(name, b"x")
    expected = {
        os.path.normpath(name)
        for name in glob.glob(f"{node.root}/{pattern}", recursive=True)
        if os.path.isfile(name)
    }
    allow = partial(local_files._require_opened, sources=node.sources)
    walk = local_patterns.LocalPattern(f"{node.root}/{pattern}", require_allowed=allow)
    assert set(map(os.path.normpath, walk.matches())) == expected


def test_links_within_the_root_are_followed_and_in_circles_not_for_ever(node):
    node.write("real/a.csv", b"x")
    (node.root / "alias").symlink_to("real")
    (node.root / "loop").symlink_to(".")
    (node.root / "pool").symlink_to(".")
    assert names(f"{node.root}/al*/*.csv", node) == [f"{node.root}/alias/a.csv"]
    assert names(f"{node.root}/loop/loop/r*/*.csv", node) == [f"{node.root}/loop/loop/real/a.csv"]


def test_the_names_that_are_looked_at_are_bounded(node, monkeypatch):
    monkeypatch.setattr(local_patterns, "MAX_LOOKED_AT", 100)
    (node.root / "loop").symlink_to(".")
    (node.root / "pool").symlink_to(".")
    with pytest.raises(JobFailed, match="names to look at for") as caught:
        names(f"{node.root}/**/*.csv", node)
    assert caught.value.reason is Reason.DATA_INVALID
    assert str(node.root) in str(caught.value)


def test_a_long_pattern_is_walked_without_recursion(node):
    node.write("a/b.csv", b"x")
    assert names(f"{node.root}/*{'/../a' * 600}/b.csv", node) == [
        f"{node.root}/a{'/../a' * 600}/b.csv"
    ]
