"""One file to pixels: what Pillow reads, what is refused, and that many at a time give the same."""

import concurrent.futures
import os
import struct
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sivdnas_tf.data import images
from sivdnas_tf.data.images import MAX_PIXELS, is_image_name, read_image, read_images, resize
from sivdnas_tf.errors import DataError

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
GREY = PICTURE[..., 0]


@pytest.fixture(name="save")
def fixture_save(tmp_path):
    """Saves an array or an image under a name and returns its path."""

    def save(picture, name="picture.png", **options):
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.PNG", "b c.png", "кошка.png", "misnamed.jpg"])
def test_lossless_files_give_their_pixels(save, name):
    options = {"lossless": True} if name == "a.webp" else {"format": "PNG"} if name == "misnamed.jpg" else {}
    received = read_image(save(PICTURE, name, **options), 6)
    assert received.dtype == np.uint8
    np.testing.assert_array_equal(received, PICTURE)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp"])
def test_lossy_files_give_nearly_their_pixels(save, name):
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    assert np.abs(read_image(save(smooth, name, quality=100), 16).astype(int) - smooth).max() < 16


def test_names_of_images():
    assert all(is_image_name(name) for name in ("a.png", "a.JPG", "b/c.d.jpeg", "a.webp", "a.Bmp"))
    assert not any(is_image_name(name) for name in ("a.gif", "png", ".png", "a.png.txt", "a", "a.jp2"))


def test_greyscale_is_the_same_in_three_channels(save):
    np.testing.assert_array_equal(read_image(save(GREY), 6), np.repeat(GREY[..., np.newaxis], 3, axis=2))
    assert read_image(save(GREY), 6, channels=1).shape == (6, 6, 1)
    np.testing.assert_array_equal(read_image(save(GREY), 6, channels=1)[..., 0], GREY)


def test_colour_becomes_luma_where_one_channel_is_wanted(save):
    luma = PICTURE @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(read_image(save(PICTURE), 6, channels=1)[..., 0], luma, atol=1)


def test_palette_and_bilevel(save):
    two = np.where(GREY[..., np.newaxis] > 127, [255, 0, 0], [0, 0, 200]).astype(np.uint8)
    palette = Image.fromarray(two).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    np.testing.assert_array_equal(read_image(save(palette), 6), two)
    np.testing.assert_array_equal(read_image(save(Image.fromarray(GREY > 127)), 6)[..., 1], np.where(GREY > 127, 255, 0))


def test_cmyk(save):
    white = Image.new("CMYK", (6, 6), (0, 0, 0, 0))
    np.testing.assert_array_equal(read_image(save(white, "a.jpg"), 6), 255)


def test_of_16_bits_the_high_byte(save):
    deep = (GREY.astype(np.uint16) << 8) + 200
    np.testing.assert_array_equal(read_image(save(deep), 6)[..., 2], GREY)
    np.testing.assert_array_equal(read_image(save(deep), 6, channels=1)[..., 0], GREY)


def test_alpha_is_composited_over_white(save):
    alpha = np.array([[0, 255, 128] * 2] * 6, np.uint8)
    expected = PICTURE * (alpha[..., np.newaxis] / 255) + 255 * (1 - alpha[..., np.newaxis] / 255)
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True, "exact": True})):
        received = read_image(save(np.dstack([PICTURE, alpha]), name, **options), 6)
        np.testing.assert_allclose(received, expected, atol=1)
    np.testing.assert_allclose(read_image(save(np.dstack([GREY, alpha])), 6), expected_grey(alpha), atol=1)


def expected_grey(alpha):
    return np.repeat((GREY * (alpha / 255) + 255 * (1 - alpha / 255))[..., np.newaxis], 3, axis=2)


def test_a_transparent_colour_of_a_palette_is_white(save):
    palette = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6)).convert("P")
    received = read_image(save(palette, transparency=0), 6)
    assert received[0, 0].tolist() == [255, 255, 255] and received[5, 5].max() < 60


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_orientation_is_obeyed(save, name):
    """6 turns a quarter clockwise: what is stored at the left is seen at the top."""
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    received = read_image(save(picture, name, exif=exif), 16)
    assert received[:4].min() > 200 and received[-4:].max() < 55
    assert read_image(save(picture, name), 16)[:, :4].min() > 200


