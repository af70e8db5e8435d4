"""Every artifact in its own runtime against the Keras model, at export and again from a manifest."""

import hashlib
import math
import os
import pathlib
import statistics
import sys
import time
import zipfile
import zlib

import numpy as np

from export import runtimes
from sivdnas_tf.errors import AgreementError, RunDirError
from sivdnas_tf.quiet import quiet
from sivdnas_tf.run_dir import read_json

_BATCH_SIZE = 32
_TIMED_RUNS = 10
# Classes whose logits differ by less, relative to the largest logit or to 1, are equally probable: float32 sums in another order.
_TIE = 1e-5


def digest(path):
    """`(bytes, sha256)` of a file, or of a directory.

    A directory's sha256 is that of the text that `sha256sum` prints for its files in the order of their names, which
    `cd DIRECTORY && find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum` repeats.

    Raises:
      RunDirError: where there is no such file, or something that is not a plain file.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return _file_digest(path)
    total, listing = 0, ""
    for file in sorted(_files(path), key=lambda file: file.relative_to(path).as_posix().encode()):
        size, sha256 = _file_digest(file)
        total += size
        listing += f"{sha256}  {file.relative_to(path).as_posix()}\n"
    return total, hashlib.sha256(listing.encode()).hexdigest()


def _files(directory):
    for root, directories, files in os.walk(directory):
        yield from (pathlib.Path(root, name) for name in files)
        yield from (pathlib.Path(root, name) for name in directories if pathlib.Path(root, name).is_symlink())


def _file_digest(path):
    # A link may lead anywhere, and a pipe has no end.
    if path.is_symlink() or not path.is_file():
        raise RunDirError(f"an artifact must be a plain file, or a directory of plain files. Received: {path}")
    with path.open("rb") as stream:
        return path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()


def compare(runtime, images, logits):
    """Runs an artifact and compares it with the Keras model.

    Args:
      runtime: a `runtimes.Runtime`.
      images: float32 `[n, resolution, resolution, channels]`, as the model takes them.
      logits: the Keras model's, float32 `[n, classes]`.

    Returns:
      `{"max_abs_diff", "top1_agreement", "latency_ms"}`: of a logit, None where it is not finite; share of images on which the
      artifact's most probable class is a most probable one of the Keras model, which may have several that are equal up to rounding;
      median of a few runs on one image on this machine, an indication only.

    Raises:
      AgreementError: where the artifact takes other images or gives other logits, or its runtime fails.
    """
    height, width, channels = images.shape[1:]
    expected = {"nhwc": [height, width, channels], "nchw": [channels, height, width]}[runtime.input["layout"]]
    if runtime.input["shape"][1:] != expected:
        raise AgreementError(f"an artifact must take images of {expected}. Received: {runtime.input}")
    outputs = np.concatenate([runtime.run(images[start : start + _BATCH_SIZE]) for start in range(0, len(images), _BATCH_SIZE)])
    if outputs.shape != logits.shape:
        raise AgreementError(f"an artifact must give logits of shape {list(logits.shape)}. Received: {list(outputs.shape)}")
    difference = float(np.abs(outputs.astype(np.float64) - logits).max())
    return {
        "max_abs_diff": difference if math.isfinite(difference) else None,
        "top1_agreement": _top1_agreement(outputs, logits),
        "latency_ms": _latency_ms(runtime, images[:1]),
    }


def _top1_agreement(outputs, logits):
    best = logits.max(axis=1)
    chosen = logits[np.arange(len(logits)), np.argmax(outputs, axis=1)]
    return float(np.mean(chosen >= best - _TIE * np.maximum(1.0, np.abs(best))))


def _latency_ms(runtime, image):
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        runtime.run(image)
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 3)


def check_agreement(name, result, max_abs_diff, min_top1_agreement):
    """Raises `AgreementError` where a result of `compare` is outside the limits; a difference that is not finite always is."""
    difference = result["max_abs_diff"]
    if difference is None or difference > max_abs_diff or result["top1_agreement"] < min_top1_agreement:
        shown = "not finite" if difference is None else f"{difference:.3g}"
        raise AgreementError(
            f"{name} does not agree with the Keras model. Expected logits within {max_abs_diff:g} and the same class on at least "
            f"{min_top1_agreement:.2%} of the images. Received: max_abs_diff={shown}, "
            f"top1_agreement={result['top1_agreement']:.4f}"
        )


def check_artifact(artifact_format, path, name, images, logits, limits, layout="nhwc"):
    """Loads, runs and judges one artifact.

    Args:
      artifact_format: one of `runtimes.FORMATS`.
      path: file, or SavedModel directory.
      name: what messages call it.
      images, logits: as of `compare`.
      limits: `(max_abs_diff, min_top1_agreement)`.
      layout: of the artifact's input.

    Returns:
      `(runtime, result of compare)`.

    Raises:
      AgreementError: where it cannot be run, or is outside the limits.
    """
    try:
        runtime = runtimes.load(artifact_format, path, layout)
        with quiet():
            result = compare(runtime, images, logits)
    except AgreementError as error:
        raise AgreementError(f"{name}: {error}") from error
    check_agreement(name, result, *limits)
    return runtime, result


def verify_manifest(path, say=print):
    """Repeats the verification of an export, anywhere: the manifest's directory holds the images and the Keras model's logits.

    A SavedModel is a program: verifying that of a stranger runs it.

    Args:
      path: of manifest.json.
      say: function of a line for the user.

    Returns:
      A list of the results of `compare`, one an artifact, with its "format" and "path".

    Raises:
      RunDirError: for a manifest that is damaged or names what is missing or outside its directory.
      AgreementError: for an artifact, or the verification's images, that changed since the export, or that does not agree.
    """
    path = pathlib.Path(path)
    manifest = _Fields(read_json(path), str(path))
    verification = manifest.object("verification")
    limits = verification.number("max_abs_diff"), verification.number("min_top1_agreement")
    entries = [_Fields(entry, f"{path}: artifacts[{index}]") for index, entry in enumerate(manifest.get("artifacts", list))]
    if not entries:
        raise RunDirError(f"{path}: artifacts must name at least one. Received: []")
    for entry in entries:  # all of them before the first is run
        entry.choice("format", runtimes.FORMATS)
        entry.object("input").choice("layout", runtimes.LAYOUTS)
        _unchanged_file(path, entry)
    images, logits = read_verification(_unchanged_file(path, verification))
    results = []
    for entry in entries:
        name, artifact_format, layout = entry.get("path", str), entry.get("format", str), entry.object("input").get("layout", str)
        _, result = check_artifact(artifact_format, path.parent / name, name, images, logits, limits, layout)
        say(f"verify: {result_line(name, result, len(images))}")
        results.append({"format": artifact_format, "path": name, **result})
    return results


def result_line(name, result, n_images):
    """One line for the terminal about an artifact that agrees."""
    return (
        f"{name} agrees with the Keras model on {n_images} held-out images: max_abs_diff {result['max_abs_diff']:.2e}, "
        f"top-1 {result['top1_agreement']:.4f}, {result['latency_ms']:.2f} ms an image"
    )


def write_verification(path, images, logits):
    """Writes images and logits as an npz archive; whole grey levels, as of a model that normalises itself, as uint8."""
    levels = images.astype(np.uint8) if images.min() >= 0 and images.max() <= 255 else images
    np.savez_compressed(path, images=levels if np.array_equal(levels, images) else images, logits=logits)


def read_verification(path):
    """Reads `(images, logits)`, float32 both; raises `RunDirError` where they are damaged or do not fit together."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, logits = (archive[key].astype(np.float32) for key in ("images", "logits"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunDirError(f"cannot read {path}: {error}") from None
    if images.ndim != 4 or logits.ndim != 2 or len(images) != len(logits) or not len(images) or not np.isfinite(logits).all():
        raise RunDirError(f"{path} must hold images and a row of finite logits for each. Received: {images.shape} and {logits.shape}")
    return images, logits


