"""A long preparation says how far it is, often enough and not too often."""

import json
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from data_cases import Node, write_table
from hypothesis import given
from hypothesis import strategies as st

from roadless.worker.data import progress
from roadless.worker.data.formats.chunk import CHUNK_ROWS
from roadless.worker.data.prepared import row_writer
from roadless.worker.data.progress import SAY_EVERY_SECONDS, Progress, telling


@given(st.lists(st.floats(0, 30), max_size=40))
def test_words_are_never_closer_than_20_s_nor_left_out_for_longer(pauses):
    now, said = 0.0, []
    told = Progress(lambda text: said.append(float(text)), clock=lambda: now)
    for pause in pauses:
        now += pause
        told.tell(str(now))
    times = [0.0, *said]
    gaps = [after - before for before, after in pairwise(times)]
    assert all(gap >= SAY_EVERY_SECONDS for gap in gaps)
    assert now - times[-1] < SAY_EVERY_SECONDS


@pytest.mark.parametrize(("task", "unit"), [("classification", "rows"), ("causal_lm", "tokens")])
def test_rows_and_tokens_are_told_as_they_are_prepared(tmp_path, monkeypatch, task, unit):
    monkeypatch.setattr(progress, "SAY_EVERY_SECONDS", 0.0)
    node, said = Node.at(tmp_path), []
    num_rows = 2 * CHUNK_ROWS + 1
    rows = {"x": [1.0] * num_rows, "y": [0, 1] * CHUNK_ROWS + [0], "t": ["word"] * num_rows}
    path = write_table(node, "rows.jsonl", rows)
    fields = {"text": "t"} if unit == "tokens" else {"columns": ["x"], "target": "y"}
    node.build({"format": "jsonl", "path": path, **fields}, task=task, say=said.append)
    assert said[0] == "1 files are found"
    assert f"{path}: {num_rows if unit == 'rows' else 5 * num_rows} {unit} are prepared" in said


def test_a_rank_that_waits_for_another_says_so(tmp_path, monkeypatch):
    """Else its own job would be taken for one that does not start."""
    monkeypatch.setattr(progress, "SAY_EVERY_SECONDS", 0.0)
    node, said = Node.at(tmp_path), []
    spec = {"format": "csv", "target": "y"}
    spec["path"] = write_table(node, "rows.csv", {"x": [1.0, 2.0, 3.0], "y": [0, 1, 0]})
    prepares, may_end = threading.Event(), threading.Event()
    write = row_writer.RowWriter.write

    def slow(self, chunk):
        prepares.set()
        assert may_end.wait(10)
        write(self, chunk)

    monkeypatch.setattr(row_writer.RowWriter, "write", slow)
    first = threading.Thread(target=node.build, args=(spec,))
    first.start()
    assert prepares.wait(10)

    def say(text: str) -> None:
        said.append(text)
        if "another rank" in text:
            may_end.set()

    node.build(spec, say=say)
    first.join()
    assert any("being prepared by another rank of this node" in text for text in said)


def test_work_that_cannot_say_how_far_it_is_is_told_until_it_ends(monkeypatch):
    monkeypatch.setattr(progress, "_REPEAT_SECONDS", 0.01)
    heard, enough = [], threading.Event()

    def tell(text: str) -> None:
        heard.append(text)
        if len(heard) == 3:
            enough.set()

    with telling("being copied", tell):
        assert enough.wait(10)
    assert set(heard) == {"being copied"}
    before = len(heard)
    threading.Event().wait(0.05)
    assert len(heard) == before


def test_the_bound_of_the_cache_is_kept_while_an_entry_grows(tmp_path, monkeypatch):
    monkeypatch.setattr("roadless.worker.data.prepared.preparation._MEASURE_EVERY_SECONDS", 0.0)
    node = Node.at(tmp_path, cache_bytes=20_000)
    num_rows = 50 * CHUNK_ROWS
    lines = (json.dumps({"x": 1.0, "y": 0}) + "\n") * num_rows
    path = node.write("rows.jsonl", lines)
    written: list[int] = []
    write = row_writer.RowWriter.write

    def counted(self, chunk):
        write(self, chunk)
        written.append(self.num_rows)

    monkeypatch.setattr(row_writer.RowWriter, "write", counted)
    with pytest.raises(Exception, match="at most 20000 bytes when prepared"):
        node.build({"format": "jsonl", "path": path, "target": "y"})
    assert max(written) < num_rows / 4
    assert list(Path(node.sources.cache).iterdir()) == [Path(node.sources.cache) / "locks"]
