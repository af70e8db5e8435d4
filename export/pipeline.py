"""The export stage: a trained run to checked artifacts and their manifest."""

import contextlib
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

import numpy as np

from export import runtimes, verify
from export.freeze import check_deployed_budget, deployed_budget, freeze
from export.latency import median_latency_ms
from export.saved_model import write_saved_model
from export.to_onnx import write_onnx
from export.to_tflite import write_tflite
from sivdnas_tf.data.augment import normalise
from sivdnas_tf.data.datasets import spread_images, with_name_of
from sivdnas_tf.errors import RunDirError
from sivdnas_tf.profiling.costs import check_latency
from sivdnas_tf.quiet import quiet
from sivdnas_tf.run_dir import read_json, write_json
from sivdnas_tf.training.train import WEIGHTS, train_settings

MANIFEST = "export/manifest.json"
_VERIFICATION = "verification.npz"
_PATHS = {"saved_model": "saved_model/1", "onnx": "model.onnx", "tflite": "model_fp32.tflite"}
_STAGING = ".export-"  # prefix of the directory in which an export is made


def run_export(config, genotype, datasets, run_dir, overwrite=False, say=print):
    """Writes the artifacts of `config.export.formats`, checks each in its runtime, and writes export/manifest.json last.

    Everything is made in a directory beside export/ and takes its place only when every artifact has passed: a model that is over
    the budget, or an artifact that does not agree, leaves the run as it was, an earlier export included.

    Args:
      config: a `Config`.
      genotype: the run's `Genotype`.
      datasets: `Datasets`; up to `config.export.verification_images` held-out images are run through every artifact.
      run_dir: the `RunDir` with a trained network.
      overwrite: whether an earlier export is replaced.
      say: function of a line for the user.

    Returns:
      The content of export/manifest.json.

    Raises:
      BudgetError: where the network is over the budget; its latency, if that is limited, is measured of the model that is written.
      AgreementError: where an artifact does not agree with the Keras model, or cannot be run.
      RunDirError: where the network was not trained, or with other settings, or an earlier export was made with other settings.
    """
    run_dir.require("train")
    config = with_name_of(config, datasets)
    run_dir.check_consistent("train", train_settings(config, genotype))
    cost = check_deployed_budget(config, genotype, datasets)
    settings = _settings(config, genotype, run_dir)
    if not overwrite and _has_export(run_dir) and run_dir.begin("export", settings).done:
        say(f"export: done already ({run_dir.file(MANIFEST)})")
        return read_json(run_dir.file(MANIFEST))
    model = freeze(config, genotype, datasets, run_dir)
    _check_latency(config, datasets, model)
    with _staging_directory(run_dir) as directory:
        artifacts, verification = _build(config, datasets, model, directory, say)
        manifest = {
            "model": _model_entry(config, genotype, datasets, cost),
            "verification": verification,
            "artifacts": artifacts,
        }
        write_json(directory / "manifest.json", manifest)
        run_dir.begin("export", settings, overwrite)
        _publish(directory, run_dir.file("export"))
    return manifest


def _check_latency(config, datasets, model):
    if config.budget.latency_ms:
        with quiet((1, 2)):  # converters print their progress
            milliseconds = median_latency_ms(model, config.budget.latency_runtime)
        budget = deployed_budget(config, datasets.image_shape, len(datasets.class_names))
        check_latency(milliseconds, budget, "the exported network")


def _settings(config, genotype, run_dir):
    values = config.to_dict()
    return {
        **train_settings(config, genotype),
        "export": values["export"],
        "budget": values["budget"],
        "weights_sha256": run_dir.sha256(WEIGHTS),
    }


def _has_export(run_dir):
    return run_dir.file("export").exists() or run_dir.file("stages/export.json").exists()


@contextlib.contextmanager
def _staging_directory(run_dir):
    """A new directory beside export/; what of it has not been moved away is removed, those of killed exports too."""
    for left_over in run_dir.path.glob(f"{_STAGING}*"):
        shutil.rmtree(left_over)
    directory = pathlib.Path(tempfile.mkdtemp(dir=run_dir.path, prefix=_STAGING))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _publish(directory, target):
    """Moves a finished directory to its place in one step, its content on the disk before."""
    for root, _, files in os.walk(directory):
        for name in files:
            with open(os.path.join(root, name), "rb+") as stream:
                os.fsync(stream.fileno())
    umask = os.umask(0)
    os.umask(umask)
    directory.chmod(0o777 & ~umask)  # mkdtemp makes it private
    if target.exists():
        shutil.rmtree(target)
    os.rename(directory, target)