def _unchanged_file(manifest_path, entry):
    """The file or directory that an entry of the manifest names, once its digest is found to be the recorded one."""
    name, sha256 = entry.get("path", str), entry.get("sha256", str)
    directory = manifest_path.parent.resolve()
    try:
        file = (directory / name).resolve()
        inside, exists = file.is_relative_to(directory) and file != directory, file.exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise RunDirError(f"{manifest_path} names a file that cannot be. Received: {name!r} ({error})") from None
    if not inside:
        raise RunDirError(f"{manifest_path} must name files in its own directory. Received: {name!r}")
    if not exists:
        raise RunDirError(f"{manifest_path} names a file that is missing. Received: {name!r}")
    received = digest(file)[1]
    if received != sha256:
        raise AgreementError(f"{name} has changed since it was exported. Expected sha256 {sha256}. Received: {received}")
    return file


class _Fields:
    """An object of a manifest, whose fields are checked as they are read.

    Args:
      value: what stands there.
      where: what messages call it.
    """

    def __init__(self, value, where):
        if not isinstance(value, dict):
            raise RunDirError(f"{where} must be an object. Received: {value!r:.80}")
        self.value, self.where = value, where

    def get(self, key, kind):
        """The field `key`, of type `kind`."""
        value = self.value.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            shown = f"{value!r:.80}" if key in self.value else "no such field"
            raise RunDirError(f"{self.where}: {key} is not that of an export's manifest. Received: {shown}")
        return value

    def object(self, key):
        """The field `key`, an object."""
        return _Fields(self.get(key, dict), f"{self.where}: {key}")

    def number(self, key):
        """The field `key`, a finite number: nothing is above a limit of NaN."""
        value = self.get(key, (int, float))
        if not abs(value) <= sys.float_info.max:
            raise RunDirError(f"{self.where}: {key} must be a finite number. Received: {value}")
        return value

    def choice(self, key, choices):
        """The field `key`, one of `choices`."""
        value = self.get(key, str)
        if value not in choices:
            raise RunDirError(f"{self.where}: {key} must be one of {', '.join(choices)}. Received: {value!r:.80}")
        return value
