"""`tune` by its command line, on trials that train a tiny cell for moments; slow_tune_test has those that search."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest

from sivdnas_tf import __main__ as command_line
from sivdnas_tf.config import Config
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.run_dir import RunDir, read_json

_CONFIG = """
import ml_collections

from sivdnas_tf.config import Config, replace


def get_config():
    config = replace(
        Config(),
        data={"crop_padding": 1, "flip": False},
        train={"channels": 4, "cells": 3, "epochs": 2, "batch_size": 128, "cutout_length": 0, "auxiliary_weight": 0.0},
        budget={"network": "cifar", "channels": 4, "cells": 3, "classes": 10, "resolution": 8, "image_channels": 1, "macs": 50e3},
        tune={
            "tuner": "grid",
            "genotype": "GENOTYPE",
            "max_trials": 10,
            "space": (
                ("train.learning_rate", "choice", 0.05, 1e38),
                ("train.channels,budget.channels", "int", 4, 8, 4),
            ),
        },
    )
    return ml_collections.ConfigDict(config.to_dict())
"""
# One node a cell: the smallest network with a convolution, a pool and a factorized reduce.
SMALL = Genotype(
    "small",
    Cell((Edge(2, 0, "sep_conv_3x3"), Edge(2, 1, "skip_connect")), (2,)),
    Cell((Edge(2, 0, "max_pool_3x3"), Edge(2, 1, "skip_connect")), (2,)),
)


@pytest.fixture(name="config", scope="module")
def fixture_config(tmp_path_factory):
    directory = tmp_path_factory.mktemp("config")
    (directory / "small.json").write_text(SMALL.to_json(), encoding="utf-8")
    path = directory / "tune.py"
    path.write_text(_CONFIG.replace("GENOTYPE", str(directory / "small.json")), encoding="utf-8")
    return path


def arguments(path, workdir, *overrides):
    return ["tune", f"--config={path}", f"--workdir={workdir}", *overrides]


def trials_of(workdir):
    return [json.loads(line) for line in (workdir / "tune/trials.jsonl").read_text().splitlines()]


@pytest.fixture(name="tuned", scope="module")
def fixture_tuned(config, tmp_path_factory):
    """A grid of trials that end well, are over the budget, or become NaN: the run's directory and what was printed."""
    workdir, output = tmp_path_factory.mktemp("tuned") / "run", io.StringIO()
    with contextlib.redirect_stdout(output):
        assert command_line.main(["sivdnas_tf", *arguments(config, workdir)]) == 0
    return workdir, output.getvalue().splitlines()


def test_a_trial_over_budget_and_one_that_becomes_nan_are_failed_trials(tuned):
    workdir, lines = tuned
    trials = trials_of(workdir)
    assert [one["status"] for one in trials] == ["completed", "over_budget", "not_finite", "over_budget"]
    assert [tuple(one["values"].values()) for one in trials] == [(0.05, 4), (0.05, 8), (1e38, 4), (1e38, 8)]
    assert "costs more than the budget allows" in trials[1]["reason"] and "became" in trials[2]["reason"]
    assert all((one["objective"] is None) is (one["status"] != "completed") for one in trials)
    oracle = [read_json(workdir / f"tune/oracle/trial_{number:02}/trial.json")["status"] for number in range(4)]
    assert oracle == ["COMPLETED", "FAILED", "FAILED", "FAILED"]
    rows = [line.split() for line in lines[1:5]]
    assert lines[0].split() == ["tune:", "trial", "accuracy", "macs", "seconds", "values"]
    assert [row[1:3] for row in rows] == [["0", f"{trials[0]['objective']:.4f}"], ["1", "failed"], ["2", "failed"], ["3", "failed"]]
    assert lines[5].startswith("tune: best trial 0: accuracy ") and len(lines) == 8


def test_a_trial_is_measured_on_images_that_nothing_else_of_it_reads(tuned, config):
    from sivdnas_tf.data.datasets import load_datasets
    from sivdnas_tf.training.evaluate import measure
    from sivdnas_tf.training.train import load_trained
    from sivdnas_tf.tuning.validation import with_validation

    workdir, _ = tuned
    trial = trials_of(workdir)[0]
    trained = Config.from_dict(read_json(workdir / trial["directory"] / "config.json"))
    datasets, validation = with_validation(load_datasets(trained.data, trained.seed), 0.2, trained.seed)
    model = load_trained(trained, SMALL, datasets, RunDir(workdir / trial["directory"]))
    measured = measure(model, validation, mean=datasets.mean, std=datasets.std)
    assert (measured["top1"], measured["loss"]) == pytest.approx((trial["objective"], trial["loss"]))
    assert (trial["macs"], trial["params"]) == (33184, 1318)


