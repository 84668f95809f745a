"""The node that tests of data read from; those that need another one define it themselves."""

from pathlib import Path

import pytest
from data_cases import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node.at(tmp_path)
