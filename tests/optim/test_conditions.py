"""Every optimizer under every condition is right or refuses, as docs/conditions.md says."""

import pytest
from conditions import CONDITIONS, NONE, RIGHT, Condition, outcome
from conditions_table import DOCUMENT, documented, numbered, sentence
from optim_makes import NAMES

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], str]:
    return documented()


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda one: one.key)
@pytest.mark.parametrize("name", NAMES)
def test_a_condition_is_met_or_refused_as_documented(
    name: str, condition: Condition, table: dict[tuple[str, str], str]
) -> None:
    seen = outcome(name, condition)
    said = seen if seen in (RIGHT, NONE) else sentence(name, seen)
    assert said == table[name, condition.key]


def test_the_document_lists_every_condition() -> None:
    assert numbered() in DOCUMENT.read_text()
