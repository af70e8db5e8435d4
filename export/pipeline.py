"""The export stage: a trained run to checked artifacts and their manifest."""

import importlib.metadata
import os
import shutil
import tempfile

import numpy as np

from export import runtimes, verify
from export.freeze import check_deployed_budget, freeze
from export.saved_model import write_saved_model
from export.to_onnx import write_onnx
from export.to_tflite import write_tflite
from sivdnas_tf.data.augment import normalise
from sivdnas_tf.quiet import quiet
from sivdnas_tf.run_dir import read_json, write_json

_PATHS = {"saved_model": "saved_model/1", "onnx": "model.onnx", "tflite": "model_fp32.tflite"}


def run_export(config, genotype, datasets, run_dir, overwrite=False, say=print):
    """Writes the artifacts of `config.export.formats`, checks each in its runtime, and writes export/manifest.json last.

    Everything is made in a temporary directory that becomes export/ only when every artifact has passed: a model over the budget,
    or one that does not agree, leaves nothing behind that looks finished.

    Args:
      config: a `Config`.
      genotype: the run's `Genotype`.
      datasets: `Datasets`; up to `config.export.verification_images` held-out images are run through every artifact.
      run_dir: the `RunDir` with a trained network.
      overwrite: whether an earlier export is removed first.
      say: function of a line for the user.

    Returns:
      The content of export/manifest.json.

    Raises:
      BudgetError: where the network is over the budget; nothing is written.
      AgreementError: where an artifact does not agree with the Keras model; no artifact is left.
      RunDirError: where an earlier export was made with other settings.
    """
    cost = check_deployed_budget(config, genotype, datasets)
    values = config.to_dict()
    settings = {
        "export": values["export"],
        "budget": values["budget"],
        "genotype_sha256": genotype.sha256,
        "weights_sha256": run_dir.sha256("train/weights.weights.h5"),
    }
    if run_dir.begin("export", settings, overwrite).done:
        say(f"export: done already ({run_dir.file('export/manifest.json')})")
        return read_json(run_dir.file("export/manifest.json"))
    model = freeze(config, genotype, datasets, run_dir)
    images, logits = _verification_data(config, datasets, model)
    with tempfile.TemporaryDirectory(dir=run_dir.path, prefix=".export-") as directory:
        artifacts = [_write_and_check(name, config, model, directory, images, logits, say) for name in config.export.formats]
        np.savez_compressed(os.path.join(directory, "verification.npz"), images=images, logits=logits)
        manifest = _manifest(config, genotype, datasets, cost, artifacts, len(images))
        write_json(os.path.join(directory, "manifest.json"), manifest)
        os.chmod(directory, run_dir.path.stat().st_mode)
        shutil.rmtree(run_dir.file("export"), ignore_errors=True)
        os.rename(directory, run_dir.file("export"))
        os.mkdir(directory)  # what TemporaryDirectory expects to remove
    return manifest


def _verification_data(config, datasets, model):
    """Images as the model takes them, and the Keras model's logits."""
    images = datasets.holdout.images[: config.export.verification_images]
    if config.export.preprocessing == "inside":
        images = images.astype(np.float32)
    else:
        images = normalise(images, datasets.mean, datasets.std).numpy()
    return images, model.predict(images, verbose=0)


def _write_and_check(artifact_format, config, model, directory, images, logits, say):
    """Writes one artifact and returns its entry of the manifest."""
    path = os.path.join(directory, _PATHS[artifact_format])
    with quiet((1, 2)):  # converters print their progress
        if artifact_format == "saved_model":
            write_saved_model(model, path)
        elif artifact_format == "onnx":
            write_onnx(model, path, config.export.onnx_layout)
        else:
            write_tflite(model, path)
        result = verify.compare(runtimes.load(artifact_format, path), images, logits)
    verify.check_agreement(_PATHS[artifact_format], result, config.export.max_abs_diff, config.export.min_top1_agreement)
    size, sha256 = verify.digest(path)
    say(f"export: {_PATHS[artifact_format]} agrees with the Keras model on {len(images)} held-out images")
    batch = 1 if artifact_format == "tflite" else None
    height, width, channels = images.shape[1:]
    nchw = artifact_format == "onnx" and config.export.onnx_layout == "nchw"
    shape = [batch, channels, height, width] if nchw else [batch, height, width, channels]
    return {
        "format": artifact_format,
        "path": _PATHS[artifact_format],
        "bytes": size,
        "sha256": sha256,
        "input": {"name": "image", "shape": shape, "dtype": "float32"},
        "output": {"name": "logits", "shape": [batch, logits.shape[1]], "dtype": "float32"},
        **result,
    }


def _manifest(config, genotype, datasets, cost, artifacts, n_images):
    return {
        "model": {
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
            "preprocessing": {
                "mode": config.export.preprocessing,
                "input_range": [0, 255] if config.export.preprocessing == "inside" else None,
                "formula": "(pixel / 255 - mean) / std",
                "mean": [float(value) for value in datasets.mean],
                "std": [float(value) for value in datasets.std],
            },
            "labels": list(datasets.class_names),
            "version": importlib.metadata.version("sivdnas_tf"),
        },
        "verification": {
            "images": n_images,
            "max_abs_diff": config.export.max_abs_diff,
            "min_top1_agreement": config.export.min_top1_agreement,
        },
        "artifacts": artifacts,
    }


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
