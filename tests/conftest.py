"""Two logical CPUs for the distribution tests, quiet start-up, and what tests share."""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import shutil

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def pytest_configure(config):
    """Splits the CPU before anything initialises TensorFlow: strategies are tested on two devices without a GPU."""
    del config
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in this hook
def pytest_collection_modifyitems(items):
    """Gives a process whole files (`--dist=loadgroup`), and one process all files that need the finished run, which takes a minute."""
    needs_run = {item.path for item in items if not {"searched", "trained"}.isdisjoint(item.fixturenames)}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("run" if item.path in needs_run else item.path.name))


@pytest.fixture(scope="session")
def read_events():
    """A function of a TensorBoard directory to its scalars and histograms: `{tag: {step: value}}` each."""
    import tensorflow as tf
    from tensorboard.compat.proto import event_pb2

    def read(directory):
        found = {"scalars": {}, "histograms": {}}
        for path in sorted(directory.glob("events.out.tfevents.*")):
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = event_pb2.Event.FromString(record)
                for value in event.summary.value:
                    found[value.metadata.plugin_data.plugin_name].setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
        return found["scalars"], found["histograms"]

    return read


@pytest.fixture(scope="session")
def make_folder():
    """A function that writes `{class name: number of images}` below a directory, PNG of many sizes, each class of its own colour."""
    import numpy as np
    from PIL import Image

    def make(root, classes):
        rng = np.random.default_rng(0)
        for label, (name, count) in enumerate(classes.items()):
            (root / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 80, (*rng.integers(8, 20, 2), 3)).astype(np.uint8)
                pixels[..., label % 3] += 150
                Image.fromarray(pixels).save(root / name / f"{number:03}.png")
        return root

    return make


_TINY_CONFIG = """
import ml_collections

from sivdnas_tf.config import Config, replace


def get_config():
    config = replace(
        Config(),
        data={"crop_padding": 1, "flip": False},
        search={"channels": 4, "cells": 3, "epochs": 3, "warmup_epochs": 1, "batch_size": 128, "prior_gap_decay": 0.5,
                "architecture_learning_rate": 0.3, "kl_weight": 0.05},
        train={"channels": 4, "cells": 3, "epochs": 2, "batch_size": 128, "learning_rate": 0.05, "cutout_length": 2},
        budget={"network": "cifar", "channels": 4, "cells": 3, "classes": 10, "resolution": 8, "image_channels": 1, "macs": 160e3},
    )
    return ml_collections.ConfigDict(config.to_dict())
"""


class Untouchable:
    """Stands in for a split that must not be read."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test split was read: {name}")

    def __len__(self):
        raise AssertionError("the test split was counted")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, what the command that made it printed, and the images that it was given."""

    path: pathlib.Path
    lines: tuple
    datasets: object

    def copy(self, path):
        """A copy that a test may damage."""
        shutil.copytree(self.path, path)
        return path


@pytest.fixture(scope="session")
def digits():
    """The digits with a test split that fails when it is touched."""
    from sivdnas_tf.config import Config
    from sivdnas_tf.data.datasets import load_datasets

    return dataclasses.replace(load_datasets(Config().data, 0), test=Untouchable())


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """Path of a configuration file of size one."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(_TINY_CONFIG, encoding="utf-8")
    return path


@contextlib.contextmanager
def _without_test_split():
    """The digits, with a test split that fails when it is touched, for every command in the block."""
    from sivdnas_tf import commands
    from sivdnas_tf.data import datasets

    load, made = datasets.load_datasets, []

    def guarded(*arguments):
        made.append(dataclasses.replace(load(*arguments), test=Untouchable()))
        return made[-1]

    commands._datasets_of.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_datasets", guarded)
        yield made
    commands._datasets_of.cache_clear()


def _main(*arguments):
    """Runs a command that must succeed; returns the lines that it printed."""
    from sivdnas_tf.__main__ import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(["sivdnas_tf", *map(str, arguments)]) == 0
    return tuple(output.getvalue().splitlines())


@pytest.fixture(scope="session")
def searched(tmp_path_factory, tiny_config):
    """A finished search, made by the command line with a test split that must not be read. Copy it to change it."""
    path = tmp_path_factory.mktemp("searched") / "run"
    with _without_test_split() as made:
        lines = _main("search", f"--config={tiny_config}", f"--workdir={path}")
    return Run(path, lines, made[-1])


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_config, searched):
    """The same run after `derive` and `train`, again without a test split. Copy it to change it."""
    path = searched.copy(tmp_path_factory.mktemp("trained") / "run")
    with _without_test_split() as made:
        lines = _main("derive", f"--workdir={path}") + _main("train", f"--config={tiny_config}", f"--workdir={path}")
    return Run(path, lines, made[-1])


@pytest.fixture(name="call")
def fixture_call(capsys):
    """Calls a command in this process: `(exit code, standard output, standard error)`."""
    from sivdnas_tf.__main__ import main

    def call(*arguments):
        capsys.readouterr()
        code = main(["sivdnas_tf", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(name="refusal")
def fixture_refusal(call):
    """The one line on standard error of a command that must be refused with an exit code."""

    def refusal(*arguments, code=2):
        actual, out, err = call(*arguments)
        assert (actual, out) == (code, "")
        assert err.startswith("sivdnas_tf: ") and err.endswith("\n") and err.count("\n") == 1
        assert "Traceback" not in err and (code != 2 or "Received: " in err)
        return err

    return refusal


@pytest.fixture(name="listing", scope="session")
def fixture_listing():
    """A function of a path to every directory under it, and every file with its hash."""

    def listing(path):
        return {
            str(item.relative_to(path)): hashlib.sha256(item.read_bytes()).hexdigest() if item.is_file() else "directory"
            for item in path.rglob("*")
        }

    return listing


@pytest.fixture(name="workdir")
def fixture_workdir(tmp_path):
    """A work directory that a command with wrong arguments must not even make."""
    yield tmp_path / "run"
    assert not (tmp_path / "run").exists()