def test_a_finished_run_says_so_at_once(tuned, config, call, listing, monkeypatch):
    workdir, _ = tuned
    monkeypatch.setattr("sivdnas_tf.commands.import_tensorflow", lambda: pytest.fail("TensorFlow was asked for"))
    before = listing(workdir)
    code, out, err = call(*arguments(config, workdir))
    assert (code, err) == (0, "") and out == f"tune: done already ({workdir / 'tune/best_config.py'})\n"
    assert call(*arguments(config, workdir, "--config.tune.max_trials=3"))[0] == 0
    assert listing(workdir) == before


def test_other_settings_are_refused_by_name(tuned, config, refusal, listing):
    workdir, _ = tuned
    before = listing(workdir)
    message = refusal(*arguments(config, workdir, "--config.train.epochs=3", "--config.tune.validation_fraction=0.5"))
    assert "train.epochs=2, now 3; tune.validation_fraction=0.2, now 0.5" in message and listing(workdir) == before


def test_the_best_configuration_is_one_that_the_command_line_takes(tuned, config):
    path = tuned[0] / "tune/best_config.py"
    values, _ = command_line._parse("run", command_line.COMMANDS["run"], [f"--config={path}", "--workdir=unused"])
    best = Config.from_dict(values.config.to_dict())
    values, _ = command_line._parse("tune", command_line.COMMANDS["tune"], arguments(config, "unused")[1:])
    base = Config.from_dict(values.config.to_dict())
    assert best == dataclasses.replace(base, tune=Config().tune, train=dataclasses.replace(base.train, learning_rate=0.05))


def test_what_cannot_run_is_refused_before_it_is_on_record(config, refusal, workdir):
    assert "unknown field search.kl. Did you mean" in refusal(
        *arguments(config, workdir, "--config.tune.space=(('search.kl', 'log_float', 0.1, 1.0),)")
    )
    assert "too few images" in refusal(
        *arguments(config, workdir, "--config.tune.validation_fraction=0.9", "--config.data.holdout_fraction=0.9")
    )
    assert "unknown genotype" in refusal(*arguments(config, workdir, "--config.tune.genotype=PDART"))


def test_chief_and_workers_need_all_of_keras_tuners_variables(config, refusal, workdir, monkeypatch):
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    assert "must all be set, or none of them" in refusal(*arguments(config, workdir))


def test_the_validation_split_is_of_the_training_images_alone():
    from sivdnas_tf.data.datasets import load_datasets
    from sivdnas_tf.tuning.validation import with_validation

    whole = load_datasets(Config().data, 0)
    kept, validation = with_validation(whole, 0.2, 0)
    assert kept.test is None and kept.holdout is whole.holdout
    parts = [set(split.ids.tolist()) for split in (kept.weights, kept.architecture, validation)]
    assert sum(map(len, parts)) == len(set.union(*parts)) >= len(whole.train) - 1  # disjoint; of an odd number one is left over
    assert set.union(*parts) <= set(whole.train.ids.tolist())
    assert len(validation) == round(0.2 * len(whole.train)) and len(kept.weights) == len(kept.architecture)
    shares = np.bincount(validation.labels) / np.bincount(whole.train.labels)
    assert shares == pytest.approx(0.2, abs=0.01)  # of each class
    for split in (kept.weights, validation):
        for index in (0, -1):
            source = int(np.flatnonzero(whole.train.ids == split.ids[index])[0])
            np.testing.assert_array_equal(split.images[index], whole.train.images[source])
            assert split.labels[index] == whole.train.labels[source]
    assert not np.array_equal(kept.mean, whole.mean)
    again, other = with_validation(whole, 0.2, 0)[1], with_validation(whole, 0.2, 1)[1]
    np.testing.assert_array_equal(again.ids, validation.ids)
    assert not np.array_equal(other.ids, validation.ids)


def test_a_trial_slower_than_the_latency_budget_is_a_failed_trial(config, call, tmp_path):
    overrides = ("--config.budget.macs=1e9", "--config.tune.max_trials=1")
    code, out, err = call(*arguments(config, tmp_path / "slow", *overrides, "--config.budget.latency_ms=1e-6"))
    (slow,) = trials_of(tmp_path / "slow")
    assert (code, slow["status"]) == (3, "over_budget") and err.count("\n") == 1
    assert out.splitlines()[1].split()[1:3] == ["0", "failed"] and "takes longer than the budget allows" in slow["reason"]
    code, _, err = call(*arguments(config, tmp_path / "quick", *overrides, "--config.budget.latency_ms=1e6"))
    (quick,) = trials_of(tmp_path / "quick")
    assert (code, err, quick["status"]) == (0, "", "completed")
