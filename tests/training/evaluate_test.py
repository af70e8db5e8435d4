import keras
import numpy as np
import pytest

from sivdnas_tf.data.datasets import datasets_from_arrays
from sivdnas_tf.errors import RunDirError
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.training import evaluate as evaluate_module
from sivdnas_tf.training.evaluate import measure, predict_logits, run_evaluate

SETTINGS = {"weights_sha256": "abc"}


def make_datasets(classes, images=120):
    """Random images, and labels that have nothing to do with them."""
    generator = np.random.default_rng(classes)
    pixels = generator.integers(0, 256, (images, 4, 4, 3), dtype=np.uint8)
    labels = np.resize(np.arange(classes), images)
    return datasets_from_arrays("noise", pixels, labels, [f"class {label}" for label in range(classes)], seed=0)


def make_model(classes):
    """A linear classifier on pixels, with weights that NumPy knows."""
    kernel = np.random.default_rng(1).normal(size=(48, classes)).astype(np.float32)
    inputs = keras.Input((4, 4, 3))
    dense = keras.layers.Dense(classes, use_bias=False)
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    dense.set_weights([kernel])
    return model, kernel


def expected_logits(datasets, split, kernel):
    images = (split.images.astype(np.float64) / 255 - datasets.mean) / datasets.std
    return images.reshape(len(split), -1) @ kernel.astype(np.float64)


def statistics(datasets):
    return {"mean": datasets.mean, "std": datasets.std}


@pytest.mark.parametrize("batch_size", [7, 256])
def test_logits_are_of_all_images_in_their_order_and_normalised(monkeypatch, batch_size):
    monkeypatch.setattr(evaluate_module, "_BATCH_SIZE", batch_size)
    datasets, (model, kernel) = make_datasets(3), make_model(3)
    logits = predict_logits(model, datasets.weights, **statistics(datasets))
    assert len(logits) == len(datasets.weights) > 7
    np.testing.assert_allclose(logits, expected_logits(datasets, datasets.weights, kernel), rtol=1e-4, atol=1e-4)


def test_accuracies_and_loss_are_those_of_the_definitions():
    datasets, (model, kernel) = make_datasets(8), make_model(8)
    split = datasets.test
    logits = expected_logits(datasets, split, kernel)
    order = np.argsort(-logits, axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    result = measure(model, split, **statistics(datasets))
    assert result == {
        "images": len(split),
        "top1": np.mean(order[:, 0] == split.labels),
        "top5": np.mean([label in row[:5] for row, label in zip(order, split.labels, strict=True)]),
        "loss": pytest.approx(-np.mean(log_probabilities[np.arange(len(split)), split.labels]), rel=1e-5),
    }
    assert 0 < result["top1"] < result["top5"] < 1
    assert all(type(result[name]) is float for name in ("top1", "top5", "loss"))


@pytest.mark.parametrize(("classes", "has_top5"), [(5, False), (6, True)])
def test_top5_needs_six_classes(classes, has_top5):
    datasets = make_datasets(classes)
    result = measure(make_model(classes)[0], datasets.holdout, **statistics(datasets))
    assert (result["top5"] is not None) is has_top5


def test_the_evaluation_is_written_and_read_back(tmp_path, monkeypatch):
    datasets, (model, _) = make_datasets(8), make_model(8)
    run_dir, lines = RunDir(tmp_path), []
    result = run_evaluate(model, datasets, run_dir, SETTINGS, say=lines.append)
    assert result == {"split": "test", **measure(model, datasets.test, **statistics(datasets))}
    assert list(result) == ["split", "images", "top1", "top5", "loss"]
    assert read_json(tmp_path / "evaluation.json") == result
    assert lines == []
    monkeypatch.setattr(evaluate_module, "measure", None)
    assert run_evaluate(model, datasets, run_dir, SETTINGS, say=lines.append) == result
    assert lines == [f"evaluate: done already ({tmp_path / 'evaluation.json'})"]


@pytest.mark.parametrize("split", ["holdout", "weights", "architecture"])
def test_another_split_is_measured_when_it_is_asked_for(tmp_path, split):
    datasets, (model, _) = make_datasets(8), make_model(8)
    result = run_evaluate(model, datasets, RunDir(tmp_path), SETTINGS, split)
    assert (result["split"], result["images"]) == (split, len(getattr(datasets, split)))
    assert result["images"] != len(datasets.test)


def test_other_weights_or_another_split_are_refused_unless_overwritten(tmp_path):
    datasets, (model, _) = make_datasets(8), make_model(8)
    run_dir = RunDir(tmp_path)
    first = run_evaluate(model, datasets, run_dir, SETTINGS)
    with pytest.raises(RunDirError, match="split='test', now 'holdout'"):
        run_evaluate(model, datasets, run_dir, SETTINGS, "holdout")
    with pytest.raises(RunDirError, match="weights_sha256='abc', now 'def'"):
        run_evaluate(model, datasets, run_dir, {"weights_sha256": "def"})
    assert read_json(tmp_path / "evaluation.json") == first
    second = run_evaluate(model, datasets, run_dir, SETTINGS, "holdout", overwrite=True)
    assert read_json(tmp_path / "evaluation.json") == second != first
