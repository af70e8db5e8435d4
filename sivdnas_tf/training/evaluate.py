"""Accuracy of a trained network, and the evaluation stage: the one place that reads the test split."""

import numpy as np
import tensorflow as tf

from sivdnas_tf.data.datasets import evaluation_batches
from sivdnas_tf.run_dir import read_json, write_json
from sivdnas_tf.training import objective

_BATCH_SIZE = 256
_MIN_CLASSES_FOR_TOP5 = 6  # below that, five guesses hit always


def predict_logits(model, split, *, mean, std):
    """Logits `[images, classes]` of all images of a `Split`, unaugmented, as NumPy."""
    images = evaluation_batches(split, _BATCH_SIZE, mean=mean, std=std).map(lambda images, labels: images)
    return model.predict(images, verbose=0)


def measure(model, split, *, mean, std):
    """Loss and accuracies of a model of one output on a `Split`.

    Returns:
      `{"images", "top1", "top5", "loss"}`: a count, fractions of 1 (top5 None below six classes), nats.
    """
    logits = predict_logits(model, split, mean=mean, std=std)
    top5 = float(np.mean(tf.math.in_top_k(split.labels, logits, 5))) if logits.shape[1] >= _MIN_CLASSES_FOR_TOP5 else None
    return {
        "images": len(split),
        "top1": float(np.mean(np.argmax(logits, axis=1) == split.labels)),
        "top5": top5,
        "loss": float(objective.cross_entropy(split.labels, logits)),
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
    path = run_dir.file("evaluation.json")
    if run_dir.begin("evaluate", {**settings, "split": split}, overwrite).done:
        say(f"evaluate: done already ({path})")
        return read_json(path)
    result = {"split": split, **measure(model, getattr(datasets, split), mean=datasets.mean, std=datasets.std)}
    write_json(path, result)
    return result
