"""What image models require of the samples' shape."""

import pytest

from roadless.worker.data.base import Description
from roadless.worker.errors import ModelInvalid
from roadless.worker.model.shapes import image_shape


def described(*shape: int) -> Description:
    return Description(shape, num_classes=2, tokens_per_sample=0, fingerprint="")


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (5, 5, 4)])
def test_square_images_with_their_channels_last_are_refused_with_a_way_out(shape):
    """A convolution would take each row of pixels for a channel, and train without a word."""
    with pytest.raises(ModelInvalid, match=r"channels last; transpose them, or store them as uint"):
        image_shape(described(*shape), model="convnet")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (64, 8, 1), (64, 3, 3), (4, 4, 4)])
def test_channels_first_pass(shape):
    assert image_shape(described(*shape), model="convnet") == shape


@pytest.mark.parametrize("shape", [(28, 28), (64,), (2, 3, 8, 8)])
def test_samples_without_three_axes_are_no_images(shape):
    with pytest.raises(ModelInvalid, match=r"expected images of shape \(channels, height, width\)"):
        image_shape(described(*shape), model="convnet")
