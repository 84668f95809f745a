"""Rows of numbers: which are held out, how they are standardised, classes, and images."""

import io
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import Node, all_rows, write_table
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from roadless.service.contract.states import Reason
from roadless.worker.data.prepared import normalization
from roadless.worker.data.prepared.rows import drawn_rows
from roadless.worker.errors import JobFailed


def table(node: Node, num_rows: int = 100, **fields):
    rows = {"x": [float(i) for i in range(num_rows)], "y": [i % 3 for i in range(num_rows)]}
    path = write_table(node, f"rows-{num_rows}.csv", rows)
    return node.build({"format": "csv", "path": path, "target": "y", **fields})


def column(batch) -> list[float]:
    return batch.inputs[:, 0].tolist()


def fault(node: Node, build) -> str:
    with pytest.raises(JobFailed) as caught:
        build()
    assert caught.value.reason is Reason.DATA_INVALID
    return str(caught.value)


# ---- held out -----------------------------------------------------------------------------------


@given(st.integers(1, 300), st.data(), st.integers(0, 2**63 - 1))
def test_rows_are_drawn_once_each_in_order_and_by_the_seed(num_rows, data, seed):
    num_drawn = data.draw(st.integers(0, num_rows))
    drawn = drawn_rows(num_rows, num_drawn=num_drawn, seed=seed)
    assert len(drawn) == num_drawn
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert set(drawn.tolist()) <= set(range(num_rows))
    assert np.array_equal(drawn, drawn_rows(num_rows, num_drawn=num_drawn, seed=seed))


def test_drawn_rows_are_pinned_for_ever():
    """A change here would silently move rows between training and evaluation of stored jobs."""
    assert drawn_rows(100, num_drawn=5, seed=0).tolist() == [27, 33, 44, 50, 87]


@pytest.mark.parametrize(("num_rows", "fraction", "num_eval"), [(100, 0.05, 5), (3, 0.01, 1)])
def test_a_share_of_the_rows_is_held_out_and_all_others_are_trained_on(
    node, num_rows, fraction, num_eval
):
    data = table(node, num_rows, eval={"fraction": fraction})
    held_out = column(data.eval_batch(0, num_rows))
    trained = column(data.train_batch(np.arange(data.num_train)))
    assert (len(held_out), data.num_eval) == (num_eval, num_eval)
    assert trained == sorted(set(range(num_rows)) - set(held_out))


def test_another_seed_holds_out_other_rows(node):
    seeds = [column(table(node, eval={"seed": seed}).eval_batch(0, 9)) for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_one_row_is_too_few_to_train_on_and_hold_out(node):
    assert "to train on beside 1 held out" in fault(node, lambda: table(node, 1, num_classes=2))


def test_files_of_their_own_that_are_empty_are_refused(node):
    empty = write_table(node, "empty.csv", {"x": [], "y": []})
    assert "rows of" in fault(node, lambda: table(node, eval={"path": empty}))


def test_every_epoch_has_the_same_rows(node):
    data = table(node)
    first, later = (data.train_batch(np.array([7 + e * data.num_train])) for e in (0, 4))
    assert first.inputs.tolist() == later.inputs.tolist()


# ---- classes ------------------------------------------------------------------------------------


def test_classes_are_counted_or_given(node):
    assert table(node).description.num_classes == 3
    assert table(node, num_classes=7).description.num_classes == 7
    assert "row 2, column 'y'" not in fault(node, lambda: table(node, num_classes=2))


def test_a_class_of_held_out_rows_alone_counts_too(node):
    path = write_table(node, "held-out.csv", {"x": [1.0], "y": [5]})
    assert table(node, eval={"path": path}).description.num_classes == 6


def test_one_class_is_nothing_to_learn(node):
    path = write_table(node, "one.csv", {"x": [1.0, 2.0], "y": [0, 0]})
    spec = {"format": "csv", "path": path, "target": "y"}
    assert "at least two classes" in fault(node, lambda: node.build(spec))


# ---- standardised -------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 3), st.booleans(), st.data())
def test_standardised_rows_have_mean_0_and_deviation_1(num_rows, width, is_image, data):
    """Over blocks of any size, for columns and for channels; a constant column becomes 0."""
    shape = (width, 2, 2) if is_image else (width,)
    seed = data.draw(st.integers(0, 99))
    inputs = np.random.default_rng(seed).normal(3, 5, (num_rows, *shape)).astype(np.float32)
    rows = np.arange(num_rows)[:: data.draw(st.integers(1, 3))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalization, "_BLOCK_BYTES", data.draw(st.integers(1, 400)))
        found = normalization.of_rows(inputs, rows)
    served = found.applied(inputs[rows]).astype(np.float64)
    axes = (0, 2, 3) if is_image else (0,)
    assert np.allclose(served.mean(axis=axes), 0, atol=1e-4)
    deviation = served.std(axis=axes)
    assert np.all(np.isclose(deviation, 1, atol=1e-3) | np.isclose(deviation, 0, atol=1e-3))


def test_rows_held_out_are_standardised_by_those_trained_on(node):
    plain, served = table(node), table(node, standardise=True)
    trained = np.array(column(plain.train_batch(np.arange(plain.num_train))))
    expected = (np.array(column(plain.eval_batch(0, 9))) - trained.mean()) / trained.std()
    assert np.allclose(column(served.eval_batch(0, 9)), expected, atol=1e-5)
    assert plain.description.fingerprint != served.description.fingerprint


@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=30).filter(lambda x: len(set(x)) > 1),
    st.sampled_from([0.0, 1e9, -3e12, 1.7e18]),
    st.sampled_from([1e-280, 1e-3, 1.0, 1024.0]),
)
def test_a_mean_far_from_zero_costs_no_digit_of_what_is_left(steps, mean, unit):
    """Times, ids and readings of a meter: only the mean itself is rounded, to float64."""
    unit = unit if mean == 0 else max(1.0, abs(mean) * 2**-50)
    column = mean + np.array(steps) * unit
    found = normalization.of_rows(column[:, None], np.arange(len(column)))
    exact = [Fraction(value) for value in column.tolist()]
    middle = sum(exact) / len(exact)
    variance = float(sum(((value - middle) / Fraction(unit)) ** 2 for value in exact) / len(exact))
    expected = [float((value - middle) / Fraction(unit)) / variance**0.5 for value in exact]
    of_mean = np.spacing(abs(mean)) / unit / variance**0.5
    served = found.applied(column[:, None])[:, 0]
    assert np.allclose(served, expected, rtol=1e-5, atol=max(1e-5, of_mean))


