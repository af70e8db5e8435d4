"""configs/imagenet_eval.py from a small tree of images to accuracies: its own settings, but for the size of everything."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from sivdnas_tf.training import train as train_module
from sivdnas_tf.training.loop import Loop

CLASSES, EPOCHS, STEPS = 6, 3, 5  # top-5 needs six classes; the warm-up of 2 epochs ends before the last
PER_CLASS, BATCH = 8, 8


@pytest.fixture(name="tree", scope="module")
def fixture_tree(tmp_path_factory):
    """train/ and val/ as ImageNet's, JPEGs of several sizes and shapes, each class of its own colour."""
    root, generator = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("val", 2)):
        for label in range(CLASSES):
            directory = root / split / f"n{label:08}"
            directory.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (*generator.integers(70, 160, 2), 3)).astype(np.uint8)
                pixels[..., label % 3] += 60 + 60 * (label // 3)
                Image.fromarray(pixels).save(directory / f"{number}.JPEG", quality=90)
    return root


def small(tree, root, *flags):
    """Arguments of `train` with configs/imagenet_eval.py on the tree, in a network of 4 channels at 64 pixels."""
    size = {"data.name": f"folder:{tree}", "data.resolution": 64, "data.holdout_fraction": 0.1, "train.channels": 4, "train.cells": 3}
    size |= {"train.epochs": EPOCHS, "train.warmup_epochs": 2, "train.batch_size": BATCH, "train.learning_rate": 0.1}
    overrides = [f"--config.{name}={value}" for name, value in size.items()]
    return ["train", f"--config={root / 'configs/imagenet_eval.py'}", "--genotype=FairDARTS_b", *overrides, *flags]


def check_run(run):
    """A finished run: records of every epoch, the learning rates of the recipe, and finite losses."""
    records = [json.loads(line) for line in (run / "train/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [STEPS, 2 * STEPS, 3 * STEPS]
    # Linear from 0.1 to 0 over three epochs, halved in the first of two epochs of warm-up.
    assert [record["learning_rate"] for record in records] == pytest.approx([0.05, 0.1 * 2 / 3, 0.1 / 3])
    assert all(np.isfinite(record["loss"]) and 0.0 <= record["holdout_top5"] <= 1.0 for record in records)
    assert all(record["drop_path_rate"] == 0.0 for record in records)
    description = json.loads((run / "train/data.json").read_text())
    assert description["image_shape"] == [64, 64, 3] and description["central_crop"] == 0.875
    assert np.float32(description["mean"]).tolist() == np.float32([0.485, 0.456, 0.406]).tolist()


def test_the_recipe_trains_stops_resumes_and_is_evaluated(call, tree, tmp_path, request, monkeypatch):
    class Interrupting(Loop):
        def _save_if_due(self, received):
            if int(self._step.numpy()) == STEPS + 2:
                os.kill(os.getpid(), signal.SIGTERM)
            super()._save_if_due(received)

    run = tmp_path / "run"
    arguments = [*small(tree, request.config.rootpath), f"--workdir={run}"]
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "Loop", Interrupting)
        code, out, err = call(*arguments)
    assert code == 143 and out.startswith("train 1/3 ") and "the same command continues" in err.splitlines()[-1]
    code, out, err = call(*arguments)
    assert (code, err) == (0, "") and f"train: resuming at step {STEPS + 2}, epoch 2 of 3" in out
    check_run(run)
    code, out, err = call("evaluate", f"--workdir={run}")
    assert (code, err) == (0, "") and out.startswith(f"evaluate: test split, {2 * CLASSES} images: top-1 ") and " top-5 " in out
    result = json.loads((run / "evaluation.json").read_text())
    assert result["top1"] <= result["top5"] <= 1.0


@pytest.mark.slow
def test_the_recipe_trains_on_two_logical_devices(call, tree, tmp_path, request):
    run = tmp_path / "run"
    flags = ["--config.distribution.strategy=mirrored", f"--workdir={run}"]
    code, _, err = call(*small(tree, request.config.rootpath, *flags))
    assert (code, err) == (0, "")
    check_run(run)
