"""Folders of images: layouts, names, what is ignored, and every kind of folder that is refused."""

import os
import shutil
import socket
import unicodedata

import numpy as np
import pytest
from PIL import Image

from sivdnas_tf.config import DataConfig
from sivdnas_tf.data import folders, images
from sivdnas_tf.data.datasets import load_datasets
from sivdnas_tf.data.folders import read_folder
from sivdnas_tf.errors import ConfigError, DataError

SPLITS = ("weights", "architecture", "holdout", "test")
NAMES = {"кошка": 12, "two words": 11, "dog": 10}


def config_of(root, **fields):
    return DataConfig(name=f"folder:{root}", **{"resolution": 6, **fields})


@pytest.fixture(name="read")
def fixture_read():
    """Reads a folder; the lines that it said are in `read.lines`."""

    def read(root, **fields):
        read.lines = []
        return read_folder(config_of(root, **fields), read.lines.append)

    return read


@pytest.fixture(name="refusal")
def fixture_refusal(read):
    """The one-line message of a folder that must be refused."""

    def refusal(root, error=DataError, **fields):
        with pytest.raises(error) as caught:
            read(root, **fields)
        assert "\n" not in str(caught.value) and read.lines == []
        return str(caught.value)

    return refusal


@pytest.fixture(name="no_decoding")
def fixture_no_decoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(images, "_read", refuse)


def test_classes_are_numbered_by_name_and_images_by_path(make_folder, tmp_path, read):
    (pixels, labels), test, class_names = read(make_folder(tmp_path, NAMES))
    assert class_names == ("dog", "two words", "кошка")
    assert labels.tolist() == [0] * 10 + [1] * 11 + [2] * 12
    assert (labels.dtype, pixels.dtype, pixels.shape) == (np.int32, np.uint8, (33, 6, 6, 3))
    assert test is None and read.lines == []
    paths = [tmp_path / name / f"{number:03}.png" for name in class_names for number in range(NAMES[name])]
    for image, path in zip(pixels, paths, strict=True):
        np.testing.assert_array_equal(image, images.read_image(path, 6))


def test_one_split_by_the_seed(make_folder, tmp_path):
    make_folder(tmp_path, NAMES)
    first, again, other = (load_datasets(config_of(tmp_path), seed=seed) for seed in (1, 1, 2))
    assert [len(getattr(first, name)) for name in SPLITS] == [11, 11, 3, 7]  # an odd image belongs to none
    assert (first.name, first.image_shape) == (f"folder:{tmp_path}", (6, 6, 3))
    for name in SPLITS:
        np.testing.assert_array_equal(getattr(first, name).images, getattr(again, name).images)
    assert not np.array_equal(first.test.ids, other.test.ids)


def test_an_explicit_test_split(make_folder, tmp_path):
    make_folder(tmp_path / "train", NAMES)
    make_folder(tmp_path / "test", {"кошка": 3, "dog": 2})  # a class may have no test images
    (tmp_path / ".DS_Store").touch()
    datasets = load_datasets(config_of(tmp_path), seed=0, say=lambda line: None)
    assert datasets.class_names == ("dog", "two words", "кошка")
    assert datasets.test.labels.tolist() == [0, 0, 2, 2, 2] and datasets.test.ids.tolist() == [33, 34, 35, 36, 37]
    np.testing.assert_array_equal(datasets.test.images[0], images.read_image(tmp_path / "test" / "dog" / "000.png", 6))
    assert len(datasets.holdout) == 3


@pytest.mark.parametrize("name", ["val", "validation"])
def test_an_explicit_test_split_may_have_imagenet_s_name(make_folder, tmp_path, read, name):
    make_folder(tmp_path / "train", NAMES)
    make_folder(tmp_path / name, {"dog": 2})
    (_, labels), (_, test_labels), class_names = read(tmp_path)
    assert class_names == ("dog", "two words", "кошка")
    assert (len(labels), test_labels.tolist()) == (33, [0, 0])


def test_images_are_cut_to_a_central_square(make_folder, tmp_path, read):
    make_folder(tmp_path, NAMES)
    (pixels, _), _, _ = read(tmp_path, central_crop=0.5)
    np.testing.assert_array_equal(pixels[0], images.read_image(tmp_path / "dog" / "000.png", 6, central_crop=0.5))
    assert not np.array_equal(pixels[0], images.read_image(tmp_path / "dog" / "000.png", 6))


def test_a_class_may_be_called_train(make_folder, tmp_path, read):
    assert read(make_folder(tmp_path, {"train": 2, "bus": 2, "test": 2}))[2] == ("bus", "test", "train")


