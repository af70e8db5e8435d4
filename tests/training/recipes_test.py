"""What a training can be asked for beside the usual: linear rates with a warm-up, decay of kernels alone, an average of the weights."""

import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import Config, replace
from sivdnas_tf.data.augment import normalise
from sivdnas_tf.data.datasets import datasets_from_arrays
from sivdnas_tf.errors import Interrupted
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.models.evaluation_network import evaluation_network
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.training import loop as loop_module
from sivdnas_tf.training import train as train_module
from sivdnas_tf.training.train import Trainer, load_trained, run_train, trained_plan

STEPS, EPOCHS = 3, 3
SMALL = Genotype(
    "small",
    Cell((Edge(2, 0, "sep_conv_3x3"), Edge(2, 1, "skip_connect")), (2,)),
    Cell((Edge(2, 0, "max_pool_3x3"), Edge(2, 1, "skip_connect")), (2,)),
)
CONFIG = replace(
    Config(),
    data={"crop_padding": 0, "flip": False},
    train={"channels": 2, "cells": 3, "epochs": EPOCHS, "batch_size": 32, "cutout_length": 0, "checkpoint_choice": "last"}
    | {"learning_rate": 0.5, "schedule": "linear", "warmup_epochs": 2, "drop_path_rate": 0.0},
    budget={"network": "cifar", "channels": 2, "cells": 3, "classes": 6, "resolution": 8, "image_channels": 1},
)
RATES = [0.25, 0.5 * 2 / 3, 0.5 / 3]  # 0.5 * (1 - e / 3), the first times 1 / 2


