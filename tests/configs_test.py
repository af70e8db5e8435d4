import ast
import re
import shlex

import pytest

from sivdnas_tf import __main__ as command_line
from sivdnas_tf.config import Config

_EXAMPLES = ("quickstart.py", "cifar10.py", "cifar10_convergence.py", "cifar10_small.py")


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
    # Every field can be overridden, the only tuple too.
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
    # What it takes, or the target that runs it.
    assert any(word in docstring for word in ("GPU-hours", "quickstart", "minutes on two CPU cores"))


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
