"""Every exported format against Keras, both gates, and the verification that can be repeated from the manifest."""

import dataclasses
import json

import numpy as np
import pytest

from export import pipeline, runtimes, verify
from export.freeze import freeze
from sivdnas_tf.config import Config, replace
from sivdnas_tf.data.datasets import load_datasets
from sivdnas_tf.errors import AgreementError, BudgetError, RunDirError
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.models.evaluation_network import evaluation_network
from sivdnas_tf.profiling.costs import network_cost
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.search_space import EVALUATION_OPERATIONS
from sivdnas_tf.training.train import trained_plan

# Every operation that evaluation knows, several on one edge, and a concatenation of a part of the nodes.
GENOTYPE = Genotype(
    "everything",
    Cell(tuple(Edge(2 + i % 2, i % 2, name) for i, name in enumerate(EVALUATION_OPERATIONS)), (3, 2)),
    Cell(tuple(Edge(2, i % 2, name) for i, name in enumerate(EVALUATION_OPERATIONS)), (2,)),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory with a "trained" network whose batch-norm statistics are far from their initial values."""
    config = replace(
        Config(),
        data={"crop_padding": 0, "flip": False},
        train={"channels": 4, "cells": 3, "cutout_length": 0},
        export={"verification_images": 24},
    )
    datasets = load_datasets(config.data, config.seed)
    run_dir = RunDir(tmp_path_factory.mktemp("run"))
    model = evaluation_network(GENOTYPE, trained_plan(config, GENOTYPE, datasets.image_shape, 10))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "norm" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    run_dir.file("train").mkdir()
    model.save_weights(run_dir.file("train/weights.weights.h5"))
    return config, datasets, run_dir


@pytest.fixture(scope="module")
def exported(trained):
    config, datasets, run_dir = trained
    lines = []
    manifest = pipeline.run_export(config, GENOTYPE, datasets, run_dir, say=lines.append)
    return config, datasets, run_dir, manifest, lines


def test_every_format_agrees_and_is_listed(exported):
    _, _, run_dir, manifest, lines = exported
    assert [entry["format"] for entry in manifest["artifacts"]] == ["saved_model", "onnx", "tflite"]
    assert len(lines) == 3
    for entry in manifest["artifacts"]:
        assert entry["max_abs_diff"] < 1e-4
        assert entry["top1_agreement"] == 1.0
        assert verify.digest(run_dir.file("export") / entry["path"]) == (entry["bytes"], entry["sha256"])
    assert json.loads(run_dir.file("export/manifest.json").read_text()) == manifest
    assert Genotype.from_dict(manifest["model"]["genotype"]) == GENOTYPE


def test_the_manifest_prices_the_written_model(exported):
    _, _, _, manifest, _ = exported
    cost = network_cost(GENOTYPE, network="cifar", channels=4, cells=3, classes=10, resolution=8, image_channels=1)
    assert {key: manifest["model"][key] for key in ("params", "macs", "macs_ptflops")} == dataclasses.asdict(cost)


def test_a_second_export_says_done(trained, exported):
    config, datasets, run_dir = trained
    lines = []
    assert pipeline.run_export(config, GENOTYPE, datasets, run_dir, say=lines.append) == exported[3]
    assert lines and lines[0].startswith("export: done already")


@pytest.mark.parametrize("name", runtimes.FORMATS)
def test_preprocessing_inside_takes_pixel_values_of_any_batch(exported, name):
    config, datasets, run_dir, manifest, _ = exported
    path = next(entry["path"] for entry in manifest["artifacts"] if entry["format"] == name)
    images = datasets.test.images[:3].astype(np.float32)
    outside = freeze(replace(config, export={"preprocessing": "outside"}), GENOTYPE, datasets, run_dir)
    normalised = (images / 255 - datasets.mean) / datasets.std
    run = runtimes.load(name, run_dir.file("export") / path)
    np.testing.assert_allclose(run(images), outside.predict(normalised, verbose=0), atol=1e-3)
    np.testing.assert_allclose(run(images[:1]), run(images)[:1], atol=1e-4)


def test_outside_and_nchw(trained, tmp_path):
    config, datasets, run_dir = trained
    other = RunDir(tmp_path)
    other.file("train").mkdir()
    other.file("train/weights.weights.h5").write_bytes(run_dir.file("train/weights.weights.h5").read_bytes())
    config = replace(config, export={"preprocessing": "outside", "onnx_layout": "nchw", "formats": ["onnx"]})
    manifest = pipeline.run_export(config, GENOTYPE, datasets, other)
    assert manifest["artifacts"][0]["input"]["shape"] == [None, 1, 8, 8]
    assert manifest["model"]["preprocessing"]["mode"] == "outside"
    assert not other.file("export/saved_model").exists()


def test_over_the_budget_nothing_is_written(trained, tmp_path):
    config, datasets, _ = trained
    with pytest.raises(BudgetError, match="the exported network costs more than the budget allows") as caught:
        pipeline.run_export(replace(config, budget={"macs": 1000}), GENOTYPE, datasets, RunDir(tmp_path))
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_does_not_agree_leaves_no_export(trained, tmp_path):
    config, datasets, run_dir = trained
    other = RunDir(tmp_path)
    other.file("train").mkdir()
    other.file("train/weights.weights.h5").write_bytes(run_dir.file("train/weights.weights.h5").read_bytes())
    with pytest.raises(AgreementError, match="max_abs_diff=") as caught:
        pipeline.run_export(replace(config, export={"max_abs_diff": 1e-30, "formats": ["tflite"]}), GENOTYPE, datasets, other)
    assert caught.value.exit_code == 4
    assert not other.file("export").exists()
    assert not list(tmp_path.glob(".export-*"))


def test_a_logit_that_is_not_finite_never_agrees():
    result = verify.compare(lambda images: np.full((len(images), 2), np.nan, np.float32), np.zeros((2, 1, 1, 1)), np.ones((2, 2)))
    with pytest.raises(AgreementError, match="not finite"):
        verify.check_agreement("x", result, 1.0, 0.0)


def test_equal_logits_count_as_the_same_class():
    logits = np.array([[1.0, 1.0, 0.0]])
    result = verify.compare(lambda images: np.array([[0.9, 1.1, 0.0]])[: len(images)], np.zeros((1, 1, 1, 1)), logits)
    assert result["top1_agreement"] == 1.0


def test_verification_repeats_from_the_manifest_and_sees_a_flipped_byte(exported):
    _, _, run_dir, manifest, _ = exported
    path = run_dir.file("export/manifest.json")
    assert len(verify.verify_manifest(path, say=lambda line: None)) == 3
    artifact = run_dir.file("export/model.onnx")
    content = artifact.read_bytes()
    artifact.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AgreementError, match="has changed since it was exported"):
        verify.verify_manifest(path, say=lambda line: None)
    artifact.unlink()
    with pytest.raises(RunDirError, match="missing"):
        verify.verify_manifest(path, say=lambda line: None)
    artifact.write_bytes(content)
    manifest = json.loads(path.read_text())
    manifest["artifacts"][0]["path"] = "../../outside"
    other = path.with_name("other.json")
    other.write_text(json.dumps(manifest))
    with pytest.raises(RunDirError, match="outside its directory"):
        verify.verify_manifest(other, say=lambda line: None)
    other.write_text("{}")
    with pytest.raises(RunDirError, match="not a manifest"):
        verify.verify_manifest(other, say=lambda line: None)
