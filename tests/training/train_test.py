import dataclasses
import json
import math
import os
import resource
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import Config, replace
from sivdnas_tf.data.augment import Augmentation, normalise
from sivdnas_tf.data.datasets import batches
from sivdnas_tf.errors import BudgetError, ConfigError, DataError, Interrupted, NonFiniteError, RunDirError
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.models.evaluation_network import evaluation_network
from sivdnas_tf.profiling.costs import deployed_cost
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.training import loop as loop_module
from sivdnas_tf.training import train as train_module
from sivdnas_tf.training.evaluate import measure, predict_logits
from sivdnas_tf.training.loop import Loop, model_state
from sivdnas_tf.training.train import PAUSED_WEIGHTS, Trainer, load_trained, run_train, train_settings, trained_plan

STEPS = 10
FIELDS = ["epoch", "step", "loss", "accuracy", "holdout_loss", "holdout_accuracy", "holdout_top5", "learning_rate", "drop_path_rate"]
FIELDS += ["seconds", "images_per_second"]

# One node a cell: the smallest network with a convolution, a pool and a factorized reduce.
SMALL = Genotype(
    "small",
    Cell((Edge(2, 0, "sep_conv_3x3"), Edge(2, 1, "skip_connect")), (2,)),
    Cell((Edge(2, 0, "max_pool_3x3"), Edge(2, 1, "skip_connect")), (2,)),
)


@pytest.fixture(name="config", scope="module")
def fixture_config():
    return replace(
        Config(),
        data={"crop_padding": 1, "flip": False},
        train={"channels": 4, "cells": 3, "epochs": 3, "batch_size": 128, "learning_rate": 0.05, "cutout_length": 2}
        | {"checkpoint_choice": "last"},
        budget={"network": "cifar", "channels": 4, "cells": 3, "classes": 10, "resolution": 8, "image_channels": 1},
    )


@pytest.fixture(name="no_training")
def fixture_no_training(monkeypatch):
    def refuse(*_):
        raise AssertionError("a step was begun")

    monkeypatch.setattr(Loop, "_run_epoch", refuse)


@pytest.fixture(name="uninterrupted", scope="module")
def fixture_uninterrupted(config, digits, tmp_path_factory):
    run_dir = RunDir(tmp_path_factory.mktemp("train") / "run")
    run_train(config, SMALL, digits, run_dir, say=lambda line: None)
    return run_dir