def test_formats_and_modes_are_mixed(make_folder, tmp_path, read):
    make_folder(tmp_path, {"a": 3, "b": 3})
    grey = np.full((9, 5), 7, np.uint8)
    for name, options in (("x.webp", {"lossless": True}), ("y.BMP", {}), ("z.jpeg", {"quality": 100}), ("zz.png", {})):
        Image.fromarray(grey).save(tmp_path / "b" / name, **options)
    (pixels, labels), _, _ = read(tmp_path)
    assert labels.tolist() == [0] * 3 + [1] * 7
    assert np.abs(pixels[-4:].astype(int) - 7).max() <= 1


def test_names_are_composed_whatever_the_file_system_stores(make_folder, tmp_path, refusal, read):
    decomposed, composed = unicodedata.normalize("NFD", "caffè"), unicodedata.normalize("NFC", "caffè")
    assert decomposed != composed
    make_folder(tmp_path, {decomposed: 2, "tea": 2})
    assert read(tmp_path)[2] == (composed, "tea")
    make_folder(tmp_path, {composed: 2})
    if len(list(tmp_path.iterdir())) == 3:  # a file system that tells the two apart
        assert f"must not have the same name in Unicode's composed form. Received: {composed!r}" in refusal(tmp_path)


def test_the_test_split_is_matched_by_composed_names(make_folder, tmp_path, read):
    make_folder(tmp_path / "train", {unicodedata.normalize("NFD", "é"): 2, "b": 2})
    make_folder(tmp_path / "test", {unicodedata.normalize("NFC", "é"): 1})
    assert read(tmp_path)[1][1].tolist() == [1]


def test_hidden_and_other_files_are_ignored_and_counted(make_folder, tmp_path, read, monkeypatch):
    make_folder(tmp_path, {"a": 2, "b": 2, ".hidden": 2})
    for name in ("labels.csv", "stray.png", "a/notes.txt", "a/._000.png", "b/Thumbs.db"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "b" / "pipe.png")  # reading it would wait for ever
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("b/socket.png")
    (pixels, _), _, class_names = read(tmp_path)
    assert (len(pixels), class_names) == (4, ("a", "b"))
    assert read.lines == [f"data: 8 hidden, stray or other files that are no images ignored in {str(tmp_path)!r}"]


def test_images_of_subdirectories_belong_to_the_class(make_folder, tmp_path, read):
    make_folder(tmp_path, {"a/x": 2, "a/y/z": 2, "b": 3})
    assert read(tmp_path)[0][1].tolist() == [0] * 4 + [1] * 3


def test_a_tilde_is_the_home_directory(make_folder, tmp_path, read, monkeypatch):
    monkeypatch.setenv("HOME", str(make_folder(tmp_path, {"a": 2, "b": 2})))
    assert len(read("~")[0][1]) == 4


def test_a_thousand_classes_and_no_more(make_folder, tmp_path, read, refusal, monkeypatch):
    def read_images(paths, resolution, **_):
        yield from [np.zeros((resolution, resolution, 3), np.uint8)] * len(paths)

    monkeypatch.setattr(folders, "read_images", read_images)
    for number in range(1000):
        (tmp_path / f"c{number:04}").mkdir()
        (tmp_path / f"c{number:04}" / "a.png").touch()
    (_, labels), _, class_names = read(tmp_path)
    assert len(class_names) == 1000 and labels.tolist() == list(range(1000))
    (tmp_path / "c1000").mkdir()
    assert f"{str(tmp_path)!r} must hold from 2 to 1000 class directories. Received: 1001 class directories" in refusal(tmp_path)


# Links.


def test_links_elsewhere_are_followed(make_folder, tmp_path, read):
    elsewhere = make_folder(tmp_path / "elsewhere", {"b": 2, "c": 2})
    root = make_folder(tmp_path / "root", {"a": 2})
    (root / "b").symlink_to(elsewhere / "b")
    (root / "a" / "more").symlink_to(elsewhere / "c")
    (root / "a" / "one.png").symlink_to(elsewhere / "b" / "000.png")
    assert read(root)[0][1].tolist() == [0] * 5 + [1] * 2
    (tmp_path / "link").symlink_to(root)
    assert read(tmp_path / "link")[0][1].tolist() == [0] * 5 + [1] * 2


@pytest.mark.parametrize("target", ["", "a", "a/deep", ".."])
@pytest.mark.usefixtures("no_decoding")
def test_a_loop_of_links_is_refused_by_name(make_folder, tmp_path, refusal, target):
    root = make_folder(tmp_path / "root", {"a": 2, "a/deep": 1, "b": 2})
    link = root / "a" / "deep" / "back"
    link.symlink_to(root / target)
    assert f"a symbolic link must not lead to a directory that holds it. Received: '{root}/a/deep/back" in refusal(root)