@given(st.floats(-1e30, 1e30), st.integers(1, 50))
def test_a_constant_column_becomes_exactly_0_whatever_the_constant(value, num_rows):
    inputs = np.full((num_rows, 1), value)
    found = normalization.of_rows(inputs, np.arange(num_rows))
    assert (found.mean.tolist(), found.deviation.tolist()) == ([value], [1.0])
    assert not found.applied(inputs).any()


# ---- images -------------------------------------------------------------------------------------


def encoded(value: int, *, size=(4, 6), mode="RGB", format="PNG") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size[::-1], value if mode == "L" else (value, 0, 255)).save(content, format)
    return content.getvalue()


def images(node: Node, values: list[object], *, is_struct: bool = False, **fields):
    cells = [{"bytes": value, "path": None} for value in values] if is_struct else values
    rows = {"picture": cells, "y": [i % 2 for i in range(len(values))]}
    pq.write_table(pa.table(rows), node.root / "images.parquet")
    spec = {"format": "parquet", "path": f"{node.root}/images.parquet", "target": "y"}
    return node.build({**spec, "image": "picture", **fields})


@pytest.mark.parametrize("is_struct", [False, True])
def test_encoded_images_are_served_between_minus_1_and_1(node, is_struct):
    data = images(node, [encoded(v) for v in (0, 255, 51, 102)], is_struct=is_struct)
    assert data.description.input_shape == (3, 4, 6)
    inputs, _ = all_rows(data)
    reds = sorted(round(image[0][0][0], 5) for image in inputs)
    assert reds == [-1.0, -0.6, -0.2, 1.0]
    assert {image[2][1][1] for image in inputs} == {1.0}


def test_grey_images_have_one_channel_and_sizes_can_be_made_alike(node):
    values = [encoded(9, size=(4, 4 + i), mode="L") for i in range(4)]
    data = images(node, values, image_size=[2, 3])
    assert data.description.input_shape == (1, 2, 3)
    assert images(node, values[:1] * 3, standardise=True).eval_batch(0, 1).inputs.abs().max() == 0


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"no image", "image, saw content that begins with b'no image'"),
        (encoded(1)[:-30], "image, saw image file is truncated"),
        (None, "the bytes of an image, saw None"),
        (encoded(1, size=(5, 6)), "4x6 pixels like the first image, or an image_size, saw 5x6"),
    ],
)
def test_what_is_no_image_like_the_first_is_named_with_its_row(node, value, problem):
    said = fault(node, lambda: images(node, [encoded(1), encoded(2), value, encoded(3)]))
    assert "images.parquet, row 3, column 'picture': expected" in said
    assert problem in said


def test_a_colour_image_behind_a_grey_one_is_refused(node):
    said = fault(node, lambda: images(node, [encoded(1, mode="L"), encoded(1)]))
    assert "row 2, column 'picture'" in said
    assert "a grey image like the first one, saw a colour image" in said


def test_an_image_that_would_fill_the_memory_is_refused(node, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    said = fault(node, lambda: images(node, [encoded(1)]))
    assert "row 1, column 'picture'" in said