def listing(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def count_up(trainer, batch):
    """Stands in for `Trainer.step`: adds 1 to every variable, and learns nothing."""
    for variable in trainer.model.variables:
        variable.assign_add(tf.ones_like(variable))
    return {"loss": tf.reduce_mean(batch[0]), "accuracy": tf.constant(0.5)}


def weights_of(config, digits, run_dir, genotype=SMALL):
    return load_trained(config, genotype, digits, run_dir).get_weights()


def assert_same(weights, others):
    assert len(weights) == len(others) > 10
    for value, other in zip(weights, others, strict=True):
        np.testing.assert_array_equal(value, other)


def test_every_epoch_has_a_record(trained):
    records = RunDir(trained.path).read_metrics("train")
    assert [list(record) for record in records] == [FIELDS] * 2
    assert [(record["epoch"], record["step"]) for record in records] == [(1, STEPS), (2, 2 * STEPS)]
    assert [record["learning_rate"] for record in records] == pytest.approx([0.05, 0.025])
    assert [record["drop_path_rate"] for record in records] == pytest.approx([0.0, 0.3 / 2])
    for record in records:
        assert all(math.isfinite(value) for value in record.values())
        assert record["holdout_accuracy"] <= record["holdout_top5"] <= 1.0
        assert record["images_per_second"] == pytest.approx(STEPS * 128 / record["seconds"], rel=0.01)
    assert records[1]["accuracy"] > 0.15  # chance is 0.1
    epochs = [line for line in trained.lines if line.startswith("train ")]
    assert [line.partition("  ")[0] for line in epochs] == ["train 1/2", "train 2/2"]
    assert all(f"held out: loss {record['holdout_loss']:.3f}" in line for line, record in zip(epochs, records, strict=True))


def test_tensorboard_has_the_scalars(trained, read_events):
    scalars, _ = read_events(trained.path / "train" / "tensorboard")
    assert set(scalars) == {f"train/{name}" for name in FIELDS if name not in ("epoch", "step")}
    records = RunDir(trained.path).read_metrics("train")
    for name in ("loss", "holdout_accuracy", "drop_path_rate"):
        assert scalars[f"train/{name}"] == {record["epoch"]: pytest.approx(record[name], rel=1e-6) for record in records}


def test_the_record_of_the_stage_names_the_genotype(trained):
    genotype = RunDir(trained.path).read_genotype()
    settings = read_json(trained.path / "stages" / "train.json")
    assert settings["genotype_sha256"] == genotype.sha256
    config = Config.from_dict(read_json(trained.path / "config.json"))
    assert settings == json.loads(json.dumps(train_settings(config, genotype)))
    assert set(settings) == {"seed", "deterministic", "data", "train", "genotype_sha256"}


def test_the_best_weights_are_those_of_the_best_held_out_epoch(trained):
    """Measured again: the file's own accuracy and loss on the held-out images are those on record for the best epoch."""
    run_dir = RunDir(trained.path)
    config, digits = Config.from_dict(read_json(run_dir.file("config.json"))), trained.datasets
    records = run_dir.read_metrics("train")
    best = max(record["holdout_accuracy"] for record in records)
    record = [record for record in records if record["holdout_accuracy"] == best][-1]
    model = load_trained(config, run_dir.read_genotype(), digits, run_dir)
    measured = measure(model, digits.holdout, mean=digits.mean, std=digits.std)
    assert (measured["top1"], measured["top5"]) == (best, record["holdout_top5"])
    assert measured["loss"] == pytest.approx(record["holdout_loss"], rel=1e-5)


def test_the_weights_are_of_the_deployed_form_and_give_the_training_forms_logits(uninterrupted, config, digits):
    plan = trained_plan(config, SMALL, digits.image_shape, 10)
    trainer = Trainer(config, SMALL, plan, STEPS, tf.distribute.get_strategy())
    newest = tf.train.latest_checkpoint(uninterrupted.file("train/checkpoints"))
    checkpoint = tf.train.Checkpoint(model=model_state(trainer.model), optimizer=trainer.optimizer)
    checkpoint.restore(newest).assert_existing_objects_matched()
    deployed = load_trained(config, SMALL, digits, uninterrupted)
    extra = {variable.path for variable in trainer.model.variables} - {variable.path for variable in deployed.variables}
    assert extra and all("auxiliary" in path or "drop_path" in path for path in extra)
    for variable in trainer.model.variables:
        if variable.path.endswith("moving_variance"):
            assert np.any(variable.numpy() != 1.0), variable.path
    images = normalise(digits.holdout.images[:32], digits.mean, digits.std)
    logits, auxiliary_logits = trainer.model(images, training=False)
    assert auxiliary_logits.shape == logits.shape == (32, 10)
    np.testing.assert_allclose(deployed(images, training=False), logits, rtol=1e-5, atol=1e-5)
    assert sum(np.size(weight) for weight in deployed.trainable_weights) == deployed_cost(SMALL, config.budget).params


def test_the_test_split_was_not_read(trained):
    with pytest.raises(AssertionError, match="the test split was read"):
        len(trained.datasets.test.images)


@pytest.mark.parametrize(
    ("accuracies", "choice", "kept"),
    [((0.2, 0.9, 0.5), "best", 1), ((0.2, 0.9, 0.5), "last", 2), ((0.5, 0.5, 0.4), "best", 1), ((0.0, 0.0, 0.0), "best", 2)],
)
def test_the_choice_of_a_checkpoint(config, digits, tmp_path, monkeypatch, accuracies, choice, kept):
    """Accuracy decides, the later epoch where it is equal; losses and training metrics say otherwise here and are not asked."""
    measured = []

    def scripted(model, split, **_):
        assert split is digits.holdout
        epoch = len(measured)
        measured.append(model.get_weights())
        return {"images": len(split), "top1": accuracies[epoch], "top5": 1.0, "loss": (1.0, 9.0, 0.1)[epoch]}

    monkeypatch.setattr(train_module, "measure", scripted)
    monkeypatch.setattr(Trainer, "step", count_up)
    config = replace(config, train={"checkpoint_choice": choice})
    run_dir = RunDir(tmp_path)
    run_train(config, SMALL, digits, run_dir, say=lambda line: None)
    assert [record["holdout_accuracy"] for record in run_dir.read_metrics("train")] == list(accuracies)
    assert len(measured) == 3 and not np.array_equal(measured[0][0], measured[1][0])
    assert_same(weights_of(config, digits, run_dir), measured[kept])


def test_a_finished_training_says_so_at_once(uninterrupted, config, digits, no_training, monkeypatch):
    monkeypatch.setattr(train_module, "evaluation_network", None)
    before, lines = listing(uninterrupted.path), []
    run_train(config, SMALL, digits, uninterrupted, say=lines.append)
    assert lines == [f"train: done already ({uninterrupted.file('train/weights.weights.h5')})"]
    assert listing(uninterrupted.path) == before


def test_other_settings_are_refused_by_name_and_change_nothing(uninterrupted, config, digits, no_training):
    before = listing(uninterrupted.path)
    changed = replace(config, train={"learning_rate": 0.1, "auxiliary_weight": 0.0})
    with pytest.raises(RunDirError, match=r"train.learning_rate=0.05, now 0.1; train.auxiliary_weight=0.4, now 0.0"):
        run_train(changed, SMALL, digits, uninterrupted)
    other = dataclasses.replace(SMALL, reduction=SMALL.normal)
    with pytest.raises(RunDirError, match=f"genotype_sha256='{SMALL.sha256}', now '{other.sha256}'"):
        run_train(config, other, digits, uninterrupted)
    assert listing(uninterrupted.path) == before


REFUSED = {
    "over the budget": ({"budget": {"macs": 1.0}}, BudgetError, "more than the budget allows"),
    "batch larger than the split": ({"train": {"batch_size": 2000}}, DataError, "batch_size=2000"),
    "odd channels": ({"train": {"channels": 5}}, ConfigError, "channels=5"),
    "resolution that a stem cannot divide": ({"train": {"network": "imagenet"}}, ConfigError, "resolution"),
    "cutout larger than the image": ({"train": {"cutout_length": 16}}, ConfigError, "cutout_length must be from 0 to 7"),
    "batch that replicas cannot share": (
        {"train": {"batch_size": 33}, "distribution": {"strategy": "mirrored"}},
        ConfigError,
        "train.batch_size must be a multiple of the number of replicas, 2. Received: 33",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_before_it_is_on_record(config, digits, tmp_path, name):
    changes, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        run_train(replace(config, **changes), SMALL, digits, RunDir(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_training_continues_where_it_was(uninterrupted, config, digits, tmp_path, monkeypatch):
    class Interrupting(loop_module.Loop):
        def _save_if_due(self, received):
            if int(self._step.numpy()) == STEPS + 5:
                os.kill(os.getpid(), signal.SIGTERM)
            super()._save_if_due(received)

    run_dir, lines = RunDir(tmp_path), []
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(train_module, "Loop", Interrupting)
        run_train(config, SMALL, digits, run_dir, say=lines.append)
    assert not run_dir.is_done("train")
    run_train(config, SMALL, digits, run_dir, say=lines.append)
    assert sum("train: resuming at step 15, epoch 2 of 3" in line for line in lines) == 1
    # Without deterministic operations the order of sums differs from run to run, and so do the last bits.
    for record, expected in zip(run_dir.read_metrics("train"), uninterrupted.read_metrics("train"), strict=True):
        for name in ("loss", "learning_rate", "drop_path_rate", "step"):
            assert record[name] == pytest.approx(expected[name], rel=1e-2)
    for value, expected in zip(weights_of(config, digits, run_dir), weights_of(config, digits, uninterrupted), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0.05, atol=0.02)


def test_a_training_that_pauses_and_goes_on_ends_as_one_that_does_not(uninterrupted, config, digits, tmp_path):
    run_dir, lines = RunDir(tmp_path / "run"), []
    run_train(config, SMALL, digits, run_dir, say=lines.append, until=1)
    assert not run_dir.is_done("train") and len(run_dir.read_metrics("train")) == 1
    first = load_trained(config, SMALL, digits, run_dir, PAUSED_WEIGHTS).get_weights()
    run_train(config, SMALL, digits, run_dir, say=lines.append, until=1)  # nothing is left to do
    assert_same(load_trained(config, SMALL, digits, run_dir, PAUSED_WEIGHTS).get_weights(), first)
    run_train(config, SMALL, digits, run_dir, say=lines.append, until=3)
    assert [line.split("  ")[0] for line in lines if line.startswith("train ")] == ["train 1/3", "train 2/3", "train 3/3"]
    rates = [record["learning_rate"] for record in run_dir.read_metrics("train")]
    assert rates == [record["learning_rate"] for record in uninterrupted.read_metrics("train")]
    # As of an interrupted training.
    for value, expected in zip(weights_of(config, digits, run_dir), weights_of(config, digits, uninterrupted), strict=True):
        np.testing.assert_allclose(value, expected, rtol=0.05, atol=0.02)


def test_weights_that_cannot_be_read_are_refused(uninterrupted, config, digits, tmp_path):
    shutil.copytree(uninterrupted.path, tmp_path / "run")
    run_dir = RunDir(tmp_path / "run")
    other = dataclasses.replace(SMALL, reduction=SMALL.normal)
    with pytest.raises(RunDirError, match=r"weights\.h5 must hold the weights of the run's network. Received: ") as caught:
        load_trained(config, other, digits, run_dir)
    assert "\n" not in str(caught.value)
    path = run_dir.file("train/weights.weights.h5")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RunDirError, match=r"must hold the weights of the run's network. Received: .*truncated file"):
        load_trained(config, SMALL, digits, run_dir)


def test_weights_on_a_full_disk_are_an_ordinary_error_and_leave_the_old_file(uninterrupted, config, digits, tmp_path):
    model, path = load_trained(config, SMALL, digits, uninterrupted), tmp_path / "weights.weights.h5"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(OSError, match="File too large"):
            train_module._save_weights(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_loss_that_is_not_finite_ends_the_training(config, digits, tmp_path):
    wild = replace(config, train={"learning_rate": 1e30, "gradient_clip_norm": 0.0})
    with pytest.raises(NonFiniteError, match=r"train: loss became (nan|inf) at step \d+ \(epoch 1\).*smaller train.learning_rate"):
        run_train(wild, SMALL, digits, RunDir(tmp_path), say=lambda line: None)
    assert not RunDir(tmp_path).is_done("train")


def test_without_auxiliary_head_and_drop_path(config, digits):
    plain = replace(config, train={"auxiliary_weight": 0.0, "drop_path_rate": 0.0})
    plan = trained_plan(plain, SMALL, digits.image_shape, 10)
    trainer = Trainer(plain, SMALL, plan, STEPS, tf.distribute.get_strategy())
    deployed = evaluation_network(SMALL, plan)
    assert [variable.path for variable in trainer.model.variables] == [variable.path for variable in deployed.variables]
    trainer.set_drop_path(rate=0.0, step=3)  # nothing to assign, and no error
    before = trainer.model.get_weights()
    images, labels = normalise(digits.weights.images[:16], digits.mean, digits.std), digits.weights.labels[:16]
    metrics = trainer.step((images, tf.constant(labels)))
    assert math.isfinite(metrics["loss"]) and 0 <= metrics["accuracy"] <= 1
    assert int(trainer.optimizer.iterations) == 1
    assert sum(not np.array_equal(old, new) for old, new in zip(before, trainer.model.get_weights(), strict=True)) > 20


def test_a_step_is_sgd_on_the_training_loss(config, digits):
    """Cross-entropy with smoothed labels plus the auxiliary head's; gradient clipped, then decayed; the first step has no momentum."""
    settings = {"label_smoothing": 0.1, "drop_path_rate": 0.0, "weight_decay": 0.25, "gradient_clip_norm": 0.5, "learning_rate": 0.125}
    config = replace(config, train=settings)
    trainer = Trainer(config, SMALL, trained_plan(config, SMALL, digits.image_shape, 10), STEPS, tf.distribute.get_strategy())
    images, labels = normalise(digits.weights.images[:32], digits.mean, digits.std), tf.constant(digits.weights.labels[:32])
    variables = trainer.model.trainable_variables
    with tf.GradientTape() as tape:
        logits, auxiliary_logits = trainer.model(images, training=True)
        main, auxiliary = (
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)(tf.one_hot(labels, 10), values)
            for values in (logits, auxiliary_logits)
        )
        loss = main + 0.4 * auxiliary
    gradients, norm = tf.clip_by_global_norm(tape.gradient(loss, [variable.value for variable in variables]), 0.5)
    assert norm > 0.5
    expected = [(variable - 0.125 * (gradient + 0.25 * variable)).numpy() for variable, gradient in zip(variables, gradients, strict=True)]
    metrics = trainer.step((images, labels))
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["accuracy"]) == np.mean(np.argmax(logits, axis=1) == labels)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-3, atol=1e-5)


@pytest.fixture(name="plain", scope="module")
def fixture_plain(config, digits, tmp_path_factory):
    """A short training in float32: its configuration and its only record."""
    run_dir, config = RunDir(tmp_path_factory.mktemp("plain")), replace(config, train={"epochs": 1, "learning_rate": 0.01})
    run_train(config, SMALL, digits, run_dir, say=lambda line: None)
    (record,) = run_dir.read_metrics("train")
    return config, record


@pytest.mark.parametrize(
    "changes",
    [{"precision": "mixed_bfloat16"}, {"precision": "mixed_float16"}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)],
)
def test_precision_and_xla_train_nearly_alike(plain, digits, tmp_path, changes):
    (config, expected), run_dir = plain, RunDir(tmp_path)
    other = replace(config, train=changes)
    run_train(other, SMALL, digits, run_dir, say=lambda line: None)
    (record,) = run_dir.read_metrics("train")
    for name in ("loss", "holdout_loss"):
        assert record[name] == pytest.approx(expected[name], rel=0.05)
    model = load_trained(other, SMALL, digits, run_dir)
    assert model.compute_dtype == "float32"
    if "precision" in changes:  # it is another arithmetic
        assert record["loss"] != pytest.approx(expected["loss"], rel=1e-6)


def test_a_run_gives_its_steps_the_weights_of_its_classes(config, digits, tmp_path, monkeypatch):
    class Captured(Exception):
        pass

    class Capturing(Trainer):
        def __init__(self, *arguments):
            raise Captured(arguments[-1])

    monkeypatch.setattr(train_module, "Trainer", Capturing)
    for kind in ("none", "balanced"):
        with pytest.raises(Captured) as caught:
            run_train(replace(config, data={"class_weights": kind}), SMALL, digits, RunDir(tmp_path / kind))
        (weights,) = caught.value.args
        if kind == "none":
            assert weights is None
    counts = np.bincount(digits.train.labels)
    np.testing.assert_allclose(weights, counts.sum() / (10 * counts), rtol=1e-6)


def test_a_step_weighs_the_examples_of_each_class(config, digits):
    config = replace(config, train={"drop_path_rate": 0.0})
    images, labels = normalise(digits.weights.images[:32], digits.mean, digits.std), tf.constant(digits.weights.labels[:32])
    losses = []
    for factor in (1.0, 4.0):
        weights = np.full(10, factor, np.float32)
        plan = trained_plan(config, SMALL, digits.image_shape, 10)
        keras.utils.set_random_seed(0)
        trainer = Trainer(config, SMALL, plan, STEPS, tf.distribute.get_strategy(), weights)
        losses.append(float(trainer.step((images, labels))["loss"]))
    assert losses[1] == pytest.approx(4 * losses[0], rel=1e-5)


def test_an_epoch_is_augmented_batches_of_all_training_images(config, digits, tmp_path, monkeypatch):
    class Captured(Exception):
        pass

    class Capturing(Loop):
        def run(self, until=None):
            raise Captured(self.plan)

    monkeypatch.setattr(train_module, "Loop", Capturing)
    with pytest.raises(Captured) as caught:
        run_train(replace(config, seed=7), SMALL, digits, RunDir(tmp_path))
    (plan,) = caught.value.args
    assert (plan.steps_per_epoch, plan.batch_size) == (len(digits.train) // 128, 128)
    augmentation = Augmentation(crop_padding=1, flip=False, cutout_length=2)
    options = {"mean": digits.mean, "std": digits.std, "seed": 7, "epoch": 2, "skip_batches": 8, "augmentation": augmentation}
    expected = list(batches(digits.train, 128, **options).as_numpy_iterator())
    actual = list(plan.batches(2, 8).as_numpy_iterator())
    assert len(actual) == len(expected) == 2
    for (images, labels), (other_images, other_labels) in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def test_the_seed_and_the_drop_path_of_a_training(config, digits, tmp_path, monkeypatch):
    """The seed gives the initial weights; the rate is set before an epoch, the step that keys the masks before every step."""
    calls, first = [], {}
    set_drop_path = Trainer.set_drop_path

    def record(trainer, **given):
        calls.append(given)
        set_drop_path(trainer, **given)

    def scripted(model, split, **_):
        first.setdefault(name, model.get_weights()[0])
        return {"images": len(split), "top1": 0.5, "top5": 1.0, "loss": 1.0}

    monkeypatch.setattr(Trainer, "set_drop_path", record)
    monkeypatch.setattr(Trainer, "step", count_up)
    monkeypatch.setattr(train_module, "measure", scripted)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        run_train(replace(config, seed=seed, train={"epochs": 2}), SMALL, digits, RunDir(tmp_path / name), say=lambda line: None)
    np.testing.assert_array_equal(first["one"], first["again"])
    assert not np.array_equal(first["one"], first["other"])
    epochs = [[{"rate": pytest.approx(rate)}, *({"step": start + step} for step in range(STEPS))] for rate, start in ((0.0, 0), (0.15, 10))]
    assert calls == 3 * [call for epoch in epochs for call in epoch]


def test_drop_path_follows_the_schedule_and_the_step(config):
    trainer = Trainer(config, SMALL, trained_plan(config, SMALL, (8, 8, 1), 10), STEPS, tf.distribute.get_strategy())
    images = tf.random.stateless_normal([4, 8, 8, 1], seed=(0, 0))
    outputs = {}
    for name, rate, step in (("off", 0.0, 1), ("first", 0.9, 1), ("again", 0.9, 1), ("next", 0.9, 2)):
        trainer.set_drop_path(rate=rate)
        trainer.set_drop_path(step=step)
        outputs[name] = trainer.model(images, training=True)[0].numpy()
    np.testing.assert_array_equal(outputs["first"], outputs["again"])
    assert not np.allclose(outputs["first"], outputs["next"]) and not np.allclose(outputs["off"], outputs["first"])


@pytest.mark.slow
def test_training_on_two_replicas(config, digits, tmp_path):
    """Batch-norm and gradients over both replicas: with nothing random in it, two devices learn what one does."""
    config = replace(config, train={"epochs": 1, "drop_path_rate": 0.0, "batch_size": 512})
    other = dataclasses.replace(SMALL, normal=SMALL.reduction)  # first, with collective operations of other shapes
    models, losses = [], []
    for number, (strategy, genotype) in enumerate((("mirrored", other), ("none", SMALL), ("mirrored", SMALL))):
        run_dir = RunDir(tmp_path / str(number))
        run_train(replace(config, distribution={"strategy": strategy}), genotype, digits, run_dir, say=lambda line: None)
        models.append(load_trained(config, genotype, digits, run_dir))
        losses.append(run_dir.read_metrics("train")[0]["loss"])
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)
    one, two = (predict_logits(model, digits.holdout, mean=digits.mean, std=digits.std) for model in models[1:])
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)
