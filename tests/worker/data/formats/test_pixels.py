"""Pixels: what a viewer shows, worked out from the samples that were written into each file."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, Samples, exif, png, tiff
from PIL import Image, UnidentifiedImageError

from roadless.worker.data.formats.pixels import NotShowable, decode

MIN_IS_WHITE, MIN_IS_BLACK, TIFF_RGB, SEPARATED = 0, 1, 2, 5
_EXTRA, _SAMPLE_FORMAT = "t338", "t339"


def drawn(height: int, width: int, bands: int, *, depth: int, seed: int = 0) -> Samples:
    shape = (height, width, bands) if bands > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 2**depth, shape)


def in_full(samples: Samples, depth: int) -> Any:
    """Samples as shares of the full range."""
    return samples.astype(np.float64) / (2**depth - 1)


def on_white(colour: Any, alpha: Any) -> Any:
    return colour * alpha[..., None] + 1 - alpha[..., None]


def banded(samples: Any) -> Any:
    return samples if samples.ndim > 2 else samples[..., None]


def shown(content: bytes) -> Any:
    """The decoded pixels as shares of the full range, (height, width, channels)."""
    pixels = decode(content)
    return pixels.transpose(1, 2, 0).astype(np.float64) / np.iinfo(pixels.dtype).max


def assert_shows(content: bytes, expected: Any) -> None:
    """Equal to the rounding of what is stored."""
    pixels = decode(content)
    highest = np.iinfo(pixels.dtype).max
    assert pixels.shape == (expected.shape[2], *expected.shape[:2])
    assert np.abs(pixels.transpose(1, 2, 0) - expected * highest).max() <= 0.5 + 1e-6


def written(image: Image.Image, format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


# ---- depth and colour ---------------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize(
    ("depth", "colour", "bands"),
    [
        *((depth, GREY, 1) for depth in (1, 2, 4, 8, 16)),
        *((depth, RGB, 3) for depth in (8, 16)),
    ],
)
@given(size=sizes, seed=seeds)
def test_opaque_png_of_every_depth_covers_the_full_range(depth, colour, bands, size, seed):
    samples = drawn(*size, bands, depth=depth, seed=seed)
    content = png(samples, depth=depth, colour=colour)
    assert_shows(content, banded(in_full(samples, depth)))
    assert decode(content).dtype == (np.uint16 if depth == 16 else np.uint8)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour", "bands"), [(GREY_ALPHA, 2), (RGBA, 4)])
@given(size=sizes, seed=seeds)
def test_alpha_lets_white_through(depth, colour, bands, size, seed):
    samples = drawn(*size, bands, depth=depth, seed=seed)
    samples[0, 0, :] = [0] * (bands - 1) + [2**depth - 1]  # some of it is seen on white
    layers = in_full(samples, depth)
    expected = on_white(layers[..., :-1], layers[..., -1])
    assert_shows(png(samples, depth=depth, colour=colour), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_grey_that_a_png_calls_transparent_is_white(depth):
    samples = np.array([[0, 1, 2**depth - 1, 2**depth - 2]])
    for transparent in (0, 2**depth - 2) if depth > 1 else (1,):
        content = png(samples, depth=depth, colour=GREY, tRNS=struct.pack(">H", transparent))
        expected = in_full(samples, depth)
        expected[samples == transparent] = 1
        assert_shows(content, banded(expected))


@pytest.mark.parametrize(("depth", "colour"), [(8, (7, 8, 9)), (16, (1, 2, 3)), (16, (9, 300, 7))])
def test_the_colour_that_a_png_calls_transparent_is_white(depth, colour):
    samples = np.array([[colour, (0, 0, 0), (colour[0], 8, 0)]])
    content = png(samples, depth=depth, colour=RGB, tRNS=struct.pack(">HHH", *colour))
    expected = in_full(samples, depth)
    expected[0, 0] = 1
    assert_shows(content, expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_are_looked_up_and_their_alphas_let_white_through(depth):
    entries = drawn(2**depth, 1, 3, depth=8)[:, 0]
    alphas = drawn(2**depth, 1, 1, depth=8, seed=1)[:, 0]
    samples = drawn(6, 7, 1, depth=depth)
    chunks = {"PLTE": entries.astype(np.uint8).tobytes()}
    content = png(samples, depth=depth, colour=PALETTE, **chunks)
    assert_shows(content, in_full(entries, 8)[samples])
    content = png(
        samples, depth=depth, colour=PALETTE, **chunks, tRNS=alphas.astype(np.uint8).tobytes()
    )
    assert_shows(content, on_white(in_full(entries, 8)[samples], in_full(alphas, 8)[samples]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("depth", "photometric", "bands", "tags"),
    [
        *((depth, MIN_IS_BLACK, 1, {}) for depth in (1, 2, 4, 8, 16)),
        *((depth, MIN_IS_WHITE, 1, {}) for depth in (1, 2, 4, 8)),
        *((depth, TIFF_RGB, 3, {}) for depth in (8, 16)),
        *((depth, TIFF_RGB, 4, {_EXTRA: 0}) for depth in (8, 16)),  # a band without meaning
        *((depth, TIFF_RGB, 4, {_EXTRA: 2}) for depth in (8, 16)),  # alpha
    ],
)
def test_tiff_of_every_depth_covers_the_full_range(depth, photometric, bands, tags, order):
    samples = drawn(5, 7, bands, depth=depth)
    content = tiff(samples, depth=depth, photometric=photometric, order=order, **tags)
    expected = banded(in_full(samples, depth))
    if photometric == MIN_IS_WHITE:
        expected = 1 - expected
    if tags == {_EXTRA: 2}:
        expected = on_white(expected[..., :3], expected[..., 3])
    assert_shows(content, expected[..., :3])


@pytest.mark.parametrize("depth", [12, 16])
def test_deep_tiff_covers_the_full_range_whichever_end_of_it_is_white(depth):
    samples = drawn(5, 7, 1, depth=depth)
    for photometric in (MIN_IS_BLACK, MIN_IS_WHITE) if depth == 16 else (MIN_IS_BLACK,):
        share = banded(in_full(samples, depth))
        pixels = shown(tiff(samples, depth=depth, photometric=photometric))
        expected = share if photometric == MIN_IS_BLACK else 1 - share
        assert np.abs(pixels - expected).max() < 1 / 65535


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_deep_grey_of_a_compressed_tiff_is_kept_to_the_last_bit(compression):
    samples = drawn(20, 30, 1, depth=16).astype(np.uint16)
    content = written(Image.fromarray(samples), "TIFF", compression=compression)
    assert np.array_equal(decode(content)[0], samples)


def test_premultiplied_alpha_is_divided_out():
    colour, alpha = np.array([0.8, 0.4, 0.2]), 0.5
    stored = np.rint(np.array([*(colour * alpha), alpha]) * 255).astype(int)
    pixels = shown(tiff(stored[None, None], depth=8, photometric=TIFF_RGB, **{_EXTRA: 1}))
    assert np.abs(pixels[0, 0] - (colour * alpha + 1 - alpha)).max() < 1.5 / 255


def test_inks_become_light():
    samples = drawn(5, 6, 4, depth=8)
    ink = in_full(samples, 8)
    expected = (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert_shows(tiff(samples, depth=8, photometric=SEPARATED), expected)


def test_inks_of_a_jpeg_are_stored_inverted_as_adobe_does():
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 200)]
    for ink in inks:
        pixels = shown(written(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95))
        cyan, magenta, yellow, black = (share / 255 for share in ink)
        expected = [(1 - one) * (1 - black) for one in (cyan, magenta, yellow)]
        assert np.abs(pixels - expected).max() < 0.03


def test_lab_becomes_rgb():
    lightness = np.array([[0, 128, 255]])
    samples = np.stack([lightness, lightness * 0, lightness * 0], axis=-1)
    grey = shown(tiff(samples, depth=8, photometric=8))
    assert np.abs(grey - grey[..., :1]).max() < 0.02  # neither red nor blue
    assert grey[0, :, 0] == pytest.approx([0, 119 / 255, 1], abs=0.02)  # CIE: L* 50 is sRGB 119


@pytest.mark.parametrize("format", ["WEBP", "GIF", "BMP", "JPEG"])
def test_other_formats_show_what_was_written(format):
    pixels = np.repeat(np.repeat(drawn(3, 4, 3, depth=8), 16, axis=0), 16, axis=1).astype(np.uint8)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}
    content = written(Image.fromarray(pixels), format, **options.get(format, {}))
    centres = shown(content)[8::16, 8::16]
    assert np.abs(centres - in_full(pixels, 8)[8::16, 8::16]).max() <= 3 / 255


@pytest.mark.parametrize("is_progressive", [False, True])
def test_a_grey_jpeg_has_one_channel(is_progressive):
    content = written(Image.new("L", (9, 8), 77), "JPEG", progressive=is_progressive)
    assert decode(content).tolist() == np.full((1, 8, 9), 77).tolist()


def test_what_webp_and_gif_leave_out_is_white():
    pixels = drawn(4, 5, 4, depth=8).astype(np.uint8)
    pixels[..., 3] = np.where(pixels[..., 3] > 127, 255, 0)
    layers = in_full(pixels, 8)
    expected = on_white(layers[..., :3], layers[..., 3])
    content = written(Image.fromarray(pixels), "WEBP", lossless=True, exact=True)
    assert_shows(content, expected)
    indexed = Image.new("P", (3, 1))
    indexed.putpalette([9, 9, 9, 200, 100, 0, 0, 0, 255])
    indexed.putdata([0, 1, 2])
    content = written(indexed, "GIF", transparency=1)
    assert_shows(content, np.array([[[9, 9, 9], [255, 255, 255], [0, 0, 255]]]) / 255)


# ---- orientation --------------------------------------------------------------------------------


def upright(stored: Any, orientation: int) -> Any:
    """EXIF 2.32, Orientation: on which side the first row and the first column are seen."""
    height, width = stored.shape[:2]
    is_turned = orientation >= 5
    seen = np.zeros((width, height) if is_turned else (height, width))
    for row in range(height):
        for column in range(width):
            down, across = {
                1: (row, column),  # top, left
                2: (row, width - 1 - column),  # top, right
                3: (height - 1 - row, width - 1 - column),  # bottom, right
                4: (height - 1 - row, column),  # bottom, left
                5: (column, row),  # left, top
                6: (column, height - 1 - row),  # right, top
                7: (width - 1 - column, height - 1 - row),  # right, bottom
                8: (width - 1 - column, row),  # left, bottom
            }[orientation]
            seen[down, across] = stored[row, column]
    return seen[..., None]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth", [1, 8, 16])
def test_every_orientation_is_upright(orientation, depth):
    samples = drawn(4, 6, 1, depth=depth)
    expected = upright(in_full(samples, depth), orientation)
    assert_shows(png(samples, depth=depth, colour=GREY, eXIf=exif(orientation)), expected)
    for order in "<>":
        content = tiff(
            samples, depth=depth, photometric=MIN_IS_BLACK, order=order, t274=orientation
        )
        assert_shows(content, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_photographs_are_turned_as_the_camera_says(orientation, format):
    stored = np.array([[0, 80], [170, 255], [120, 40]])
    blocks = np.repeat(np.repeat(stored, 16, axis=0), 16, axis=1).astype(np.uint8)
    options = {"quality": 95} if format == "JPEG" else {"lossless": True}
    turn = Image.Exif()
    turn[274] = orientation
    content = written(Image.fromarray(blocks), format, exif=turn, **options)
    seen = shown(content)[8::16, 8::16, :1]
    assert np.abs(seen - upright(stored / 255, orientation)).max() < 0.03


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_exif_does_not_know_is_none(orientation):
    samples = drawn(2, 3, 1, depth=8)
    content = png(samples, depth=8, colour=GREY, eXIf=exif(orientation))
    assert_shows(content, banded(in_full(samples, 8)))


@pytest.mark.parametrize("junk", [b"", b"junk", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_nobody_can_read_turns_nothing(junk):
    content = written(Image.new("L", (3, 2), 5), "JPEG", exif=b"Exif\0\0" + junk)
    assert decode(content).shape == (1, 2, 3)


def test_gamma_and_colour_profiles_are_not_applied():
    samples = drawn(3, 3, 3, depth=8)
    chunks = {"gAMA": struct.pack(">I", 100000), "cHRM": struct.pack(">8I", *[30000] * 8)}
    assert_shows(png(samples, depth=8, colour=RGB, **chunks), in_full(samples, 8))


# ---- what has no one way to be shown ------------------------------------------------------------

TWO = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_and_pages_are_refused_since_one_would_be_chosen_unasked(format):
    content = written(TWO[0], format, save_all=True, append_images=TWO[1:])
    with pytest.raises(NotShowable, match="one picture in a file, saw 2 frames or pages"):
        decode(content)


def test_of_a_cameras_file_with_previews_the_photograph_is_read():
    content = written(TWO[0], "MPO", save_all=True, append_images=TWO[1:])
    assert decode(content)[:, 0, 0].tolist() == [254, 0, 0]


@pytest.mark.parametrize(
    ("depth", "photometric", "bands", "tags"),
    [
        (8, MIN_IS_BLACK, 1, {_SAMPLE_FORMAT: 2}),
        (16, MIN_IS_BLACK, 1, {_SAMPLE_FORMAT: 2}),
        (32, MIN_IS_BLACK, 1, {}),
        (32, MIN_IS_BLACK, 1, {_SAMPLE_FORMAT: 2}),
        (32, MIN_IS_BLACK, 1, {_SAMPLE_FORMAT: 3}),
        (16, TIFF_RGB, 4, {_EXTRA: 1}),
        (16, SEPARATED, 4, {}),
    ],
)
def test_samples_whose_white_nobody_knows_are_refused(depth, photometric, bands, tags):
    content = tiff(drawn(3, 3, bands, depth=8), depth=depth, photometric=photometric, **tags)
    with pytest.raises(NotShowable, match=r"expected .* 16 bits.*, saw"):
        decode(content)


@pytest.mark.parametrize("colour", [(255, 255, 255), (9, 60, 200)])
def test_what_cannot_be_seen_on_white_is_refused(colour):
    """White strokes on nothing, and a picture all of which is transparent."""
    pixels = np.full((4, 4, 4), (*colour, 0))
    pixels[1, :, 3] = 255 if colour == (255, 255, 255) else 0
    pixels[2, 0, 0] -= 9
    with pytest.raises(NotShowable, match="shows on white"):
        decode(png(pixels, depth=8, colour=RGBA))


def test_a_blank_image_is_white():
    content = png(np.zeros((2, 2, 4)), depth=8, colour=RGBA)
    assert decode(content).min() == 255


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
def test_a_file_cut_short_shows_everything_or_raises(format):
    content = written(Image.fromarray(drawn(24, 24, 3, depth=8).astype(np.uint8)), format)
    whole, num_raised = decode(content), 0
    for length in range(1, len(content), 37):
        try:
            assert np.array_equal(decode(content[:length]), whole)
        except (OSError, UnidentifiedImageError):
            num_raised += 1
    assert num_raised > len(content) // 37 - 3
