"""Augmentation: what each function may and may not do to an image, and that only the image's own seed decides."""

import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.data import augment
from sivdnas_tf.data.augment import Augmentation, normalise
from sivdnas_tf.errors import ConfigError

# As in the input pipeline, in a graph: eager, the draw an image takes seconds for thousands of images.
random_crop = tf.function(augment.random_crop)
random_flip = tf.function(augment.random_flip)
cutout = tf.function(augment.cutout)

N_IMAGES = 4096


def seeds_of(count, key=7):
    return tf.constant(np.stack([np.full(count, key), np.arange(count)], axis=1), tf.int32)


def images_of(count, height=5, width=6, channels=2):
    """Pixel values from 1 to 255: no pixel looks like padding or like a hole."""
    return np.random.default_rng(3).integers(1, 256, (count, height, width, channels)).astype(np.float32)


def distinct_images(count, height, width):
    """The same image `count` times, no two of its pixels alike, so that a result tells what was done."""
    image = np.arange(1, height * width + 1, dtype=np.float32).reshape(1, height, width, 1)
    return np.repeat(image, count, axis=0)


def assert_uniform(counts):
    """Each of the counts is within 5 standard deviations of their mean (failure by chance: below 1e-4 for 100 counts)."""
    n, share = sum(counts), 1 / len(counts)
    assert np.abs(np.asarray(counts) - n * share).max() < 5 * np.sqrt(n * share * (1 - share))


