import ast
import dataclasses
import re
import shlex

import pytest

from sivdnas_tf import __main__ as command_line
from sivdnas_tf.config import Config
from sivdnas_tf.profiling import costs
from sivdnas_tf.zoo import registry

_EXAMPLES = (
    "quickstart.py",
    "tune_digits.py",
    "cifar10.py",
    "cifar10_convergence.py",
    "cifar10_small.py",
    "nasbench201_cifar10.py",
    "cifar10_eval.py",
    "cifar100_eval.py",
    "imagenet_eval.py",
)


def load(path, *overrides):
    """The configuration as a command would get it: through the flag --config."""
    command = command_line.COMMANDS["run"]
    values, _ = command_line._parse("run", command, [f"--config={path}", "--workdir=unused", *overrides])
    return Config.from_dict(values.config.to_dict())


@pytest.fixture(name="directory", scope="module")
def fixture_directory(request):
    return request.config.rootpath / "configs"


def test_the_list_is_complete(directory):
    assert sorted(path.name for path in directory.glob("*.py")) == sorted([*_EXAMPLES, "__init__.py"])


@pytest.mark.parametrize("name", _EXAMPLES)
def test_every_file_is_a_valid_configuration(directory, name):
    config = load(directory / name)
    assert config != Config()
    assert load(directory / name, "--config.search.epochs=77", "--config.seed=3").search.epochs == 77
    # Every field can be overridden, a tuple too.
    assert load(directory / name, "--config.export.formats=onnx").export.formats == ("onnx",)
    assert load(directory / name, "--config.export.formats=('onnx', 'tflite')").export.formats == ("onnx", "tflite")


@pytest.mark.parametrize("name", _EXAMPLES)
def test_every_docstring_has_a_command_that_the_command_line_takes(directory, name):
    docstring = ast.get_docstring(ast.parse((directory / name).read_text(encoding="utf-8")))
    (line,) = re.findall(r"^ *python -m sivdnas_tf (.*?)(?:  +.*)?$", docstring, re.MULTILINE)
    command, *arguments = shlex.split(line)
    assert f"--config=configs/{name}" in arguments
    located = [argument.replace("--config=configs/", f"--config={directory}/") for argument in arguments]
    values, _ = command_line._parse(command, command_line.COMMANDS[command], located)
    assert values.workdir.startswith("runs/")
    # What it takes, or the target that runs it, or that nobody here knows.
    assert any(word in docstring for word in ("GPU-hours", "quickstart", "minutes on two CPU cores", "Not run here at full length"))


def test_quickstart_deploys_the_network_that_it_trains(directory):
    config = load(directory / "quickstart.py")
    assert config.data.name == "digits" and not config.data.flip
    for field in ("network", "channels", "cells"):
        assert getattr(config.budget, field) == getattr(config.train, field)
    assert (config.budget.classes, config.budget.resolution, config.budget.image_channels) == (10, 8, 1)


def test_cifar10_has_the_papers_settings(directory):
    base, convergence = load(directory / "cifar10.py"), load(directory / "cifar10_convergence.py")
    assert (base.data.name, base.search.epochs, base.search.warmup_epochs, base.search.cells, base.search.channels) == (
        "cifar10",
        50,
        15,
        8,
        16,
    )
    assert (base.train.epochs, base.train.cells, base.train.channels, base.train.cutout_length) == (600, 20, 36, 16)
    assert (base.budget.network, base.budget.macs) == ("imagenet", 600e6)
    assert convergence.search.epochs == 150
    assert Config.from_dict({**convergence.to_dict(), "search": base.to_dict()["search"]}) == base


# METHOD.md section 7, figure by figure.
_RETRAINING = {
    "cifar10_eval.py": {
        **{"network": "cifar", "cells": 20, "channels": 36, "epochs": 600, "batch_size": 96},
        **{"learning_rate": 0.025, "final_learning_rate": 0.0, "schedule": "cosine", "warmup_epochs": 0, "momentum": 0.9},
        **{"weight_decay": 3e-4, "weight_decay_on": "all", "gradient_clip_norm": 5.0, "drop_path_rate": 0.3, "cutout_length": 16},
        **{"auxiliary_weight": 0.4, "label_smoothing": 0.0, "ema_decay": 0.0, "checkpoint_choice": "last"},
    },
    "imagenet_eval.py": {
        **{"network": "imagenet", "cells": 14, "channels": 48, "epochs": 250, "batch_size": 1024},
        **{"learning_rate": 0.5, "final_learning_rate": 0.0, "schedule": "linear", "warmup_epochs": 5, "momentum": 0.9},
        **{"weight_decay": 3e-5, "weight_decay_on": "all", "gradient_clip_norm": 5.0, "drop_path_rate": 0.0, "cutout_length": 0},
        **{"auxiliary_weight": 0.4, "label_smoothing": 0.1, "ema_decay": 0.0, "checkpoint_choice": "last"},
    },
}
_RETRAINING["cifar100_eval.py"] = {**_RETRAINING["cifar10_eval.py"], "weight_decay": 5e-4}


@pytest.mark.parametrize("name", _RETRAINING)
def test_retraining_has_the_papers_settings(directory, name):
    train = dataclasses.asdict(load(directory / name).train)
    assert {field: train[field] for field in _RETRAINING[name]} == _RETRAINING[name]
    assert set(train) - set(_RETRAINING[name]) == {"precision", "jit_compile"}


@pytest.mark.parametrize(
    ("name", "data", "deployed"),
    [
        ("cifar10_eval.py", ("cifar10", 4), ("cifar", 10, 32, 1e9)),
        ("cifar100_eval.py", ("cifar100", 4), ("cifar", 100, 32, 1e9)),
        ("imagenet_eval.py", ("imagenet2012", 0), ("imagenet", 1000, 224, 600e6)),
    ],
)
def test_retraining_deploys_the_network_that_it_trains(directory, name, data, deployed):
    config = load(directory / name)
    for field in ("network", "channels", "cells"):
        assert getattr(config.budget, field) == getattr(config.train, field)
    budget = config.budget
    assert (budget.network, budget.classes, budget.resolution, budget.macs) == deployed
    assert budget.convention == "macs" and budget.image_channels == 3
    assert (config.data.name, config.data.crop_padding) == data and config.data.flip
    assert config.data.resolution in (0, budget.resolution)


def test_imagenets_images_are_cut_and_coloured_as_the_references(directory):
    data = load(directory / "imagenet_eval.py").data
    assert data.streaming and data.random_resized_crop and data.central_crop == 0.875
    assert (data.brightness_jitter, data.contrast_jitter, data.saturation_jitter, data.hue_jitter) == (0.4, 0.4, 0.4, 0.2)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_every_cell_of_the_zoo_can_be_retrained_on_cifar_and_some_on_imagenet(directory):
    within = {
        name: {cell for cell in registry.names() if costs.fits_budget(costs.deployed_cost(registry.load(cell), budget), budget)}
        for name in _RETRAINING
        for budget in [load(directory / name).budget]
    }
    assert within["cifar10_eval.py"] == within["cifar100_eval.py"] == set(registry.names())
    assert "DARTS_V2" in within["imagenet_eval.py"] < set(registry.names())