@pytest.mark.usefixtures("no_decoding")
def test_a_class_that_is_a_link_to_the_folder_or_to_itself(make_folder, tmp_path, refusal):
    root = make_folder(tmp_path / "root", {"a": 2, "b": 2})
    (root / "c").symlink_to(root)
    assert f"must not lead to a directory that holds it. Received: {str(root / 'c')!r}" in refusal(root)
    (root / "c").unlink()
    (root / "c").symlink_to(root / "c")
    assert f"must lead to a file or a directory. Received: {str(root / 'c')!r} (Too many levels" in refusal(root)
    (root / "c").unlink()
    (root / "c").symlink_to(root / "none")
    assert f"must lead to a file or a directory. Received: {str(root / 'c')!r}, to nothing" in refusal(root)


def test_a_link_to_nothing_with_an_image_s_name_is_an_unreadable_image(make_folder, tmp_path, refusal):
    root = make_folder(tmp_path, {"a": 2, "b": 2})
    (root / "a" / "gone.png").symlink_to(root / "none.png")
    assert "gone.png' cannot be read as an image." in refusal(root)


# What is refused before anything is decoded.


@pytest.mark.usefixtures("no_decoding")
def test_no_folder(tmp_path, refusal):
    (tmp_path / "file").touch()
    expected = "Expected folder:PATH with one directory a class. Received: data.name='folder:"
    for path, problem in ((tmp_path / "none", "does not exist"), (tmp_path / "file", "is no directory"), ("", "must name a directory")):
        assert refusal(path) == f"the image folder {problem}. {expected}{path}'"


@pytest.mark.usefixtures("no_decoding")
def test_no_resolution(make_folder, tmp_path, refusal):
    message = refusal(make_folder(tmp_path, {"a": 2, "b": 2}), error=ConfigError, resolution=0)
    assert message == f"data.resolution must be at least 1 for 'folder:{tmp_path}': its images may have any size. Received: 0"


@pytest.mark.usefixtures("no_decoding")
def test_too_few_classes(make_folder, tmp_path, refusal):
    (tmp_path / "image.png").touch()
    expected = f"{str(tmp_path)!r} must hold from 2 to 1000 class directories. Received: "
    assert refusal(tmp_path) == expected + "no class directories"
    make_folder(tmp_path, {"кот": 3})
    assert refusal(tmp_path) == expected + "one class, 'кот'"


@pytest.mark.usefixtures("no_decoding")
def test_classes_without_images(make_folder, tmp_path, refusal):
    make_folder(tmp_path, {"a": 0, "b b": 0, "c": 0})
    (tmp_path / "a" / "notes.txt").touch()
    expected = f"every class of {str(tmp_path)!r} must hold an image, PNG, JPEG, WebP or BMP. Received: none in "
    assert refusal(tmp_path) == expected + "any of 3 classes"
    (tmp_path / "c" / "1.png").touch()
    assert refusal(tmp_path) == expected + "'a', 'b b'"


@pytest.mark.usefixtures("no_decoding")
def test_splits_that_are_no_train_and_test(make_folder, tmp_path, refusal):
    make_folder(tmp_path / "train", NAMES)
    expected = "must hold the directories train and test (or val, or validation) and no other, or one directory a class. Received: train"
    assert refusal(tmp_path).endswith(expected)
    make_folder(tmp_path / "dev", {"dog": 2})
    assert refusal(tmp_path).endswith(expected.replace("Received: ", "Received: dev, "))
    make_folder(tmp_path / "val", {"dog": 2})
    assert "Received: dev, train, val" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "dev").rename(tmp_path / "test")
    make_folder(tmp_path / "test", {"wolf": 2})
    message = refusal(tmp_path)
    assert message == f"the classes of '{tmp_path}/test' must be those of train: 'dog', 'two words', 'кошка'. Received: also 'wolf'"
    for path in (tmp_path / "test" / "wolf").iterdir():
        path.unlink()
    (tmp_path / "test" / "wolf").rmdir()
    make_folder(tmp_path / "test", {"кошка": 0})
    assert "Received: none in 'кошка'" in refusal(tmp_path)


@pytest.mark.usefixtures("no_decoding")
def test_a_test_split_without_classes(make_folder, tmp_path, refusal):
    make_folder(tmp_path / "train", NAMES)
    (tmp_path / "test").mkdir()
    assert refusal(tmp_path).endswith("Received: no class directories")


