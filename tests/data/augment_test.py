"""Augmentation: what each function may and may not do to an image, and that only the image's own seed decides."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import DataConfig
from sivdnas_tf.data import augment
from sivdnas_tf.data.augment import Augmentation, normalise
from sivdnas_tf.errors import ConfigError

# As in the input pipeline, in a graph: eager, the draw an image takes seconds for thousands of images.
random_crop = tf.function(augment.random_crop)
random_flip = tf.function(augment.random_flip)
cutout = tf.function(augment.cutout)
random_resized_crop = tf.function(augment.random_resized_crop)
colour_jitter = tf.function(augment.colour_jitter)

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


def brightness_jitter(images, seeds):
    return augment.colour_jitter(images, seeds, brightness=0.4)


def all_of_them(images, seeds):
    return Augmentation(2, True, 3)(images, seeds, np.float32([0.1, 0.2]), np.float32([0.3, 0.4]))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (random_crop, (2,)),
        (random_flip, ()),
        (cutout, (3,)),
        (random_resized_crop, ()),
        (tf.function(brightness_jitter), ()),
        (tf.function(all_of_them), ()),
    ],
    ids=["crop", "flip", "cutout", "resized crop", "brightness", "all"],
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


# Random resized crop.


def draws_of(count, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, augment.CROP_TRIES, 4)).astype(np.float32)


def torchvision_box(draws, height, width):
    """`RandomResizedCrop.get_params` as it stands there, its random numbers given."""
    area = height * width
    log_ratio = np.log([3 / 4, 4 / 3])
    for scale, ratio, top, left in draws.astype(np.float64):
        target_area = area * (0.08 + scale * (1.0 - 0.08))
        aspect_ratio = np.exp(log_ratio[0] + ratio * (log_ratio[1] - log_ratio[0]))
        w = round(np.sqrt(target_area * aspect_ratio))
        h = round(np.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(np.floor(top * (height - h + 1))), int(np.floor(left * (width - w + 1))), h, w
    in_ratio = width / height
    if in_ratio < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif in_ratio > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), [(375, 500), (32, 32), (1, 1), (7, 300), (300, 7), (2, 3)])
def test_a_crop_s_box_is_torchvision_s(height, width):
    boxes = [augment.crop_box(draws, height, width) for draws in draws_of(500)]
    assert boxes == [torchvision_box(draws, height, width) for draws in draws_of(500)]
    for top, left, crop_height, crop_width in boxes:
        assert 0 <= top <= height - crop_height < height and 0 <= left <= width - crop_width < width


def test_a_crop_has_8_to_100_percent_of_the_area_and_any_place():
    boxes = np.array([augment.crop_box(draws, 1000, 1000) for draws in draws_of(4000)])
    share, aspect = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    assert 0.079 < share.min() < 0.09 and 0.95 < share.max() <= 1
    assert abs(np.log(aspect).mean()) < 0.01 and 0.745 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.34
    room = (boxes[:, 0] / np.maximum(1, 1000 - boxes[:, 2]))[boxes[:, 2] < 900]
    assert abs(room.mean() - 0.5) < 0.03


def test_ten_boxes_that_do_not_fit_give_the_largest_central_one():
    wide = np.ones((10, 4), np.float32)  # the whole area at an aspect ratio that a narrow image has no room for
    assert augment.crop_box(wide, 100, 50) == ((100 - 67) // 2, 0, 67, 50)
    assert augment.crop_box(wide, 40, 100) == (0, (100 - 53) // 2, 40, 53)
    assert augment.crop_box(wide[:0], 90, 100) == (0, 0, 90, 100)


def bilinear(image, top, left, height, width, size):
    """A crop enlarged to `size`: each pixel's centre is interpolated between the crop's four nearest centres."""
    crop = image[top : top + height, left : left + width].astype(np.float64)
    rows = np.clip((np.arange(size[0]) + 0.5) * height / size[0] - 0.5, 0, height - 1)
    columns = np.clip((np.arange(size[1]) + 0.5) * width / size[1] - 0.5, 0, width - 1)
    result = np.empty((*size, image.shape[2]))
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            y0, x0 = int(row), int(column)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            above = crop[y0, x0] + (column - x0) * (crop[y0, x1] - crop[y0, x0])
            below = crop[y1, x0] + (column - x0) * (crop[y1, x1] - crop[y1, x0])
            result[y, x] = above + (row - y0) * (below - above)
    return result


def test_a_resized_crop_is_the_box_enlarged_by_bilinear_interpolation():
    images, seeds = images_of(24, 9, 7), seeds_of(24)
    cropped = random_resized_crop(images, seeds).numpy()
    assert cropped.dtype == np.float32
    boxes = [augment.crop_box(augment.crop_box_draws(seed).numpy(), 9, 7) for seed in seeds]
    assert len(set(boxes)) > 12
    for image, box, result in zip(images, boxes, cropped, strict=True):
        np.testing.assert_allclose(result, bilinear(image, *box, (9, 7)), atol=1e-3)


def test_the_resized_crop_takes_the_place_of_the_padded_one():
    images, seeds = images_of(8, 6, 6), seeds_of(8)
    statistics = np.float32([0.0, 0.0]), np.float32([1.0, 1.0])
    received = Augmentation(crop_padding=2, resized_crop=True)(images, seeds, *statistics)
    np.testing.assert_allclose(received, random_resized_crop(images, seeds) / 255.0, atol=1e-5)


# Colour jitter.


def reference_jitter(image, factors):
    """torchvision's definitions on one RGB image of floats from 0 to 255, in the factors' order; hue by the standard library."""
    image = image.astype(np.float64)

    def grey(image):
        return image @ [0.2989, 0.587, 0.114]

    for name, factor in factors.items():
        if name == "brightness":
            image = image * factor
        elif name == "contrast":
            image = factor * image + (1 - factor) * grey(image).mean()
        elif name == "saturation":
            image = factor * image + (1 - factor) * grey(image)[..., np.newaxis]
        else:
            hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255]
            turned = [colorsys.hsv_to_rgb((hue + factor) % 1.0, saturation, value) for hue, saturation, value in hsv]
            image = np.reshape(turned, image.shape) * 255
        image = np.clip(image, 0, 255)
    return image


def drawn_factors(seed, **strengths):
    """What `colour_jitter` draws for an image: the four uniform numbers of its seed."""
    uniform = tf.random.stateless_uniform([4], tf.random.fold_in(seed, 2)).numpy().astype(np.float64)
    signed = {name: 2 * number - 1 for name, number in zip(("brightness", "contrast", "saturation", "hue"), uniform, strict=True)}
    return {name: signed[name] * strength + (name != "hue") for name, strength in strengths.items()}


JITTERS = [{"brightness": 0.9}, {"contrast": 0.9}, {"saturation": 0.9}, {"hue": 0.5}]
JITTERS += [{"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}]


@pytest.mark.parametrize("strengths", JITTERS, ids=["brightness", "contrast", "saturation", "hue", "all"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_colour_jitter_is_torchvision_s(strengths, dtype):
    images, seeds = images_of(12, 6, 5, channels=3).astype(dtype), seeds_of(12)
    images[0], images[1, 0], images[1, 1] = 77, 0, 255  # grey, black, white: no hue
    images[2, ..., 1] = images[2, ..., 0]  # two channels alike
    received = colour_jitter(images, seeds, **strengths)
    assert received.dtype == tf.uint8
    changed = 0
    for image, seed, result in zip(images, seeds, received.numpy(), strict=True):
        expected = reference_jitter(image, drawn_factors(seed, **strengths))
        np.testing.assert_allclose(result.astype(np.float64), expected, atol=0.5 + 1 / 16)  # rounded, and the hue in 32nds
        changed += np.abs(expected - image).max() > 5
    assert changed > 8


@pytest.mark.parametrize("turn", [*np.linspace(-0.5, 0.5, 25), 0.003, -0.003, 0.249, -0.251])
def test_the_hue_turns_as_the_standard_library_s(turn):
    levels = np.array([0, 1, 100, 128, 254, 255])
    pixels = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(12, 18, 3).astype(np.uint8)
    received = augment.jittered(pixels, 1.0, 1.0, 1.0, turn)
    np.testing.assert_allclose(received.astype(np.float64), reference_jitter(pixels, {"hue": turn}), atol=0.5 + 1 / 16)


def test_factors_of_one_and_no_turn_change_no_pixel():
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(augment.jittered(pixels, 1.0, 1.0, 1.0, 0.0), pixels)


def test_no_factor_at_all_is_black_or_grey():
    pixels = images_of(1, channels=3)[0].astype(np.uint8)
    grey = pixels @ [0.2989, 0.587, 0.114]
    assert not augment.jittered(pixels, 0.0, 1.0, 1.0, 0.0).any()
    np.testing.assert_allclose(augment.jittered(pixels, 1.0, 0.0, 1.0, 0.0) - grey.mean(), 0.0, atol=0.6)
    np.testing.assert_allclose(augment.jittered(pixels, 1.0, 1.0, 0.0, 0.0) - grey[..., np.newaxis], 0.0, atol=0.6)


def test_colour_jitter_draws_uniformly_and_each_of_the_four_by_itself():
    factors = np.array([[*drawn_factors(seed, brightness=1, contrast=1, saturation=1, hue=1).values()] for seed in seeds_of(600)])
    assert np.abs(factors.mean(axis=0) - [1, 1, 1, 0]).max() < 5 * np.sqrt(1 / 3 / 600)
    assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 5 / np.sqrt(600)


def test_greyscale_images_have_brightness_and_contrast_and_no_colour():
    images, seeds = images_of(6, channels=1), seeds_of(6)
    received = colour_jitter(images, seeds, brightness=0.3, contrast=0.5).numpy()
    for image, seed, result in zip(images.astype(np.float64), seeds, received, strict=True):
        factors = drawn_factors(seed, brightness=0.3, contrast=0.5)
        brighter = np.clip(image * factors["brightness"], 0, 255)
        expected = np.clip(factors["contrast"] * brighter + (1 - factors["contrast"]) * brighter.mean(), 0, 255)
        np.testing.assert_allclose(result.astype(np.float64), expected, atol=0.5 + 1 / 16)
    Augmentation(brightness=0.3, contrast=0.5).check((8, 8, 1))
    for field in ("saturation", "hue"):
        with pytest.raises(ConfigError, match=r"need images of 3 channels, red, green and blue. Received: .* for images of 1 channels$"):
            Augmentation(**{field: 0.1}).check((8, 8, 1))
    with pytest.raises(ConfigError, match=r"^data.contrast_jitter needs images of 1 or 3 channels. Received: .* images of 2 channels$"):
        Augmentation(contrast=0.1).check((8, 8, 2))


def test_jitter_and_resized_crop_leave_the_other_draws_alone():
    images, seeds = images_of(16, 8, 8, channels=3), seeds_of(16)
    statistics = np.float32([0.0] * 3), np.float32([1.0] * 3)
    plain = Augmentation(flip=True)(images, seeds, *statistics).numpy() * 255
    jittered = Augmentation(flip=True, brightness=0.5)(images, seeds, *statistics).numpy() * 255
    np.testing.assert_allclose(jittered, colour_jitter(plain, seeds, brightness=0.5), atol=1e-2)


def test_an_augmentation_is_the_configuration_s():
    fields = {"brightness_jitter": 0.1, "contrast_jitter": 0.2, "saturation_jitter": 0.3, "hue_jitter": 0.4}
    data = DataConfig(crop_padding=3, flip=False, random_resized_crop=True, **fields)
    assert augment.configured_augmentation(data, 5) == Augmentation(3, False, 5, True, 0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_a_batch_gives_the_bits_of_normalise(channels):
    images = images_of(5, channels=channels).astype(np.uint8)
    mean, std = np.float32([0.1, 0.5, 0.3][:channels]), np.float32([0.3, 0.2, 0.7][:channels])
    np.testing.assert_array_equal(augment.normalise_batch(images, mean, std), normalise(images, mean, std))


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
