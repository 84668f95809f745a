"""Our safetensors writer against the library's reader."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from training_bench import bits

from roadless.worker.checkpointing.safetensors_file import (
    TensorForm,
    in_file_order,
    write_bytes,
    write_tensors,
)

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint64),
    *(torch.uint32, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2),
]
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    wanted=st.dictionaries(
        st.text(min_size=1, max_size=8), st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6
    ),
    metadata=st.dictionaries(st.text(max_size=4), st.text(max_size=9), max_size=2),
)
def test_the_library_reads_what_was_written_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]],
    metadata: dict[str, str],
) -> None:
    """Any names, shapes and dtypes; every tensor aligned to its dtype; the hash is the file's."""
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    wanted.pop("__metadata__", None)
    tensors = {n: torch.randint(0, 2, shape).to(dtype) for n, (dtype, shape) in wanted.items()}
    forms = {name: TensorForm.of(tensor) for name, tensor in tensors.items()}
    file = write_tensors(
        path, forms, (tensors[name] for name in in_file_order(forms)), metadata=metadata
    )
    assert bits(load_file(path)) == bits(tensors)
    with safe_open(path, framework="pt") as opened:
        assert (opened.metadata() or {}) == metadata
    content = path.read_bytes()
    assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    length = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            start = 8 + length + entry["data_offsets"][0]
            assert start % tensors[name].dtype.itemsize == 0


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    view = torch.arange(12.0).view(3, 4).t()[1:]
    write_tensors(tmp_path / "x", {"view": TensorForm.of(view)}, [view])
    assert torch.equal(load_file(tmp_path / "x")["view"], view)


def test_what_differs_from_its_form_is_refused(tmp_path: Path) -> None:
    forms = {"a": TensorForm(torch.float32, (2,))}
    with pytest.raises(ValueError, match="a: expected TensorForm"):
        write_tensors(tmp_path / "x", forms, [torch.zeros(3)])
    with pytest.raises(
        TypeError, match=r"a: expected a dtype of safetensors, saw torch\.complex128"
    ):
        write_tensors(tmp_path / "y", {"a": TensorForm(torch.complex128, ())}, [torch.zeros(())])


def test_a_file_is_never_written_over(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"first")
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first"
