"""How labelled images are divided into splits, and what is measured over them."""

import numpy as np

from sivdnas_tf.errors import ConfigError, DataError

_MIN_STD = 1 / 255  # one grey level: a constant channel is divided by it, not by zero
_CHUNK = 512  # images that are counted at a time


def split_indices(labels, n_classes, fractions, rng):
    """Sorted indices of each split of `fractions` (shares of what the ones before it left), and of the two halves of the rest."""
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in range(n_classes)]
    indices = {}
    for part, fraction in fractions.items():
        counts = np.array([len(pool) for pool in pools])
        taken = allocate(counts, max(1, round(fraction * counts.sum())))
        indices[part] = [pool[:count] for pool, count in zip(pools, taken, strict=True)]
        pools = [pool[count:] for pool, count in zip(pools, taken, strict=True)]
    # Classes with an odd number of images give their last one to either half in turn; the last such class may give it to none.
    leftovers = rng.permutation([pool[-1] for pool in pools if len(pool) % 2]).astype(np.int64)
    leftovers = leftovers[: len(leftovers) // 2 * 2]
    indices["weights"] = [*(pool[: len(pool) // 2] for pool in pools), leftovers[::2]]
    indices["architecture"] = [*(pool[len(pool) // 2 : len(pool) // 2 * 2] for pool in pools), leftovers[1::2]]
    return {part: np.sort(np.concatenate(chosen)).astype(np.int64) for part, chosen in indices.items()}


def allocate(counts, total):
    """How many of each class make `total`, in proportion to `counts`: whole numbers by largest remainder, in integer arithmetic."""
    size = max(1, counts.sum())
    total = min(total, counts.sum())
    taken = counts * total // size
    by_remainder = np.argsort(-(counts * total % size), kind="stable")
    taken[by_remainder[: total - taken.sum()]] += 1
    return taken


def check_sizes(name, labels, class_names):
    """Raises `DataError` where a split is empty, or a class has no image in one of the halves; `labels` [n] of each split by its name."""
    sizes = ", ".join(f"{part}={len(of_part)}" for part, of_part in labels.items())
    in_halves = [np.bincount(labels[half], minlength=len(class_names)) for half in ("weights", "architecture")]
    missing = [class_names[label] for label in np.flatnonzero(np.minimum(*in_halves) == 0)]
    if missing or not all(len(of_part) for of_part in labels.values()):
        classes = f"; without an image in both halves: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}" if missing else ""
        raise DataError(
            f"too few images of {name!r} for its splits: none may be empty, and each of the {len(class_names)} classes needs an image in "
            f"weights and one in architecture. Received: {sizes}{classes}"
        )


def channel_statistics(arrays):
    """Mean and standard deviation of each channel, [C] float32, of uint8 images in units of pixel / 255, by counting grey levels."""
    counts = 0
    for images in arrays:
        counts = counts + np.zeros((images.shape[-1], 256), np.int64)
        for start in range(0, len(images), _CHUNK):
            for channel, values in enumerate(np.moveaxis(images[start : start + _CHUNK], -1, 0)):
                counts[channel] += np.bincount(values.ravel(), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    levels = np.arange(256) / 255
    mean = shares @ levels
    variance = (shares * (levels - mean[:, np.newaxis]) ** 2).sum(axis=1)
    return mean.astype(np.float32), np.maximum(np.sqrt(variance), _MIN_STD).astype(np.float32)


def given_statistics(mean, std, channels, name):
    """`(mean, std)` of a configuration, float32 [C], or None where they are to be measured.

    Raises:
      ConfigError: where there are other than `channels` numbers.
    """
    if not mean:
        return None
    if len(mean) != channels:
        raise ConfigError(
            f"data.mean and data.std must have a number for each of the {channels} channels of {name!r}. "
            f"Received: data.mean={tuple(mean)}, data.std={tuple(std)}"
        )
    return np.array(mean, np.float32), np.array(std, np.float32)