@pytest.mark.parametrize("name", [b"line\nbreak", b"tab\there", b"no utf-8 \xff"])
@pytest.mark.usefixtures("no_decoding")
def test_a_class_name_that_is_no_label(make_folder, tmp_path, refusal, name):
    make_folder(tmp_path, {"a": 2})
    os.mkdir(os.path.join(os.fsencode(tmp_path), name))
    message = refusal(tmp_path)
    assert "must be text without control characters. Received: '" in message and message.isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_directory_that_cannot_be_read(make_folder, tmp_path, refusal):
    root = make_folder(tmp_path, {"a": 2, "b": 2})
    (root / "b").chmod(0)
    assert f"a directory of images must be readable. Received: {str(root / 'b')!r} (Permission denied)" in refusal(root)
    (root / "b").chmod(0o700)


def test_a_directory_that_vanishes(make_folder, tmp_path, refusal, monkeypatch):
    root = make_folder(tmp_path, {"a": 2, "b": 2})

    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert refusal(root) == f"a directory of images must be readable. Received: {str(root)!r} (Permission denied)"


@pytest.mark.usefixtures("no_decoding")
def test_more_than_fits_in_memory(make_folder, tmp_path, refusal, monkeypatch):
    root = make_folder(tmp_path, {"a": 2, "b": 2})
    monkeypatch.setattr(folders, "_available_bytes", lambda: 4 * 12 * 5**2 + 7)
    message = refusal(root)
    assert message.startswith(f"the 4 images of 'folder:{root}' do not fit in memory at 6x6 pixels: a run needs 1,728 bytes for them, and ")
    assert message.endswith("1,207 are available. Expected data.resolution of at most 5. Received: 6")


def test_what_fits_exactly_is_read(make_folder, tmp_path, read, monkeypatch):
    monkeypatch.setattr(folders, "_available_bytes", lambda: 4 * 12 * 6**2)
    assert len(read(make_folder(tmp_path, {"a": 2, "b": 2}))[0][0]) == 4


def test_the_memory_of_this_machine(monkeypatch, tmp_path):
    assert 2**26 < folders._available_bytes() < 2**46
    monkeypatch.setattr(folders.pathlib, "Path", lambda path: tmp_path / "none")
    assert folders._available_bytes() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Corrupt images.


@pytest.fixture(name="damaged")
def fixture_damaged(make_folder, tmp_path):
    root = make_folder(tmp_path, {"a": 12, "b": 12})
    for name in ("a/003.png", "b/000.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    return root


def test_a_corrupt_image_is_named(damaged, refusal):
    message = refusal(damaged)
    assert message.startswith(f"more corrupt images than data.max_corrupt=0 allows: '{damaged}/a/003.png' cannot be read as an image.")
    message = refusal(damaged, max_corrupt=1)
    first, second = f"'{damaged}/a/003.png'", f"'{damaged}/b/000.png'"
    assert message.startswith(
        f"more corrupt images than data.max_corrupt=1 allows ({first}, {second}): {second} cannot be read as an image."
    )


def test_as_many_corrupt_images_as_allowed_are_skipped_by_name(damaged, read):
    whole = [path for path in sorted(damaged.rglob("*.png")) if path.stat().st_size > 60]
    (pixels, labels), _, _ = read(damaged, max_corrupt=2)
    assert read.lines == [f"data: warning: skipped 2 corrupt images: '{damaged}/a/003.png', '{damaged}/b/000.png'"]
    assert labels.tolist() == [0] * 11 + [1] * 11
    np.testing.assert_array_equal(pixels, [images.read_image(path, 6) for path in whole])


def test_a_corrupt_image_of_either_part_of_an_explicit_split(make_folder, tmp_path, read):
    make_folder(tmp_path / "train", {"a": 3, "b": 3})
    make_folder(tmp_path / "test", {"a": 2, "b": 2})
    for name in ("train/b/002.png", "test/a/000.png"):
        (tmp_path / name).write_bytes(b"")
    (train_pixels, train_labels), (test_pixels, test_labels), _ = read(tmp_path, max_corrupt=5)
    assert (train_labels.tolist(), test_labels.tolist()) == ([0, 0, 0, 1, 1], [0, 1, 1])
    np.testing.assert_array_equal(train_pixels[-1], images.read_image(tmp_path / "train/b/001.png", 6))
    np.testing.assert_array_equal(test_pixels[0], images.read_image(tmp_path / "test/a/001.png", 6))


def test_a_class_whose_images_were_all_skipped_is_too_small(make_folder, tmp_path):
    root = make_folder(tmp_path, {"a": 20, "b": 1})
    (root / "b" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"without an image in both halves: b$"):
        load_datasets(config_of(root, max_corrupt=1), seed=0)


def test_fewer_images_than_the_splits_need(make_folder, tmp_path):
    with pytest.raises(
        DataError, match=rf"^too few images of 'folder:{tmp_path}' for its splits: .* Received: test=1, holdout=1, weights=1"
    ):
        load_datasets(config_of(make_folder(tmp_path, {"a": 2, "b": 2})), seed=0)
