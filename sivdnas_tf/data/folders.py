"""Folders of images, one directory a class, in one of two layouts:

    PATH/CLASS/**/IMAGE              split by the seed
    PATH/train/CLASS/**/IMAGE        PATH holds the directories train and test and no other; the classes are those of train
    PATH/test/CLASS/**/IMAGE         (or val, or validation, as ImageNet's, instead of test)

A class has its directory's name in Unicode's composed form (NFC), whatever the file system stores; classes are numbered in the order of
their names by code point, images in the order of their paths. Images of subdirectories belong to the class too, and links to files and
directories elsewhere are followed.

Ignored, and counted in one line: hidden files and directories (a leading dot), files whose names do not end as an image's
(`images.EXTENSIONS`), and files beside the class directories. Everything else that is wrong is a `DataError`, raised before anything is
decoded where that can be known.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import unicodedata

import numpy as np

from sivdnas_tf.data.images import is_image_name, read_images
from sivdnas_tf.errors import ConfigError, DataError

PREFIX = "folder:"
MAX_CLASSES = 1000
_TEST_NAMES = ("test", "val", "validation")
_SPLIT_NAMES = frozenset({"train", *_TEST_NAMES, "valid", "dev"})
_COPIES = 4  # of each image in memory during a run: its split, the halves joined for training, and TensorFlow's tensors of both
_SHOWN = 5  # names in a message
_UNFIT_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # control characters, line breaks, bytes that are no text: no label in a line of output


def read_folder(data_config, say=print):
    """Reads the images of a folder, each once, into memory.

    Args:
      data_config: a `config.DataConfig` whose name is "folder:PATH"; `resolution` must be set, since any size is read, and up to
        `max_corrupt` images that cannot be read are skipped.
      say: function of a line for the user: what was ignored, what was skipped.

    Returns:
      `((images, labels), test, class_names)`: uint8 [n, R, R, 3], int32 [n]; `test` alike, or None without a test/ of its own.

    Raises:
      ConfigError: where `resolution` is not set.
      DataError: for a folder that is no such folder, an image that cannot be read, or more images than memory holds.
    """
    resolution = data_config.resolution
    train, test = find_files(data_config, say, lambda count: _check_memory(data_config.name, count, resolution))
    images, kept = _decode(train.paths + test.paths, data_config, say)
    labels = np.array(train.labels + test.labels, np.int32)[kept]
    n_train = int((kept < len(train.paths)).sum())
    own_test = (images[n_train:], labels[n_train:]) if test.paths else None
    return (images[:n_train], labels[:n_train]), own_test, train.class_names


def find_files(data_config, say=print, check=lambda count: None):
    """Lists the images of a folder; reads none.

    Args:
      data_config, say: as of `read_folder`.
      check: function of the number of images that may raise, before anything is said.

    Returns:
      The `Files` of training and of test, the latter empty without a test/ of its own.

    Raises:
      ConfigError, DataError: as `read_folder`.
    """
    name, resolution = data_config.name, data_config.resolution
    if resolution < 1:
        raise ConfigError(f"data.resolution must be at least 1 for {name!r}: its images may have any size. Received: {resolution}")
    root = os.path.expanduser(name.removeprefix(PREFIX))
    _check_root(root, name)
    walk = _Walk(root)
    train, test = _find_files(root, walk)
    check(len(train.paths) + len(test.paths))
    if walk.ignored:
        say(f"data: {walk.ignored} hidden, stray or other files that are no images ignored in {root!r}")
    return train, test


def fits_in_memory(encoded_bytes):
    """Whether so many bytes of encoded images may stay in memory: half of what can be had."""
    return encoded_bytes <= _available_bytes() // 2


@dataclasses.dataclass(frozen=True)
class Files:
    """Paths of images with their labels, and what the labels mean."""

    paths: tuple
    labels: tuple
    class_names: tuple


def _check_root(root, name):
    problem = "must name a directory" if not root else "does not exist" if not os.path.lexists(root) else "is no directory"
    if not os.path.isdir(root):
        raise DataError(f"the image folder {problem}. Expected folder:PATH with one directory a class. Received: data.name={name!r}")


def _find_files(root, walk):
    """`Files` of training and of test (empty where the seed splits)."""
    directories = walk.directories(root)
    if len(directories) == 2 and "train" in directories and not directories.keys().isdisjoint(_TEST_NAMES):
        train, test = directories.pop("train"), *directories.values()
        train = _class_files(train, walk.directories(train), walk)
        return train, _class_files(test, walk.directories(test), walk, train.class_names)
    if "train" in directories and set(directories) <= _SPLIT_NAMES:
        raise DataError(
            f"{root!r} must hold the directories train and test (or val, or validation) and no other, or one directory a class. "
            f"Received: {', '.join(sorted(directories))}"
        )
    return _class_files(root, directories, walk), Files((), (), ())


def _class_files(root, directories, walk, known=None):
    """The `Files` of the class directories of `root`; with `known` they are those of the test split, among these class names."""
    names = sorted(directories)
    _check_classes(root, names, known)
    found = {name: walk.images(directories[name], root) for name in names}
    empty = [name for name in names if not found[name]]
    if empty:
        which = f"none in any of {len(names)} classes" if len(empty) == len(names) else f"none in {listed(empty)}"
        raise DataError(f"every class of {root!r} must hold an image, PNG, JPEG, WebP or BMP. Received: {which}")
    label_of = {name: label for label, name in enumerate(names if known is None else known)}
    paths = [(path, label_of[name]) for name in names for path in found[name]]
    return Files(tuple(path for path, _ in paths), tuple(label for _, label in paths), tuple(label_of))


def _check_classes(root, names, known):
    if known is not None:
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            received = f"also {listed(unknown)}" if unknown else "no class directories"
            raise DataError(f"the classes of {root!r} must be those of train: {listed(known)}. Received: {received}")
    elif not 2 <= len(names) <= MAX_CLASSES:
        received = f"one class, {names[0]!r}" if len(names) == 1 else f"{len(names) or 'no'} class directories"
        raise DataError(f"{root!r} must hold from 2 to {MAX_CLASSES} class directories. Received: {received}")


def too_many_corrupt(places, limit, last):
    """The `DataError` of more than `limit` corrupt images, at `places`, of which `last` is the last one's own."""
    so_far = f" ({listed(places)})" if limit else ""
    return DataError(f"more corrupt images than data.max_corrupt={limit} allows{so_far}: {last}")


