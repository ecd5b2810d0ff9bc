import numpy as np
import pytest
import skimage.color
import torch

from basicsr.utils.color import luma, rgb_to_ycbcr, ycbcr_to_rgb


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_ycbcr_equals_scikit_image():
    image = noise(7, 5, 3)
    np.testing.assert_allclose(rgb_to_ycbcr(image) * 255, skimage.color.rgb2ycbcr(image), atol=1e-4)


def test_bytes_are_the_rounded_floats():
    image = (noise(16, 16, 3) * 255).round().astype(np.uint8)
    exact = rgb_to_ycbcr(image.astype(np.float32) / 255) * 255
    np.testing.assert_array_equal(rgb_to_ycbcr(image), exact.round())


def test_tensors_arrays_and_the_luma_alone_agree():
    image = noise(6, 9, 3)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    converted = rgb_to_ycbcr(tensor)
    np.testing.assert_allclose(converted[0].permute(1, 2, 0), rgb_to_ycbcr(image), atol=1e-6)
    torch.testing.assert_close(luma(tensor), converted[:, :1])
    np.testing.assert_array_equal(rgb_to_ycbcr(image, y_only=True), rgb_to_ycbcr(image)[..., 0])


def test_there_and_back_is_the_same_image():
    image = noise(8, 8, 3)
    np.testing.assert_allclose(ycbcr_to_rgb(rgb_to_ycbcr(image)), image, atol=2e-5)  # the inverse has rounded digits


def test_colours_outside_rgb_are_clipped_not_wrapped_around():
    extremes = np.array([[[235, 255, 128], [16, 0, 128], [255, 128, 255]]], dtype=np.uint8)
    exact = ycbcr_to_rgb(extremes.astype(np.float32) / 255) * 255
    assert exact.min() < 0 and exact.max() > 256
    np.testing.assert_array_equal(ycbcr_to_rgb(extremes), exact.clip(0, 255).round())


def test_black_and_white_have_studio_levels():
    levels = np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    np.testing.assert_array_equal(rgb_to_ycbcr(levels), [[[16, 128, 128], [235, 128, 128]]])


def test_luma_passes_gradients():
    image = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(luma, image)


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((4, 4, 3), np.float64),
        np.zeros((4, 4, 3), np.int32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.float32),
        torch.zeros(1, 1, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.zeros(3),
    ],
)
def test_other_types_and_shapes_are_refused(image):
    with pytest.raises(ValueError, match='colour conversion needs'):
        rgb_to_ycbcr(image)