def _build(config, datasets, model, directory, say):
    """Writes and checks the artifacts; returns their entries of the manifest, and that of the verification."""
    images = _verification_images(config, datasets)
    with runtimes.full_float32():
        logits = model.predict(images, verbose=0)
    if not np.isfinite(logits).all():
        raise RunDirError(f"the trained network must give finite logits. Received: weights ({WEIGHTS}) that give others")
    # Read back, since a later verification compares with what is in the file.
    verify.write_verification(directory / _VERIFICATION, images, logits)
    images, logits = verify.read_verification(directory / _VERIFICATION)
    artifacts = [_write_and_check(name, config, model, directory, images, logits, say) for name in config.export.formats]
    verification = {
        "path": _VERIFICATION,
        "sha256": verify.digest(directory / _VERIFICATION)[1],
        "images": len(images),
        "max_abs_diff": config.export.max_abs_diff,
        "min_top1_agreement": config.export.min_top1_agreement,
    }
    return artifacts, verification


def _verification_images(config, datasets):
    """Held-out images, evenly spread over the split (a source may be sorted by class), as the model takes them."""
    pixels = spread_images(datasets.holdout, config.export.verification_images)
    if config.export.preprocessing == "inside":
        return pixels.astype(np.float32)
    return normalise(pixels, datasets.mean, datasets.std).numpy()


def _write_and_check(artifact_format, config, model, directory, images, logits, say):
    """Writes one artifact and returns its entry of the manifest."""
    name = _PATHS[artifact_format]
    layout = config.export.onnx_layout if artifact_format == "onnx" else "nhwc"
    with quiet((1, 2)):  # converters print their progress
        if artifact_format == "saved_model":
            write_saved_model(model, directory / name)
        elif artifact_format == "onnx":
            write_onnx(model, directory / name, layout)
        else:
            write_tflite(model, directory / name)
    limits = config.export.max_abs_diff, config.export.min_top1_agreement
    runtime, result = verify.check_artifact(artifact_format, directory / name, name, images, logits, limits, layout)
    size, sha256 = verify.digest(directory / name)
    say(f"export: {verify.result_line(name, result, len(images))}")
    return {
        "format": artifact_format,
        "path": name,
        "bytes": size,
        "sha256": sha256,
        "input": runtime.input,
        "output": runtime.output,
        **result,
    }


def _model_entry(config, genotype, datasets, cost):
    return {
        "genotype": genotype.to_dict(),
        "network": config.train.network,
        "channels": config.train.channels,
        "cells": config.train.cells,
        "resolution": datasets.image_shape[0],
        "image_channels": datasets.image_shape[2],
        "classes": len(datasets.class_names),
        "macs": cost.macs,
        "macs_ptflops": cost.macs_ptflops,
        "params": cost.params,
        "preprocessing": _preprocessing_entry(config.export.preprocessing, datasets),
        "labels": [str(name) for name in datasets.class_names],
        "version": _version(),
    }


def _preprocessing_entry(mode, datasets):
    """What a caller must know to feed the model; "input_range" is that of its input, "formula" what is done inside or outside."""
    extremes = normalise(np.array([[0], [255]]), datasets.mean, datasets.std).numpy()
    return {
        "mode": mode,
        "input_range": [0, 255] if mode == "inside" else [float(extremes.min()), float(extremes.max())],
        "formula": "(pixel / 255 - mean) / std",
        "mean": [float(value) for value in datasets.mean],
        "std": [float(value) for value in datasets.std],
        **({"central_crop": float(datasets.central_crop)} if datasets.central_crop else {}),
    }


def _version():
    try:
        return importlib.metadata.version("sivdnas_tf")
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "not installed"


def artifact_lines(manifest):
    """The table of artifacts as lines for a terminal."""
    yield f"{'artifact':20} {'bytes':>10}  {'max_abs_diff':>12}  {'top-1 agreement':>15}  {'latency_ms':>10}"
    for entry in manifest["artifacts"]:
        yield (
            f"{entry['path']:20} {entry['bytes']:>10,}  {entry['max_abs_diff']:>12.2e}  {entry['top1_agreement']:>15.4f}  "
            f"{entry['latency_ms']:>10.3f}"
        )
    model = manifest["model"]
    yield f"{model['network']} network of {model['genotype']['name']}: {model['macs']:,} macs, {model['params']:,} params"