def listed(names):
    """The first few of the names, and how many more there are."""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


class _Walk:
    """Lists directories of `root`, and counts what it passes over in `ignored`."""

    def __init__(self, root):
        self.ignored = 0
        real = pathlib.Path(os.path.realpath(root))
        self._above = frozenset(_identity(path) for path in (real, *real.parents))

    def directories(self, root):
        """The directories in `root`: a dict from their names, NFC, to their paths. Files beside them are of no class: ignored."""
        directories, files = self._entries(root)
        self.ignored += len(files)
        found = {}
        for path in directories:
            name = unicodedata.normalize("NFC", os.path.basename(path))
            if name in found:
                raise DataError(f"two directories of {root!r} must not have the same name in Unicode's composed form. Received: {name!r}")
            if any(unicodedata.category(character) in _UNFIT_CATEGORIES for character in name):
                raise DataError(f"the name of a class must be text without control characters. Received: {path!r}")
            found[name] = path
        return found

    def images(self, directory, parent):
        """Sorted paths of all images below `directory` of `parent`; a link back to a directory that holds it is refused."""
        found, waiting = [], [(directory, self._above | {_identity(parent)})]
        while waiting:  # no recursion: a tree may be deeper than Python's stack
            current, ancestors = waiting.pop()
            identity = _identity(current)
            if identity in ancestors:
                raise DataError(f"a symbolic link must not lead to a directory that holds it. Received: {current!r}")
            directories, files = self._entries(current)
            images = [path for path in files if is_image_name(path)]
            self.ignored += len(files) - len(images)
            found.extend(images)
            waiting.extend((path, ancestors | {identity}) for path in directories)
        return sorted(found, key=lambda path: (unicodedata.normalize("NFC", path), path))

    def _entries(self, directory):
        """Paths of the directories and of the files that are not hidden."""
        directories, files = [], []
        try:
            with os.scandir(directory) as entries:
                listed = list(entries)
        except OSError as error:
            raise DataError(f"a directory of images must be readable. Received: {directory!r} ({error.strerror})") from None
        for entry in listed:
            if entry.name.startswith("."):
                self.ignored += 1
            elif _is_directory(entry):
                directories.append(entry.path)
            elif entry.is_symlink() or entry.is_file():
                files.append(entry.path)
            else:  # a pipe, a socket, a device
                self.ignored += 1
        return directories, files


def _identity(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_directory(entry):
    """Whether a directory entry is, or leads to, a directory. A link of an image's name to nothing is an image that cannot be read."""
    try:
        entry.stat()
    except FileNotFoundError:
        if not is_image_name(entry.name):
            raise DataError(f"a symbolic link must lead to a file or a directory. Received: {entry.path!r}, to nothing") from None
    except OSError as error:
        raise DataError(f"a symbolic link must lead to a file or a directory. Received: {entry.path!r} ({error.strerror})") from None
    return entry.is_dir()


def _check_memory(name, count, resolution):
    available = _available_bytes()
    each = _COPIES * 3  # bytes a pixel
    needed = count * resolution**2 * each
    if needed > available:
        fitting = math.isqrt(available // (count * each))
        raise DataError(
            f"the {count:,} images of {name!r} do not fit in memory at {resolution}x{resolution} pixels: a run needs {needed:,} bytes for "
            f"them, and {available:,} are available. Expected data.resolution of at most {fitting}. Received: {resolution}"
        )


def _available_bytes():
    """Memory that can be had without swapping; the whole of it where the system does not tell (not Linux)."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _container_limit())
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_limit():
    """What a container (control group) may have of the machine's memory, in bytes; infinite where nothing limits it."""
    try:
        limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return math.inf
    return int(limit) if limit.isdigit() else math.inf


def _decode(paths, data_config, say):
    """Images [n, R, R, 3] of the files that can be read, and their positions in `paths`, int64 [n]."""
    resolution, max_corrupt = data_config.resolution, data_config.max_corrupt
    images = np.empty((len(paths), resolution, resolution, 3), np.uint8)
    kept, corrupt = [], []
    with contextlib.closing(read_images(paths, resolution, central_crop=data_config.central_crop)) as decoded:
        for position, image in enumerate(decoded):
            if not isinstance(image, DataError):
                images[len(kept)] = image
                kept.append(position)
                continue
            corrupt.append(paths[position])
            if len(corrupt) > max_corrupt:
                raise too_many_corrupt(corrupt, max_corrupt, image)
    if corrupt:
        say(f"data: warning: skipped {len(corrupt)} corrupt image{'s'[: len(corrupt) > 1]}: {listed(corrupt)}")
    return images[: len(kept)], np.array(kept, np.int64)
