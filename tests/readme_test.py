"""The README's Python runs as it stands there."""

import pathlib
import re

import numpy as np
import tensorflow as tf

from sivdnas_tf import search_space
from sivdnas_tf.config import Config, replace
from sivdnas_tf.genotype import Genotype
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.training.search import run_search

README = pathlib.Path(__file__).parents[1] / "README.md"


def small(monkeypatch):
    """A configuration and a space in which a search takes seconds."""
    space = search_space.SearchSpace("darts", ("max_pool_3x3", "skip_connect", "sep_conv_3x3"), n_nodes=2)
    monkeypatch.setitem(search_space.SEARCH_SPACES, "darts", space)
    search = {"channels": 2, "cells": 3, "epochs": 1, "warmup_epochs": 0, "batch_size": 16}
    return replace(Config(), data={"crop_padding": 1, "resolution": 8}, search=search, budget={"macs": 1e12})


def pictures():
    images = np.random.default_rng(0).integers(0, 256, (90, 5, 7, 3)).astype(np.uint8)
    return tf.data.Dataset.from_tensor_slices((images, np.arange(90) % 3))


def test_six_lines_of_python(monkeypatch, tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(block.split("\n\n")) == 2 and len(block.splitlines()) == 7  # six lines and an empty one
    monkeypatch.chdir(tmp_path)
    names = {"config": small(monkeypatch), "dataset": pictures()}
    exec(block.replace("resolution=32", "resolution=8"), names)
    assert isinstance(names["genotype"], Genotype) and names["datasets"].class_names == ("cat", "dog", "fish")
    run_dir = RunDir("runs/pets-search")
    assert run_dir.is_done("search")
    assert read_json(run_dir.file("stages/search.json"))["data"]["name"] == "pets"  # not the name that the configuration has


def test_a_dataset_alone_leaves_nothing_but_its_posterior(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lines = []
    posterior = run_search(small(monkeypatch), pictures(), say=lines.append)
    assert posterior.epoch == 1 and any(line.startswith("search 1/1") for line in lines)
    assert not list(tmp_path.glob("sivdnas*"))  # TensorFlow keeps traced sources there
