"""A column of images: alike without loss, or the one that is unlike is named with its row."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import Node, all_rows
from hypothesis import given
from hypothesis import strategies as st
from image_files import GREY, GREY_ALPHA, RGB, RGBA, exif, png
from PIL import Image

from roadless.service.contract.states import Reason
from roadless.worker.data.formats.chunk import Chunk
from roadless.worker.data.formats.images import Decoder
from roadless.worker.data.formats.pixels import decode
from roadless.worker.errors import DataInvalid, JobFailed

GREY_8, GREY_16 = [[0, 51], [102, 255]], [[0, 300], [40_000, 65_535]]
COLOUR_8 = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [255, 0, 0]]]


def grey(pixels: Any, depth: int = 8) -> bytes:
    return png(np.array(pixels), depth=depth, colour=GREY)


def colour(pixels: Any, depth: int = 8) -> bytes:
    return png(np.array(pixels), depth=depth, colour=RGB)


def decoded(
    *values: object, size: tuple[int, int] | None = None, num_channels: int | None = None
) -> Any:
    return Decoder(size, num_channels).decode(Chunk("set.parquet", 1, {"seen": values}), "seen")


def fault(*values: object) -> str:
    with pytest.raises(DataInvalid) as caught:
        decoded(*values)
    said = str(caught.value)
    assert f"set.parquet, row {len(values)}, column 'seen': expected" in said
    return said


# ---- alike --------------------------------------------------------------------------------------


def test_grey_becomes_colour_behind_a_colour_image():
    images = decoded(colour(COLOUR_8), grey(GREY_8))
    assert images.dtype == np.uint8
    assert images[1].tolist() == [GREY_8] * 3


def test_colour_without_any_colour_becomes_grey_behind_a_grey_image():
    as_colour = np.repeat(np.array(GREY_8)[..., None], 3, axis=2)
    assert decoded(grey(GREY_8), colour(as_colour)).tolist() == [[GREY_8]] * 2


def test_8_bits_become_16_behind_an_image_of_16():
    images = decoded(grey(GREY_16, depth=16), grey(GREY_8))
    assert images.dtype == np.uint16
    assert images[:, 0].tolist() == [GREY_16, (np.array(GREY_8) * 257).tolist()]


def test_16_bits_that_8_can_hold_become_8_behind_an_image_of_8():
    deep = (np.array(GREY_8) * 257).tolist()
    assert decoded(grey(GREY_8), grey(deep, depth=16)).tolist() == [[GREY_8]] * 2


def test_deep_grey_becomes_deep_colour():
    deep = np.array(COLOUR_8) * 250
    images = decoded(colour(deep, depth=16), grey(GREY_8))
    assert images[1].tolist() == [(np.array(GREY_8) * 257).tolist()] * 3


def test_three_channels_make_grey_images_colour_whichever_is_first():
    images = decoded(grey(GREY_8), colour(COLOUR_8), num_channels=3)
    assert images[0].tolist() == [GREY_8] * 3
    assert images[1].transpose(1, 2, 0).tolist() == COLOUR_8


@pytest.mark.parametrize("depth", [8, 16])
def test_one_channel_makes_colour_images_grey_by_luma(depth):
    samples = np.random.default_rng(0).integers(0, 2**depth, (4, 5, 3))
    images = decoded(colour(samples, depth=depth), grey(samples[..., 0], depth), num_channels=1)
    luma = samples @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(images[0, 0] - luma).max() <= 0.5 + 1e-9
    assert np.array_equal(images[1, 0], samples[..., 0])


@pytest.mark.parametrize("depth", [8, 16])
@given(value=st.integers(0, 65535), height=st.integers(1, 5), width=st.integers(1, 5))
def test_a_flat_image_keeps_its_value_at_any_size(depth, value, height, width):
    value %= 2**depth
    images = decoded(grey(np.full((3, 4), value), depth=depth), size=(height, width))
    assert images.shape == (1, 1, height, width)
    assert (images == value).all()


def test_images_are_turned_and_put_on_white_before_they_are_resized():
    pixels = np.zeros((2, 8, 2), dtype=int)
    pixels[:, 4:, 1] = 255  # black on the right, nothing on the left
    upside_down = png(pixels, depth=8, colour=GREY_ALPHA, eXIf=exif(6))
    images = decoded(upside_down, size=(4, 1))
    assert images[0, 0, :, 0].tolist() == [255, 223, 32, 0]  # the middle ones see a little of both


def test_the_dimmest_bits_of_a_deep_image_are_told_apart():
    """12 bits in 16, as microscopes and depth cameras store them."""
    images = decoded(grey([[0, 1, 2, 4095]], depth=16))
    assert images.tolist() == [[[[0, 1, 2, 4095]]]]


# ---- refused ------------------------------------------------------------------------------------


def test_colour_behind_grey_is_refused_with_a_way_out():
    said = fault(grey(GREY_8), grey(GREY_8), colour(COLOUR_8))
    assert "a grey image like the first one, saw a colour image; set image_channels to 3 to" in said


def test_16_bits_behind_8_are_refused_with_a_way_out():
    said = fault(grey(GREY_8), grey(GREY_16, depth=16))
    assert "8 bits a sample like the first image, saw 16 bits a sample; convert all" in said


def test_an_image_that_was_turned_has_its_size_as_it_is_seen():
    upright, turned = (
        np.zeros((2, 3), dtype=int),
        png(np.zeros((2, 3)), depth=8, colour=GREY, eXIf=exif(6)),
    )
    assert "2x3 pixels like the first image, or an image_size, saw 3x2" in fault(
        grey(upright), turned
    )


def animation() -> bytes:
    content = io.BytesIO()
    frames = [Image.new("RGB", (2, 2), name) for name in ("red", "blue", "lime")]
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    return content.getvalue()


def white_on_nothing() -> bytes:
    pixels = np.full((2, 2, 4), 255)
    pixels[0, 0, 3] = 0
    return png(pixels, depth=8, colour=RGBA)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "the bytes of an image, saw None"),
        ("images/1.png", "saw 'images/1.png'; store the content of the file in the column"),
        ("iVBORw0KGgo=", "saw 'iVBORw0KGgo='; store the content of the file in the column"),
        ({"bytes": None, "path": "1.png"}, "store the content of the file in the column, not its"),
        (np.zeros((2, 2, 3), np.uint8), "array of shape (2, 2, 3); name arrays of pixels in `col"),
        ([[0, 1], [2, 3]], "saw [[0, 1], [2, 3]]; name arrays of pixels in `columns`"),
        (b"", "a whole PNG or JPEG or WEBP or BMP or GIF or TIFF image, saw no bytes; convert it"),
        (b"<svg/>", "image, saw content that begins with b'<svg/>'; convert it, or leave the row"),
        (b"P6 1 1 255 abc" * 9, "saw content that begins with b'P6 1 1 255 abcP6'; convert it"),
        (animation(), "one picture in a file, saw 3 frames or pages; save the one to learn from"),
        (white_on_nothing(), "a picture that shows on white, which transparent parts become, saw"),
    ],
)
def test_what_is_no_image_is_named_with_its_row_and_a_way_out(value, problem):
    assert problem in fault(grey(GREY_8), value)


@given(st.binary(max_size=80), st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]))
def test_no_broken_file_ends_a_job_without_its_row(junk, format):
    content = io.BytesIO()
    Image.new("RGB", (5, 5)).save(content, format)
    half = content.getvalue()[: len(content.getvalue()) // 2]
    try:
        said = f"row 1, column 'seen': {decoded(half + junk).shape}"
    except DataInvalid as error:
        said = str(error)
    assert "row 1, column 'seen'" in said


# ---- from a file to a job -----------------------------------------------------------------------


def build(node: Node, cells: Any, **fields: Any) -> Any:
    table = pa.table({"seen": cells, "y": [i % 2 for i in range(len(cells))]})
    pq.write_table(table, node.root / "set.parquet")
    spec = {"format": "parquet", "path": f"{node.root}/set.parquet", "target": "y"}
    return node.build({**spec, "image": "seen", **fields})


def test_deep_images_are_served_between_minus_1_and_1(node):
    values = [0, 65535, 21845, 43690]
    data = build(node, [grey([[value]], depth=16) for value in values])
    served = sorted(round(image[0][0][0], 6) for image in all_rows(data)[0])
    assert served == [-1, round(-1 / 3, 6), round(1 / 3, 6), 1]


def test_deep_images_are_standardised_by_their_own_numbers(node):
    data = build(node, [grey([[value, 0]], depth=16) for value in (1, 2, 3, 4)], standardise=True)
    trained = data.train_batch(np.arange(data.num_train)).inputs.numpy().astype(np.float64)
    assert trained.mean() == pytest.approx(0, abs=1e-6)
    assert trained.std() == pytest.approx(1, abs=1e-5)


def test_training_and_held_out_rows_see_one_conversion(node):
    """A later split is fitted to what the first image of the first one decided."""
    for name, cells in (("a", [colour(COLOUR_8)] * 3), ("b", [grey(GREY_8)] * 2)):
        pq.write_table(pa.table({"seen": cells, "y": [0, 1, 0][: len(cells)]}), node.root / name)
    spec = {"format": "parquet", "path": f"{node.root}/a", "target": "y", "image": "seen"}
    data = node.build({**spec, "eval": {"path": f"{node.root}/b"}})
    held_out = data.eval_batch(0, 1).inputs[0].double().numpy()
    assert np.allclose((held_out + 1) * 255 / 2, [GREY_8] * 3, atol=1e-4)


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LARGE_STRUCT = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), STRUCT, LARGE_STRUCT]
)
def test_every_arrow_type_of_bytes_holds_images(node, kind):
    content = [grey(GREY_8), grey(GREY_8), grey([[1, 2], [3, 4]])]
    cells: list[Any] = content
    if pa.types.is_struct(kind):
        cells = [{"bytes": one, "path": "elsewhere.png"} for one in content]
    inputs, _ = all_rows(build(node, pa.array(cells, kind)))
    seen = sorted(np.rint((np.array(one) + 1) * 255 / 2).tolist() for one in inputs)
    assert seen == sorted(decode(one).astype(float).tolist() for one in content)


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (pa.array([{"bytes": None, "path": "1.png"}] * 3, STRUCT), "saw {'bytes': None, 'path': '"),
        (pa.array([None] * 3, STRUCT), "the bytes of an image, saw None"),
        (pa.array(["1.png"] * 3), "saw '1.png'; store the content"),
        (pa.array([[1, 2]] * 3), "an array of shape (2,)"),
        (pa.array([[{"bytes": b"", "path": "x"}]] * 3, pa.list_(STRUCT)), "the bytes of an image"),
    ],
)
def test_references_and_arrays_in_an_image_column_are_refused(node, cells, problem):
    with pytest.raises(JobFailed) as caught:
        build(node, cells)
    assert caught.value.reason is Reason.DATA_INVALID
    assert "set.parquet, row 1, column 'seen'" in str(caught.value)
    assert problem in str(caught.value)


# ---- arrays of pixels ---------------------------------------------------------------------------


def of_arrays(node: Node, pixels: Any, format: str, say: Any = print) -> Any:
    labels = [i % 2 for i in range(len(pixels))]
    if format == "npz":
        np.savez(node.root / "set.npz", x=pixels, y=labels)
    else:
        cells = (
            pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
            if format == "tensors"
            else pa.array(pixels.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
        )
        pq.write_table(pa.table({"x": cells, "y": labels}), node.root / "set.parquet")
    kind = "npz" if format == "npz" else "parquet"
    spec = {"format": kind, "path": f"{node.root}/set.{kind}", "target": "y"}
    return node.build(spec, say=say)


@pytest.mark.parametrize("format", ["npz", "tensors", "lists"])
@pytest.mark.parametrize("num_channels", [1, 3, 4])
def test_images_with_their_channels_last_are_turned_and_it_is_said(node, format, num_channels):
    last = np.arange(4 * 5 * 6 * num_channels, dtype=np.uint8).reshape(4, 5, 6, num_channels)
    told: list[str] = []
    data = of_arrays(node, last, format, say=told.append)
    assert data.description.input_shape == (num_channels, 5, 6)
    inputs, _ = all_rows(data)
    assert sorted(inputs) == sorted(last.transpose(0, 3, 1, 2).astype(float).tolist())
    said = f"images of shape (5, 6, {num_channels}) become ({num_channels}, 5, 6), channels first"
    assert any(said in text for text in told)


@pytest.mark.parametrize("shape", [(3, 6, 3), (1, 5, 4), (4, 4, 4), (2, 5, 3), (6, 5, 2)])
def test_arrays_that_may_have_their_channels_first_stay_as_they_are(node, shape):
    pixels = np.zeros((4, *shape), np.uint8)
    assert of_arrays(node, pixels, "npz").description.input_shape == shape
    pixels = np.zeros((4, 5, 6, 3), np.float32)
    assert of_arrays(node, pixels, "npz").description.input_shape == (5, 6, 3)