@pytest.fixture(name="images", scope="module")
def fixture_images():
    """Noise of 6 classes: 128 images, of which 96 are trained on, in 3 steps."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (128, 8, 8, 1)).astype(np.uint8)
    found = datasets_from_arrays("noise", pixels, np.arange(128) % 6, tuple("abcdef"), seed=0, test_fraction=0.1, holdout_fraction=0.1)
    assert len(found.train) // 32 == STEPS
    return found


def trainer(images, **train):
    """A `Trainer` in eager execution, always with the same initial weights."""
    config = replace(CONFIG, train=train)
    keras.utils.set_random_seed(0)
    return Trainer(config, SMALL, trained_plan(config, SMALL, images.image_shape, 6), STEPS, tf.distribute.get_strategy())


def batch(images):
    return normalise(images.weights.images[:16], images.mean, images.std), tf.constant(images.weights.labels[:16])


def deployed_values(config, images, network_trainer):
    deployed = evaluation_network(SMALL, trained_plan(config, SMALL, images.image_shape, 6))
    network_trainer.copy_to(deployed)
    return {variable.path: variable.numpy() for variable in deployed.variables}


def test_decay_of_kernels_leaves_batch_norm_and_biases_alone(images):
    """In the first step, the same gradient with another decay moves what decays by learning rate * decay * value more."""
    found = {}
    for name, options in {
        "none": {"weight_decay": 0.0},
        "all": {"weight_decay": 0.1},
        "kernels": {"weight_decay": 0.1, "weight_decay_on": "kernels"},
    }.items():
        made = trainer(images, **options)
        before = {variable.path: variable.numpy() for variable in made.model.trainable_variables}
        made.step(batch(images))
        found[name] = {variable.path: (before[variable.path], variable.numpy()) for variable in made.model.trainable_variables}
    kinds = {path.rpartition("/")[2] for path in found["none"]}
    assert kinds == {"kernel", "gamma", "beta", "bias"}
    for path, (before, plain) in found["none"].items():
        for name in ("all", "kernels"):
            decayed = name == "all" or path.endswith("/kernel")
            expected = plain - 0.25 * 0.1 * before if decayed else plain
            np.testing.assert_allclose(found[name][path][1], expected, rtol=1e-4, atol=2e-6, err_msg=f"{name} {path}")
        if path.endswith(("/kernel", "/gamma")):  # betas and biases start at 0 or nearly so
            assert not np.allclose(plain, plain - 0.25 * 0.1 * before, rtol=1e-4, atol=2e-6)


def test_the_average_is_of_weights_and_statistics_and_is_what_is_deployed(images):
    decay, made = 0.15, trainer(images, ema_decay=0.15)
    config = replace(CONFIG, train={"ema_decay": decay})
    expected = deployed_values(config, images, made)  # before any step the average is the start
    for step in range(3):
        made.step(batch(images))
        rate = min(decay, (1 + step) / (10 + step))
        now = {variable.path: variable.numpy() for variable in made.model.variables}
        expected = {path: rate * value + (1 - rate) * now[path] for path, value in expected.items()}
    found = deployed_values(config, images, made)
    assert any(path.endswith("moving_variance") for path in found)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    assert sum(not np.allclose(found[path], now[path], rtol=1e-4) for path in found) > 10
    averaged = len(made.state["average"]) - 1
    assert averaged == len(found) < len(made.model.variables)  # the auxiliary head has no part in it


def test_without_an_average_the_weights_themselves_are_deployed(images):
    made = trainer(images)
    assert set(made.state) == {"model", "optimizer"}
    made.step(batch(images))
    values = {variable.path: variable.numpy() for variable in made.model.variables}
    for path, value in deployed_values(CONFIG, images, made).items():
        np.testing.assert_array_equal(value, values[path])


def count_up(self, batch):
    """Stands in for `Trainer.step`: adds 1 to every variable, which repeats bit for bit, and averages."""
    for variable in self.model.variables:
        variable.assign_add(tf.ones_like(variable))
    self._average.update()
    return {"loss": tf.reduce_mean(batch[0]), "accuracy": tf.constant(0.5)}


def counted(images, run_dir, monkeypatch, interrupt_at=None):
    """Trains by `count_up`; returns what the held-out images measured an epoch and what was kept, one array each."""

    class Interrupting(loop_module.Loop):
        def _save_if_due(self, received):
            if int(self._step.numpy()) == interrupt_at:
                os.kill(os.getpid(), signal.SIGTERM)
            super()._save_if_due(received)

    def scripted(model, split, **_):
        measured.append(model.get_weights()[0].copy())
        return {"images": len(split), "top1": 0.5, "top5": 0.9, "loss": 1.0}

    measured, config = [], replace(CONFIG, train={"ema_decay": 0.9})
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "Loop", Interrupting)
        patch.setattr(train_module, "measure", scripted)
        patch.setattr(Trainer, "step", count_up)
        try:
            run_train(config, SMALL, images, run_dir, say=lambda line: None)
        except Interrupted:
            return measured, None
    return measured, load_trained(config, SMALL, images, run_dir).get_weights()[0]


def test_a_run_measures_and_keeps_the_average_and_resumes_it_bit_for_bit(images, tmp_path, monkeypatch):
    measured, kept = counted(images, RunDir(tmp_path / "whole"), monkeypatch)
    offset, offsets = 0.0, []
    for step in range(EPOCHS * STEPS):
        rate = (1 + step) / (10 + step)  # below 0.9 throughout
        offset = rate * offset + (1 - rate) * (step + 1)
        offsets.append(offset)
    grown = [float(np.mean(weights - measured[0])) for weights in measured]
    assert grown == pytest.approx([offsets[STEPS * epoch + STEPS - 1] - offsets[STEPS - 1] for epoch in range(EPOCHS)], abs=1e-4)
    np.testing.assert_array_equal(kept, measured[-1])
    interrupted = RunDir(tmp_path / "interrupted")
    begun, nothing = counted(images, interrupted, monkeypatch, interrupt_at=STEPS + 1)
    assert nothing is None and len(begun) == 1
    resumed, kept_then = counted(images, interrupted, monkeypatch)
    np.testing.assert_array_equal([*begun, *resumed], measured)
    np.testing.assert_array_equal(kept_then, kept)


def every_option(images, path, strategy="none", precision="float32"):
    """The records and the kept weights of a training with all of them."""
    options = {"weight_decay_on": "kernels", "weight_decay": 0.01, "ema_decay": 0.5, "learning_rate": 0.02, "precision": precision}
    config, run_dir = replace(CONFIG, train=options, distribution={"strategy": strategy}), RunDir(path)
    run_train(config, SMALL, images, run_dir, say=lambda line: None)
    return run_dir.read_metrics("train"), load_trained(config, SMALL, images, run_dir).get_weights()


@pytest.fixture(name="one_device", scope="module")
def fixture_one_device(images, tmp_path_factory):
    return every_option(images, tmp_path_factory.mktemp("one_device"))


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [
        ("none", "mixed_float16"),
        pytest.param("mirrored", "float32", marks=pytest.mark.slow),
        pytest.param("mirrored", "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_every_option_at_once_on_two_replicas_and_in_half_precision(images, one_device, tmp_path, strategy, precision):
    records, weights = every_option(images, tmp_path, strategy, precision)
    tolerance = 1e-3 if precision == "float32" else 0.05
    for record, expected, rate in zip(records, one_device[0], RATES, strict=True):
        assert record["learning_rate"] == expected["learning_rate"] == pytest.approx(0.04 * rate)
        for name in ("loss", "holdout_loss"):
            assert record[name] == pytest.approx(expected[name], rel=tolerance)
    for value, expected in zip(weights, one_device[1], strict=True):
        np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


def test_top5_is_null_below_six_classes(images, tmp_path, monkeypatch):
    def scripted(model, split, **_):
        return {"images": len(split), "top1": 0.5, "top5": None, "loss": 1.0}

    monkeypatch.setattr(train_module, "measure", scripted)
    monkeypatch.setattr(Trainer, "step", count_up)
    run_dir = RunDir(tmp_path)
    run_train(replace(CONFIG, train={"ema_decay": 0.5}), SMALL, images, run_dir, say=lambda line: None)
    assert [record["holdout_top5"] for record in run_dir.read_metrics("train")] == [None] * EPOCHS
