"""Every artifact in its own runtime against the Keras model, at export and again from a manifest."""

import hashlib
import pathlib
import statistics
import time
import zipfile

import numpy as np

from export import runtimes
from sivdnas_tf.errors import AgreementError, RunDirError
from sivdnas_tf.run_dir import read_json

_TIMED_RUNS = 10


def digest(path):
    """`(bytes, sha256)` of a file, or of a directory: the digest over the sorted relative names and contents of its files."""
    path = pathlib.Path(path)
    if path.is_file():
        content = path.read_bytes()
        return len(content), hashlib.sha256(content).hexdigest()
    total, result = 0, hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        content = file.read_bytes()
        total += len(content)
        for part in (file.relative_to(path).as_posix().encode(), hashlib.sha256(content).digest()):
            result.update(len(part).to_bytes(8, "big") + part)
    return total, result.hexdigest()


def compare(run, images, logits):
    """Runs an artifact and compares it with the Keras model.

    Args:
      run: function from images to logits, from `runtimes.load`.
      images: float32 `[n, resolution, resolution, channels]`.
      logits: the Keras model's, float32 `[n, classes]`.

    Returns:
      `{"max_abs_diff", "top1_agreement", "latency_ms"}`: of a logit; share of images whose most probable class is the same (equal
      logits count as the same class); median of single-image runs, an indication only.
    """
    outputs = run(images)
    if outputs.shape != logits.shape:
        raise AgreementError(f"an artifact must give logits of shape {logits.shape}. Received: {outputs.shape}")
    chosen = np.argmax(outputs, axis=1)
    agreement = np.mean(logits[np.arange(len(logits)), chosen] == logits.max(axis=1))
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        run(images[:1])
        times.append(1000 * (time.perf_counter() - start))
    difference = np.abs(outputs - logits).max()
    return {
        "max_abs_diff": float(difference) if np.isfinite(difference) else None,
        "top1_agreement": float(agreement),
        "latency_ms": round(statistics.median(times), 3),
    }


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


def verify_manifest(path, say=print):
    """Repeats the verification of an export, anywhere: the manifest's directory holds the images and the Keras model's logits.

    Args:
      path: of manifest.json.
      say: function of a line for the user.

    Returns:
      A list of the results of `compare`, one an artifact.

    Raises:
      RunDirError: for a manifest, an artifact or verification images that are missing or damaged.
      AgreementError: for an artifact that has changed since the export, or that does not agree.
    """
    path = pathlib.Path(path)
    manifest = read_json(path)
    images, logits = _verification_data(path.parent / "verification.npz")
    try:
        limits, artifacts = manifest["verification"], manifest["artifacts"]
        entries = [(entry["format"], entry["path"], entry["sha256"]) for entry in artifacts]
        bounds = limits["max_abs_diff"], limits["min_top1_agreement"]
    except (KeyError, TypeError) as error:
        raise RunDirError(f"{path} is not a manifest of an export: it lacks {error}") from None
    results = []
    for artifact_format, name, sha256 in entries:
        file = _artifact_path(path, artifact_format, name)
        if digest(file)[1] != sha256:
            raise AgreementError(f"{file} has changed since it was exported. Expected sha256 {sha256}. Received: {digest(file)[1]}")
        result = compare(runtimes.load(artifact_format, file), images, logits)
        check_agreement(name, result, *bounds)
        say(f"verify: {name} agrees: max_abs_diff {result['max_abs_diff']:.2e}, top-1 {result['top1_agreement']:.4f}")
        results.append(result)
    return results


def _artifact_path(manifest_path, artifact_format, name):
    directory = manifest_path.parent.resolve()
    file = (directory / str(name)).resolve()
    if not file.is_relative_to(directory):
        raise RunDirError(f"{manifest_path} names an artifact outside its directory. Received: {name!r}")
    if artifact_format not in runtimes.FORMATS:
        raise RunDirError(f"{manifest_path}: unknown format. Expected one of {', '.join(runtimes.FORMATS)}. Received: {artifact_format!r}")
    if not file.exists():
        raise RunDirError(f"{manifest_path} names an artifact that is missing. Received: {name!r}")
    return file


def _verification_data(path):
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive["images"], archive["logits"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunDirError(f"cannot read {path}: {error}") from None
