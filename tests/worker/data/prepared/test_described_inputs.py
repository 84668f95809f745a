"""What a checkpoint says of its inputs is enough to make new ones from raw values."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import all_rows, write_table
from image_files import GREY, RGB, png

from roadless.service.contract.checkpoint.manifest import MAX_DESCRIBED_INPUTS, DataShape
from roadless.worker.data.base import Description
from roadless.worker.data.builtin import breast_cancer
from roadless.worker.data.builtin.digits import Digits


def told(data: Any) -> DataShape:
    """What the manifest holds, as a stranger reads it from JSON."""
    return DataShape.model_validate_json(data.description.shape.model_dump_json())


def by_hand(raw: Any, shape: DataShape) -> Any:
    """New inputs as the docstring of DataShape says: by number, or by channel of images."""
    widths = (len(shape.mean), *(1 for _ in shape.input_shape[1:]))
    mean, deviation = np.array(shape.mean), np.array(shape.deviation)
    return (np.asarray(raw) - mean.reshape(widths)) / deviation.reshape(widths)


@pytest.mark.parametrize("columns", [None, ["depth", "height"]])
def test_standardised_columns_are_named_in_order_with_mean_and_deviation(node, columns):
    draw = np.random.default_rng(0)
    rows = {
        "height": draw.normal(5000, 10, 60).tolist(),
        "depth": draw.normal(-743, 3, 60).tolist(),
        "y": [i % 2 for i in range(60)],
    }
    spec = {"format": "csv", "path": write_table(node, "rows.csv", rows), "target": "y"}
    data = node.build({**spec, "standardise": True, "columns": columns})
    shape = told(data)
    assert list(shape.columns) == (columns or ["height", "depth"])
    raw = np.array([rows[name] for name in shape.columns]).T
    served = np.array(all_rows(data)[0])
    expected = by_hand(raw, shape)
    assert np.allclose(np.sort(served, axis=0), np.sort(expected, axis=0), atol=1e-5)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [GREY, RGB])
def test_images_have_mean_and_deviation_by_channel(node, colour, depth, standardise):
    bands = 3 if colour == RGB else 1
    samples = np.random.default_rng(0).integers(0, 2**depth, (8, 4, 5, bands))
    cells = [png(one if bands > 1 else one[..., 0], depth=depth, colour=colour) for one in samples]
    pq.write_table(pa.table({"seen": cells, "y": [0, 1] * 4}), node.root / "set.parquet")
    spec = {"format": "parquet", "path": f"{node.root}/set.parquet", "target": "y"}
    data = node.build({**spec, "image": "seen", "standardise": standardise})
    shape = told(data)
    assert len(shape.mean) == len(shape.deviation) == bands
    assert shape.white == 2**depth - 1
    expected = [by_hand(one.transpose(2, 0, 1), shape) for one in samples]
    served = [np.array(one) for one in all_rows(data)[0]]
    for one in served:
        assert min(np.abs(one - other).max() for other in expected) < 1e-5


def test_values_that_are_given_as_they_are_have_neither(node):
    spec = {"format": "csv", "target": "y"}
    path = write_table(node, "rows.csv", {"a": [1.0, 2.0], "y": [0, 1]})
    shape = told(node.build({**spec, "path": path}))
    assert (shape.columns, shape.mean, shape.deviation) == (("a",), (), ())


def test_a_sample_too_wide_for_a_manifest_is_not_described(node):
    wide = np.random.default_rng(0).normal(size=(4, MAX_DESCRIBED_INPUTS + 1))
    np.savez(node.root / "wide.npz", x=wide, y=[0, 1, 0, 1])
    spec = {"format": "npz", "path": f"{node.root}/wide.npz", "target": "y", "standardise": True}
    shape = told(node.build(spec))
    assert (shape.columns, shape.mean, shape.deviation) == (("x",), (), ())


def test_built_in_sets_tell_how_they_are_scaled():
    assert (told(Digits()).mean, told(Digits()).deviation) == ((8.0,), (8.0,))
    cancer = told(breast_cancer.load())
    assert len(cancer.mean) == len(cancer.deviation) == 30


def test_a_shape_survives_the_way_to_a_manifest_and_back():
    shape = DataShape(
        input_shape=(2,),
        num_classes=2,
        num_targets=0,
        tokens_per_sample=0,
        columns=("a", "b"),
        mean=(1.0, 2.0),
        deviation=(3.0, 4.0),
        white=255,
    )
    assert Description.of_shape(shape).shape == shape


def test_manifests_of_earlier_releases_are_read():
    old = '{"input_shape": [3], "num_classes": 2, "num_targets": 0, "tokens_per_sample": 0}'
    assert DataShape.model_validate_json(old).mean == ()