def windows(image, padding):
    """Every window of the image's own size in the padded image, by offset."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    offsets = range(2 * padding + 1)
    return {(top, left): padded[top : top + height, left : left + width] for top in offsets for left in offsets}


def reference_hole(height, width, length, y, x):
    """The zeroed pixels of quark0/darts `Cutout`, even lengths: bool [height, width]."""
    hole = np.zeros((height, width), bool)
    y1, y2 = np.clip([y - length // 2, y + length // 2], 0, height)
    x1, x2 = np.clip([x - length // 2, x + length // 2], 0, width)
    hole[y1:y2, x1:x2] = True
    return hole


def crop_offsets(count, padding, height=5, width=6):
    """Offsets that random_crop chose for `count` images, int [count, 2]."""
    images = distinct_images(count, height, width)
    by_window = {window.tobytes(): offset for offset, window in windows(images[0], padding).items()}
    cropped = random_crop(images, seeds_of(count), padding).numpy()
    return np.array([by_window[image.tobytes()] for image in cropped])


def was_flipped(count):
    images = distinct_images(count, 2, 3)
    return random_flip(images, seeds_of(count)).numpy()[:, 0, 0, 0] == images[0, 0, -1, 0]


def test_crop_is_a_window_of_the_zero_padded_image_and_every_window_is_equally_likely():
    offsets = crop_offsets(N_IMAGES, padding=2)  # a KeyError here: the result is no window

    counts = np.zeros((5, 5), int)
    np.add.at(counts, tuple(offsets.T), 1)
    assert_uniform(counts.ravel())


def test_crop_keeps_channels_together_and_the_type():
    images = images_of(8).astype(np.uint8)

    cropped = random_crop(images, seeds_of(8), 1)

    assert cropped.dtype == tf.uint8
    assert cropped.shape == images.shape
    for image, result in zip(images, cropped.numpy(), strict=True):
        assert any(np.array_equal(result, window) for window in windows(image, 1).values())


def test_flip_mirrors_half_of_the_images_and_leaves_the_others():
    images = images_of(N_IMAGES)
    flipped = random_flip(images, seeds_of(N_IMAGES)).numpy()

    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (flipped == images).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert_uniform([mirrored.sum(), kept.sum()])


@pytest.mark.parametrize("length", [2, 4])
def test_cutout_zeroes_the_square_of_the_reference_with_a_uniform_centre(length):
    height, width = 5, 6
    images = images_of(N_IMAGES, height, width)
    result = cutout(images, seeds_of(N_IMAGES), length).numpy()

    hole = (result == 0).all(axis=3)
    np.testing.assert_array_equal(result, np.where(hole[..., np.newaxis], 0, images))  # the rest untouched, no half-zeroed pixel
    observed = {}
    for one in hole:
        observed[one.tobytes()] = observed.get(one.tobytes(), 0) + 1
    expected = {}  # centres whose clipped squares coincide count together
    for y in range(height):
        for x in range(width):
            key = reference_hole(height, width, length, y, x).tobytes()
            expected[key] = expected.get(key, 0) + 1
    assert set(observed) == set(expected)
    for key, centres in expected.items():
        share = centres / (height * width)
        assert abs(observed[key] - N_IMAGES * share) < 5 * np.sqrt(N_IMAGES * share * (1 - share))


@pytest.mark.parametrize("length", [1, 3, 4])
def test_cutout_area_is_the_square_inside_and_less_only_at_the_border(length):
    size = 12
    images = np.ones((2048, size, size, 1), np.float32)
    holes = cutout(images, seeds_of(2048), length).numpy()[..., 0] == 0

    rows, columns = holes.any(axis=2), holes.any(axis=1)
    heights, widths = rows.sum(axis=1), columns.sum(axis=1)
    np.testing.assert_array_equal(holes.sum(axis=(1, 2)), heights * widths)  # a rectangle
    assert heights.max() == widths.max() == length
    clipped = heights < length
    assert clipped.any() == (length > 1)
    assert (rows[clipped, 0] | rows[clipped, -1]).all()
    assert ((heights >= length // 2) & (widths >= length // 2)).all()


def test_crop_flip_and_cutout_of_one_image_are_independent_draws():
    offsets = crop_offsets(N_IMAGES, padding=2)
    flipped = was_flipped(N_IMAGES)
    holes = cutout(np.ones((N_IMAGES, 9, 9, 1), np.float32), seeds_of(N_IMAGES), 2).numpy()[..., 0] == 0
    hole_row, hole_column = holes.any(axis=2).argmax(axis=1), holes.any(axis=1).argmax(axis=1)

    correlations = np.corrcoef([offsets[:, 0], offsets[:, 1], flipped, hole_row, hole_column]) - np.eye(5)
    assert np.abs(correlations).max() < 5 / np.sqrt(N_IMAGES)


def all_of_them(images, seeds):
    return Augmentation(2, True, 3)(images, seeds, np.float32([0.1, 0.2]), np.float32([0.3, 0.4]))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(random_crop, (2,)), (random_flip, ()), (cutout, (3,)), (tf.function(all_of_them), ())],
    ids=["crop", "flip", "cutout", "all"],
)
def test_only_the_own_seed_decides(function, arguments):
    images, seeds = images_of(32), seeds_of(32)
    together = function(images, seeds, *arguments).numpy()

    order = np.random.default_rng(0).permutation(32)
    np.testing.assert_array_equal(function(images[order], tf.gather(seeds, order), *arguments).numpy(), together[order])
    np.testing.assert_array_equal(function(images[5:6], seeds[5:6], *arguments).numpy(), together[5:6])
    assert not np.array_equal(function(images, seeds_of(32, key=8), *arguments).numpy(), together)


def test_normalise_is_pixel_over_255_minus_mean_over_std():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2)).astype(np.uint8)
    mean, std = np.float32([0.2, 0.5]), np.float32([0.3, 0.1])

    result = normalise(pixels, mean, std)

    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, (pixels / 255.0 - [0.2, 0.5]) / [0.3, 0.1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(normalise(pixels.astype(np.float64), mean, std), result)
    np.testing.assert_array_equal(normalise(pixels[0], mean, std), result[0])


def test_crop_pads_with_black_before_normalising_and_cutout_zeroes_after():
    white = np.full((256, 8, 8, 1), 255, np.uint8)
    mean, std = np.float32([0.5]), np.float32([0.25])

    cropped = Augmentation(crop_padding=2)(white, seeds_of(256), mean, std).numpy()
    assert set(np.unique(cropped)) == {-2.0, 2.0}  # (0 - 0.5) / 0.25 and (1 - 0.5) / 0.25

    holed = Augmentation(cutout_length=3)(white, seeds_of(256), mean, std).numpy()
    assert set(np.unique(holed)) == {0.0, 2.0}


def test_default_augmentation_only_normalises():
    pixels = images_of(4).astype(np.uint8)
    mean, std = np.float32([0.2, 0.5]), np.float32([0.3, 0.1])

    np.testing.assert_array_equal(Augmentation()(pixels, seeds_of(4), mean, std), normalise(pixels, mean, std))


@pytest.mark.parametrize("field", ["crop_padding", "cutout_length"])
@pytest.mark.parametrize("value", [-1, 8, 16])
def test_augmentation_that_could_erase_an_image_is_refused(field, value):
    Augmentation(**{field: 7}).check((8, 8, 1))
    with pytest.raises(ConfigError, match=rf"^{field} must be from 0 to 7 for images of 8 pixels. Received: {value}$"):
        Augmentation(**{field: value}).check((8, 8, 1))
