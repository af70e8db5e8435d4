"""Accuracy of a trained network, and the evaluation stage: the one place that reads the test split."""

import numpy as np
import tensorflow as tf

from sivdnas_tf.data.datasets import evaluation_batches, named_errors
from sivdnas_tf.errors import ConfigError, DataError
from sivdnas_tf.run_dir import read_json, write_json
from sivdnas_tf.training import objective

_BATCH_SIZE = 256
_MIN_CLASSES_FOR_TOP5 = 6  # below that, five guesses hit always


def predict_logits(model, split, *, mean, std):
    """Logits `[images, classes]` of all images of a `Split` (of a `StreamedSplit`, all that can be read), unaugmented, as NumPy."""
    return _predictions(model, split, mean, std)[0]


def _predictions(model, split, mean, std):
    """Logits `[images, classes]` and labels `[images]`: a streamed split says which images they are of as it is read."""
    with named_errors(split):
        pairs = [(model.predict_on_batch(images), labels) for images, labels in evaluation_batches(split, _BATCH_SIZE, mean=mean, std=std)]
    if not pairs:
        raise DataError(f"the split {split.name!r} must hold an image that can be read. Received: {len(split)} corrupt ones")
    logits, labels = zip(*pairs, strict=True)
    return np.concatenate(logits), np.concatenate(labels)


def measure(model, split, *, mean, std):
    """Loss and accuracies of a model of one output on a `Split` or a `StreamedSplit`.

    Returns:
      `{"images", "top1", "top5", "loss"}`: a count, fractions of 1 (top5 None below six classes), nats.
    """
    logits, labels = _predictions(model, split, mean, std)
    top5 = float(np.mean(tf.math.in_top_k(labels, logits, 5))) if logits.shape[1] >= _MIN_CLASSES_FOR_TOP5 else None
    return {
        "images": len(labels),
        "top1": float(np.mean(np.argmax(logits, axis=1) == labels)),
        "top5": top5,
        "loss": float(objective.cross_entropy(labels, logits)),
    }


def run_evaluate(model, datasets, run_dir, settings, split="test", overwrite=False, say=print):
    """Measures the trained model on a split and writes evaluation.json; a finished evaluation is read back.

    Args:
      model: the deployed form of the trained network.
      datasets: `Datasets`.
      run_dir: the `RunDir`.
      settings: what the model depends on: those of the training stage.
      split: "test", "holdout", "weights" or "architecture".
      overwrite: whether an earlier evaluation is replaced.
      say: function of a line for the user.

    Returns:
      The content of evaluation.json.
    """
    if not hasattr(datasets, split):
        raise ConfigError(f"streamed images have no halves of a search to measure. Expected --split=test or holdout. Received: {split!r}")
    path = run_dir.file("evaluation.json")
    if run_dir.begin("evaluate", {**settings, "split": split}, overwrite).done:
        say(f"evaluate: done already ({path})")
        return read_json(path)
    result = {"split": split, **measure(model, getattr(datasets, split), mean=datasets.mean, std=datasets.std)}
    write_json(path, result)
    return result
