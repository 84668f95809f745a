"""Texts to tokens: what is packed, where the held-out part begins, and which tokenizer cut it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import Node, said, write_table
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from roadless.service.contract.states import Reason
from roadless.worker.data.formats import text_pieces
from roadless.worker.data.formats.chunk import Piece
from roadless.worker.data.prepared import tokens
from roadless.worker.data.prepared.token_dataset import TokenString
from roadless.worker.data.prepared.tokenizer import Bytes, load
from roadless.worker.errors import JobFailed

TEXT = "Über die Brücke, über den Fluß.\nUnd zurück.\n"
END = "<|end|>"


class Texts:
    """Records that hold these texts, each cut into pieces."""

    name = "texts"
    identity: list[Any] = []

    def __init__(self, train: list[list[str]], held_out: list[list[str]] | None = None) -> None:
        self._parts = {"train": train, "eval": held_out or []}
        self.has_own_eval = held_out is not None
        self.is_raw = False

    def pieces(self, part, *, work, tell):
        for text in self._parts[part]:
            for number, piece in enumerate(text, start=1):
                yield Piece(piece.encode(), ends_text=number == len(text))

    def chunks(self, part, *, work, choose, tell):
        raise AssertionError


def packed(folder: Path, records: Texts, *, fraction: float | None = 0.5) -> TokenString:
    folder.mkdir(exist_ok=True)
    tokens.prepare(folder, records, tokenizer=Bytes(), fraction=fraction, tell=lambda text: None)
    return tokens.load(folder)


@pytest.fixture
def bpe(node: Node) -> str:
    """A small tokenizer of the field's usual kind, saved in a folder as transformers does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 10, trainer)
    node.write("bpe/tokenizer.json", tokenizer.to_str())
    node.write("bpe/tokenizer_config.json", json.dumps({"eos_token": {"content": END}}))
    return str(node.root / "bpe")


# ---- packing ------------------------------------------------------------------------------------

texts = st.lists(st.lists(st.text("aä\n", max_size=5), min_size=1, max_size=3), max_size=8)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts, texts)
def test_every_byte_of_every_text_is_packed_in_order_with_a_zero_behind_each(
    tmp_path, train, held_out
):
    whole, kept = (["".join(text) for text in part] for part in (train, held_out))
    if not (said(whole) and said(kept)):
        with pytest.raises(JobFailed, match="expected text of texts to"):
            packed(tmp_path / "p", Texts(train, held_out), fraction=None)
        return
    string = packed(tmp_path / "p", Texts(train, held_out), fraction=None)
    assert bytes(string.tokens) == said(whole) + said(kept)
    assert string.num_train == len(said(whole))
    num_bytes = len("".join(kept).encode())
    assert string.bytes_per_token == pytest.approx(num_bytes / len(said(kept)))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 99))
def test_the_held_out_part_is_the_share_asked_for_or_begins_with_a_text_soon_after(sizes, percent):
    starts = np.cumsum([0, *sizes])[:-1]
    total, fraction = sum(sizes), percent / 100
    boundary = tokens.boundary(starts, num_tokens=total, fraction=fraction)
    asked = max(1, total * percent // 100)
    held_out = total - boundary
    assert asked / 2 <= held_out <= asked
    if held_out != asked:
        assert boundary in starts
        assert not any(total - asked <= start < boundary for start in starts)


def test_a_whole_twentieth_of_one_long_text_is_held_out():
    for total in range(20, 400):
        starts = np.array([0])
        boundary = tokens.boundary(starts, num_tokens=total, fraction=0.05)
        assert total - boundary == total // 20


def test_held_out_bytes_are_those_of_the_held_out_tokens(tmp_path):
    string = packed(tmp_path / "p", Texts([["a" * 9], ["ä" * 4]]))
    assert bytes(string.tokens[string.num_train :]) == "ä".encode() * 4 + b"\0"
    assert string.bytes_per_token == pytest.approx(8 / 9)


#: How files that are packed begin, as far as that is UTF-8.
PACKED = (b"PK\x03\x04", b"Rar!\x1a\x07", b"\x04\x22\x4d\x18", b"\x5d\x00\x00")
PACKED_BY_ZSTD = tuple(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))
contents = st.binary(max_size=60) | st.text(max_size=30).map(str.encode)


