"""Two trained-looking runs and their exports, made once: conversion is what takes the time."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.genotype import Genotype
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.search_space import DARTS_OPERATIONS


def _cell(edges, concat):
    edges = [{"node": node, "predecessor": predecessor, "operation": operation} for node, predecessor, operation in edges]
    return {"edges": edges, "concat": concat}


def _genotype(name, normal, reduction):
    return Genotype.from_dict({"schema_version": 1, "name": name, "normal": normal, "reduction": reduction})


# Every evaluation operation, up to five of them on an edge; at stride 2 those that are built otherwise there
# (tests/conformance/export_test.py has each at either stride).
EVERYTHING = _genotype(
    "everything",
    _cell([(2 + index // 5, index % 2, operation) for index, operation in enumerate(DARTS_OPERATIONS)] + [(3, 2, "none")], [2, 3]),
    _cell([(2, 0, "none"), (2, 1, "skip_connect"), (2, 0, "dil_conv_3x3"), (2, 1, "conv_7x1_1x7"), (2, 0, "max_pool_3x3")], [2]),
)
# Node 2 is not concatenated but feeds node 4; nothing depends on node 3.
PARTIAL = _genotype(
    "partial",
    _cell([(2, 0, "dil_conv_3x3"), (3, 1, "sep_conv_5x5"), (4, 2, "max_pool_3x3"), (4, 2, "skip_connect"), (5, 1, "sep_conv_3x3")], [5, 4]),
    _cell([(2, 0, "avg_pool_3x3"), (2, 1, "dil_conv_5x5"), (3, 0, "sep_conv_3x3"), (4, 2, "skip_connect")], [4]),
)


def _digits():
    from sivdnas_tf.config import DataConfig
    from sivdnas_tf.data.datasets import load_datasets

    return load_datasets(DataConfig(name="digits"), seed=0)


def _colours():
    """Noise whose channels differ in mean and spread: swapped channels or axes change every value."""
    from sivdnas_tf.data.datasets import datasets_from_arrays

    rng = np.random.default_rng(0)
    images = np.clip(rng.normal([60.0, 120.0, 200.0], [10.0, 30.0, 40.0], (120, 8, 8, 3)), 0, 255).astype(np.uint8)
    return datasets_from_arrays("colours", images, np.arange(120) % 3, ("red", "green", "blue"), seed=0, holdout_fraction=0.4)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `run_export` takes. `network` is the deployed network on normalised images, whose weights the run directory holds."""

    config: object
    genotype: object
    datasets: object
    run_dir: RunDir
    network: object

    def export(self, run_dir=None, say=lambda line: None, overwrite=False, **sections):
        """Calls `run_export` with fields of the configuration's sections replaced."""
        from export.pipeline import run_export

        return run_export(replace(self.config, **sections), self.genotype, self.datasets, run_dir or self.run_dir, overwrite, say)

    def copy(self, path):
        """A copy of the run directory, without its export."""
        shutil.copytree(self.run_dir.path, path, ignore=shutil.ignore_patterns("export", "export.json"))
        return RunDir(path)


def _trained(path, genotype, datasets, export):
    from sivdnas_tf.data.datasets import with_name_of
    from sivdnas_tf.models.evaluation_network import evaluation_network
    from sivdnas_tf.training.train import WEIGHTS, train_settings, trained_plan

    config = replace(Config(), train={"channels": 4, "cells": 3}, export={"verification_images": 40, **export})
    keras.utils.set_random_seed(1)  # weights that do not depend on which tests ran before
    network = evaluation_network(genotype, trained_plan(config, genotype, datasets.image_shape, len(datasets.class_names)))
    _unsettle(network, datasets)
    run_dir = RunDir(path)
    run_dir.begin("train", train_settings(with_name_of(config, datasets), genotype))
    run_dir.file("train").mkdir()
    network.save_weights(run_dir.file(WEIGHTS))
    return Trained(config, genotype, datasets, run_dir, network)


def _unsettle(network, datasets):
    """Moves batch-norm's statistics and parameters away from where they start, or an error in folding them would not show."""
    from sivdnas_tf.data.augment import normalise

    images = normalise(datasets.train.images[:64], datasets.mean, datasets.std)
    for _ in range(3):
        network(images, training=True)
    rng = np.random.default_rng(1)
    for variable in network.variables:
        if variable.name in ("gamma", "beta"):
            variable.assign(np.asarray(variable) + rng.normal(0.0, 0.3, variable.shape))


@pytest.fixture(scope="session")
def everything(tmp_path_factory):
    """Grey digits, every operation; preprocessing outside, NHWC. Not yet exported."""
    export = {"preprocessing": "outside", "onnx_layout": "nhwc"}
    return _trained(tmp_path_factory.mktemp("everything"), EVERYTHING, _digits(), export)


@pytest.fixture(scope="session")
def partial(tmp_path_factory):
    """Three channels, partial concatenation; preprocessing inside, NCHW. Not yet exported."""
    export = {"preprocessing": "inside", "onnx_layout": "nchw"}
    return _trained(tmp_path_factory.mktemp("partial"), PARTIAL, _colours(), export)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A finished export, in all formats. Copy its directory to change it."""

    trained: Trained
    manifest: dict
    lines: tuple

    @property
    def directory(self):
        """Of the manifest and what it names."""
        return self.trained.run_dir.file("export")

    def entry(self, artifact_format):
        """The manifest's entry of a format."""
        (entry,) = [entry for entry in self.manifest["artifacts"] if entry["format"] == artifact_format]
        return entry

    def load(self, artifact_format):
        """The artifact in its runtime."""
        from export import runtimes

        entry = self.entry(artifact_format)
        return runtimes.load(artifact_format, self.directory / entry["path"], entry["input"]["layout"])


def _exported(trained):
    lines = []
    manifest = trained.export(say=lines.append)
    assert manifest == read_json(trained.run_dir.file("export/manifest.json"))
    return Exported(trained, manifest, tuple(lines))


@pytest.fixture(scope="session")
def exported_everything(everything):
    """The export of `everything`."""
    return _exported(everything)


@pytest.fixture(scope="session")
def exported_partial(partial):
    """The export of `partial`."""
    return _exported(partial)


@pytest.fixture(params=["everything", "partial"])
def exported(request):
    """Either export."""
    return request.getfixturevalue(f"exported_{request.param}")