def test_a_damaged_orientation_is_not_obeyed(save):
    received = read_image(save(PICTURE, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), 6)
    np.testing.assert_array_equal(received, PICTURE)


def test_the_first_frame_of_an_animation(save):
    first, second = (Image.new("RGB", (6, 6), colour) for colour in ("red", "blue"))
    path = save(first, "a.webp", save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(read_image(path, 6), np.broadcast_to([255, 0, 0], (6, 6, 3)))


def test_resized_as_every_source_is(save):
    wide = np.random.default_rng(1).integers(0, 256, (20, 50, 3)).astype(np.uint8)
    received = read_image(save(wide), 8)
    np.testing.assert_array_equal(received, resize(tf.constant(wide), 8))
    assert received.shape == (8, 8, 3) and received.std() < wide.std() / 2  # it was averaged


# What is no image.


def png(width, height):
    """A PNG of some bytes that says that it has width x height pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "another kind of file"),
        (b"GIF89a" + bytes(20), "another kind of file"),
        (b"hello", "another kind of file"),
        (png(9000, 10000), "9,000 x 10,000 pixels"),
        (png(60000, 60000), "decompression bomb"),
        (png(20, 20), "truncated"),
    ],
)
def test_a_file_that_is_no_image(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path, 6)
    message = str(caught.value)
    assert message.startswith(f"{str(path)!r} cannot be read as an image. Expected PNG, JPEG, WebP or BMP of up to {MAX_PIXELS:,} pixels.")
    assert reason in message.partition("Received: ")[2] and "\n" not in message


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
def test_a_truncated_file(save, name):
    path = save(PICTURE, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(DataError, match=f"{name}' cannot be read as an image"):
        read_image(path, 6)


def test_changed_bytes_are_read_or_refused_and_nothing_else(save):
    rng = np.random.default_rng(0)
    outcomes = {True: 0, False: 0}
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        path = save(PICTURE, name, **({} if name == "a.bmp" else {"exif": Image.Exif()}))
        whole = path.read_bytes()
        for _ in range(100):
            changed = bytearray(whole)
            for position in rng.integers(0, len(whole), 3):
                changed[position] = rng.integers(256)
            path.write_bytes(changed)
            (outcome,) = read_images([path], 4)
            assert isinstance(outcome, DataError) or outcome.shape == (4, 4, 3)
            outcomes[isinstance(outcome, DataError)] += 1
    assert min(outcomes.values()) > 50


def test_what_is_no_file(tmp_path):
    for path, reason in ((tmp_path / "none.png", "no such file"), (tmp_path, "a directory or a device"), ("/dev/null", "a device")):
        with pytest.raises(DataError, match=f"Received: .*{reason}"):
            read_image(path, 6)


# Many.


def test_many_are_read_in_order_and_the_unreadable_are_named(save):
    paths = [save(np.full((5 + number, 7, 3), number, np.uint8), f"{number}.png") for number in range(40)]
    paths[7].write_bytes(b"")
    received = list(read_images(paths, 3))
    assert len(received) == 40
    assert isinstance(received.pop(7), DataError)
    for number, image in zip([n for n in range(40) if n != 7], received, strict=True):
        np.testing.assert_array_equal(image, np.full((3, 3, 3), number))


def test_a_reader_that_stops_early_leaves_nothing_behind(save, monkeypatch):
    first, other = save(PICTURE, "first.png"), save(PICTURE)
    reads, stopped = [], threading.Event()

    def read(path, *_):
        reads.append(path)
        if path != first:  # however fast a read is, the others are not done when the reader stops
            stopped.wait(60)

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            stopped.set()
            super().shutdown(wait)

    monkeypatch.setattr(images, "_read", read)
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", Pool)
    filters = list(warnings.filters)
    iterator = read_images([first, *[other] * 1000], 6)
    next(iterator)
    iterator.close()
    assert stopped.is_set()
    assert 1 <= len(reads) <= 1 + os.cpu_count()
    assert warnings.filters == filters


def test_pillow_is_not_heard(save, capfd):
    """Both of these make Pillow warn; a warning is an error in these tests."""
    palette = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6)).convert("P")
    read_image(save(palette, transparency=bytes(range(200))), 6)
    path = save(PICTURE, "b.png")
    path.write_bytes(png(9000, 10000))
    with pytest.raises(DataError):
        read_image(path, 6)
    sys.stderr.flush()
    assert capfd.readouterr().err == ""


# A part of an image.


def whole(height, width):
    return 0, 0, height, width


@pytest.mark.parametrize(("height", "width", "square"), [(6, 8, (0, 1, 6)), (9, 4, (2, 0, 4)), (1, 1, (0, 0, 1)), (3, 1000, (0, 498, 3))])
def test_a_central_square_has_a_share_of_the_shorter_side(height, width, square):
    assert images.central_square(height, width, 1.0) == square
    top, left, side = images.central_square(height, width, 0.5)
    assert side == max(1, round(min(height, width) / 2))
    assert (top, left) == ((height - side) // 2, (width - side) // 2)


def test_a_central_crop_is_that_of_the_upright_pixels(save):
    path = save(PICTURE)
    pixels = images.decode(path, path)
    top, left, side = images.central_square(*pixels.shape[:2], 0.6)
    square = pixels[top : top + side, left : left + side]
    np.testing.assert_array_equal(images.decode(path, path, central_crop=0.6), square)
    np.testing.assert_array_equal(read_image(path, 4, central_crop=0.6), resize(square, 4))
    np.testing.assert_array_equal(images.decode(path.read_bytes(), "content"), pixels)


def test_a_crop_of_its_own_size_is_the_pixels_themselves(save):
    path = save(np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8))
    pixels = images.decode(path, path)
    received = images.decode_crop(path, path, lambda height, width: (2, 3, 5, 5), 5)
    np.testing.assert_array_equal(received, pixels[2:7, 3:8])
    mirrored = images.decode_crop(path, path, lambda height, width: (2, 3, 5, 5), 5, is_mirrored=True)
    np.testing.assert_array_equal(mirrored, received[:, ::-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_whole_image_is_shrunk_nearly_as_resize_does(save, channels):
    path = save(np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8))
    received = images.decode_crop(path, path, whole, 8, channels)
    assert received.dtype == np.uint8 and received.shape == (8, 8, channels)
    assert np.abs(received.astype(int) - read_image(path, 8, channels)).max() <= 1  # Pillow rounds between rows and columns


def test_a_turned_photo_is_cropped_upright(save):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(pixels, exif=exif)
    sizes = []

    def choose(height, width):
        sizes.append((height, width))
        return 4, 1, 6, 6

    received = images.decode_crop(path, path, choose, 6)
    assert sizes == [(16, 10)]
    np.testing.assert_array_equal(received, np.rot90(pixels, -1)[4:10, 1:7])


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(save):
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize((400, 300))
    path = save(np.asarray(smooth), "photo.jpg", quality=95)
    received = images.decode_crop(path, path, lambda height, width: (20, 40, 240, 320), 32)
    np.testing.assert_array_equal(received, images.decode_crop(path, path, lambda height, width: (20, 40, 240, 320), 32))
    expected = smooth.resize((32, 32), Image.Resampling.BILINEAR, box=(40, 20, 360, 260))
    assert np.abs(received.astype(int) - np.asarray(expected)).mean() < 3


def test_a_part_of_what_is_no_image_is_named(save):
    for source, place in ((b"hello", "record 3 of shard"), (b"", "record 4 of shard")):
        for function in (lambda: images.decode(source, place), lambda: images.decode_crop(source, place, whole, 4)):  # noqa: B023
            with pytest.raises(DataError, match=f"^'{place}' cannot be read as an image"):
                function()