@given(
    contents.filter(lambda content: not content.startswith(PACKED + PACKED_BY_ZSTD)),
    st.integers(1, 9),
)
@example("\x80".encode(), 1)
@example("aé😀".encode(), 1)
@example(b"\x80" * 9, 1)
@example("\ufeffaé".encode(), 1)
@example("\ufeff".encode(), 9)
def test_pieces_of_a_text_join_to_it_and_never_cut_a_character(tmp_path_factory, content, size):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_pieces, "PIECE_BYTES", size)
        try:
            expected = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            with pytest.raises(JobFailed, match=r"expected (UTF-8|whole and undamaged|one file)"):
                list(text_pieces.read_text(path, file="a.txt"))
            return
        pieces = list(text_pieces.read_text(path, file="a.txt"))
    assert "".join(piece.content.decode() for piece in pieces) == expected
    assert [piece.ends_text for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("format", ["jsonl", "text"])
def test_a_zero_byte_in_a_text_would_part_it_and_is_refused(node, format, bpe):
    content = ["fine", "", "two\0texts", "fine"]
    if format == "jsonl":
        write_table(node, "a.jsonl", {"t": content * 40})
    else:
        node.write("a.text", "\n".join(content) * 9)
    spec = {"format": format, "path": f"{node.root}/a.{format}"}
    spec |= {"text": "t"} if format == "jsonl" else {}
    with pytest.raises(JobFailed) as caught:
        node.build(spec, task="causal_lm")
    assert caught.value.reason is Reason.DATA_INVALID
    number = {"jsonl": 2, "text": 1}[format]
    assert f"a.{format}, text {number} of those that are not empty: expected no zero" in str(
        caught.value
    )
    assert node.build({**spec, "tokenizer": bpe}, task="causal_lm").num_train > 0
    raw = node.build({"format": "bytes", "path": f"{node.root}/a.{format}"}, task="causal_lm")
    assert raw.num_train > 0


def test_files_of_text_are_texts_and_files_of_bytes_are_one_string(node):
    node.write("1.txt", TEXT)
    node.write("2.txt", TEXT[::-1])
    spec = {"path": f"{node.root}/*.txt", "eval": {"path": f"{node.root}/1.txt"}}
    for format, expected in (("text", said([TEXT])), ("bytes", TEXT.encode())):
        data = node.build({"format": format, **spec}, task="causal_lm", context=len(expected) - 1)
        batch = data.eval_batch(0, 1)
        assert bytes([int(batch.inputs[0, 0]), *batch.targets[0].tolist()]) == expected
        assert data.description.num_classes == 256


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_a_column_of_texts_is_packed_row_by_row(node, format):
    rows = {"t": [f"text {number}" for number in range(50)], "n": list(range(50))}
    path = write_table(node, f"rows.{format}", rows)
    data = node.build({"format": format, "path": path, "text": "t"}, task="causal_lm", context=3)
    batch = data.eval_batch(0, 99)
    held_out = said(rows["t"])[-(len(said(rows["t"])) // 20) :]
    start = held_out.index(b"\0") + 1
    assert bytes(batch.inputs.flatten().tolist()) == held_out[start : start + batch.inputs.numel()]


def test_a_part_without_text_is_refused(node):
    path, empty = node.write("a.txt", TEXT), node.write("b.txt", "")
    for train, held_out, purpose in ((empty, path, "train on"), (path, empty, "hold out")):
        spec = {"format": "text", "path": train, "eval": {"path": held_out}}
        with pytest.raises(JobFailed, match=f"to {purpose}, saw none") as caught:
            node.build(spec, task="causal_lm")
        assert caught.value.reason is Reason.DATA_INVALID


# ---- tokenizers ---------------------------------------------------------------------------------


def test_texts_are_cut_by_the_tokenizer_and_parted_by_its_end_of_text(node, bpe):
    path = write_table(node, "rows.jsonl", {"t": [TEXT, "Fluß"] * 20})
    spec = {"format": "jsonl", "path": path, "text": "t", "tokenizer": bpe}
    data = node.build({**spec, "eval": {"path": path}}, task="causal_lm", context=3)
    tokenizer = Tokenizer.from_file(f"{bpe}/tokenizer.json")
    batch = data.eval_batch(0, data.num_eval)
    ids = [int(batch.inputs[0, 0]), *batch.targets.flatten().tolist()]
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    assert decoded.startswith(TEXT + END + "Fluß" + END + TEXT)
    assert data.description.num_classes == tokenizer.get_vocab_size()
    num_tokens = len(tokenizer.encode(TEXT).ids) + len(tokenizer.encode("Fluß").ids) + 2
    expected = len((TEXT + "Fluß").encode()) / num_tokens
    assert data.description.bytes_per_token == pytest.approx(expected)


def test_a_tokenizer_is_a_file_or_a_folder_and_the_separator_may_be_named(node, bpe):
    folder = load(bpe, separator=None, sources=node.sources)
    file = load(f"{bpe}/tokenizer.json", separator=END, sources=node.sources)
    assert folder.identity == file.identity
    other = load(bpe, separator="a", sources=node.sources)
    assert other.identity != folder.identity
    assert other.encode([b"a"])[0].tolist() == [other.separator]


def test_another_tokenizer_is_another_entry_of_the_cache(node, bpe):
    path = node.write("a.txt", TEXT * 20)
    spec = {"format": "text", "path": path}
    plain = node.build(spec, task="causal_lm").description
    cut = node.build({**spec, "tokenizer": bpe}, task="causal_lm").description
    assert plain.fingerprint != cut.fingerprint
    assert cut.num_classes > plain.num_classes


@pytest.mark.parametrize(
    ("name", "fields", "reason", "problem"),
    [
        ("absent", {}, Reason.DATA_NOT_FOUND, "expected a tokenizer.json at"),
        ("../secret", {}, Reason.DATA_FORBIDDEN, "ROADLESS_DATA_ROOTS"),
        ("a.txt", {"separator": "x"}, Reason.DATA_INVALID, "expected a tokenizer at"),
        ("bpe", {"separator": "<|no|>"}, Reason.DATA_INVALID, "saw '<|no|>'"),
        ("bare/tokenizer.json", {}, Reason.DATA_INVALID, "names no end-of-text token"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_says_why(node, bpe, name, fields, reason, problem):
    node.write("bare/tokenizer.json", Path(bpe, "tokenizer.json").read_bytes())
    path = node.write("a.txt", TEXT * 20)
    spec = {"format": "text", "path": path, "tokenizer": str(node.root / name), **fields}
    with pytest.raises(JobFailed) as caught:
        node.build(spec, task="causal_lm")
    assert caught.value.reason is reason
    assert problem in str(caught.value)


def test_a_word_that_a_tokenizer_has_no_token_for_is_final(node):
    words = Tokenizer(models.WordLevel({"<end>": 0, "known": 1}))
    tokenizer = node.write("words/tokenizer.json", words.to_str())
    path = node.write("a.txt", "unknown")
    with pytest.raises(JobFailed, match="to have tokens for every text, saw: WordLevel") as caught:
        node.build(
            {"format": "text", "path": path, "tokenizer": tokenizer, "separator": "<end>"},
            task="causal_lm",
        )
    assert caught.value.reason is Reason.DATA_INVALID


def test_a_character_that_a_tokenizer_would_leave_out_is_refused(node):
    letters = Tokenizer(models.BPE({"<end>": 0, "a": 1, "b": 2}, []))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = node.write("letters/tokenizer.json", letters.to_str())
    spec = {"format": "text", "tokenizer": tokenizer, "separator": "<end>"}
    path = node.write("a.txt", "a b ab\u0301\n" * 99)
    assert node.build({**spec, "path": path}, task="causal_lm").description.num_classes == 3
    for text in ("ab 1 ", "aéb", "a€b"):
        path = node.write("b.txt", "ab" * 99 + text)
        with pytest.raises(JobFailed, match=r"token for every character, saw none for '[1é€]'"):
            node.build({**spec, "path": path}, task="causal_lm")


def test_a_library_that_is_not_installed_is_named(node, bpe, monkeypatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name="tokenizers")

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(JobFailed, match="expected the package tokenizers") as caught:
        load(bpe, separator=None, sources=node.sources)
    assert caught.value.reason is Reason.DATA_NOT_FOUND
