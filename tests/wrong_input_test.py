"""What a user can get wrong, given to the command line: an exit code, one line, and nothing changed."""

import json
import os
import pathlib
import re

import pytest

from sivdnas_tf import darts_genotype

_FILE = """import ml_collections
from sivdnas_tf.config import Config
def get_config():
  config = ml_collections.ConfigDict(Config().to_dict())
"""


# Wrong use.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "unknown command. Expected one of run, search, derive,"),
        (["serch"], "unknown command. Did you mean 'search'? Expected one of run,"),
        (["Profile"], "Did you mean 'profile'?"),
        (["xyzzy"], "unknown command. Expected one of run, "),
        (["--workdir=x"], "Received: '--workdir=x'"),
        (
            ["search", "--wrkdir=x"],
            "unknown flag of search. Did you mean 'workdir'? Expected --config, --workdir, --overwrite, --help.",
        ),
        (["derive", "--rules=mode"], "unknown flag of derive. Did you mean 'rule'?"),
        (["evaluate", "--config=configs/quickstart.py"], "unknown flag of evaluate. Expected --workdir, --split,"),
        (["derive", "--verbosity=1"], "unknown flag of derive."),
        (["derive", "extra", "--workdir=x"], "derive takes flags only. Received: 'extra'"),
        (["report", "--workdir=x", "extra"], "report takes flags only. Received: 'extra'"),
        (["derive"], "derive needs --workdir: directory of the run. Received: no --workdir"),
        (["derive", "--workdir="], "derive needs --workdir"),
        (["derive", "--workdir"], "Missing value for flag --workdir"),
        (["verify"], "verify needs --manifest"),
        (["profile", "--network=cifar"], "profile needs --genotype"),
        (["profile", "--genotype=PDARTS"], "profile needs --network"),
        (["profile", "--genotype=PDARTS", "--network=cifr"], "--network=cifr: value should be one of <cifar|imagenet|nasbench201>"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--cells=many"], "--cells=many: invalid literal for int()"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--cells=2"], "at least 3 cells"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--cells=1000000000"], "at most 1000 cells. Received: cells=1000000000"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--channels=-2"], "Received: channels=-2"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--classes=1"], "at least 2 classes. Received: classes=1"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--resolution=33"], "must be a multiple of 4"),
        (["profile", "--genotype=PDARTS", "--network=imagenet", "--resolution=48"], "must be a multiple of 32"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--budget_macs=nan"], "config.budget.macs must be a finite number."),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--budget_macs=-1"], "config.budget.macs must be above 0.0. Received: -1.0"),
        (["profile", "--genotype=PDARTZ", "--network=cifar"], "unknown genotype: the zoo has none of this name, and no file"),
        (["profile", "--genotype=PDARTZ", "--network=cifar"], "Did you mean 'PDARTS'?"),
        (["profile", "--genotype=PDARTS,", "--network=cifar"], "Received: ''"),
        (["evaluate", "--workdir=x", "--split=tst"], "value should be one of <test|holdout|weights|architecture>"),
        (["derive", "--workdir=x", "--overwrite=perhaps"], "Non-boolean argument to boolean flag"),
        (["derive", "--workdir=x", "--seed=1.5"], "--seed=1.5: invalid literal for int()"),
        (["verify", "--manifest=/does/not/exist.json"], "exist.json"),
    ],
)
def test_wrong_use_is_refused_in_one_line(refusal, arguments, expected):
    assert expected in refusal(*arguments)


@pytest.mark.parametrize("command", ["derive", "evaluate", "export", "report"])
def test_a_stage_in_a_directory_that_is_not_there(refusal, workdir, command):
    assert "must be that of a run. Received:" in refusal(command, f"--workdir={workdir}")


@pytest.mark.parametrize("command", ["run", "search", "train"])
def test_commands_that_need_a_configuration(refusal, workdir, tiny_config, tmp_path, command):
    assert f"{command} needs --config: a configuration file, e.g. configs/quickstart.py" in refusal(command, f"--workdir={workdir}")
    assert f"{command} needs --workdir" in refusal(command, f"--config={tiny_config}")
    for arguments in ([f"--config={tmp_path}/none.py"], ["--config", f"{tmp_path}/none.py"]):
        expected = f"the configuration file does not exist. Expected a Python file with get_config(). Received: '{tmp_path}/none.py'"
        assert expected in refusal(command, *arguments, f"--workdir={workdir}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(:\n", "the configuration file is not Python: invalid syntax ("),
        ("def get_config(:\n", "line 1)"),
        ("", "AttributeError: module 'config_config' has no attribute 'get_config'"),
        ("def get_config():\n  return None\n", "get_config() must return an ml_collections.ConfigDict. Received: None"),
        ("def get_config():\n  return 3\n", "get_config() must return an ml_collections.ConfigDict. Received: 3"),
        ("def get_config():\n  return {'seed': 1}\n", "must return an ml_collections.ConfigDict. Received: {'seed': 1}"),
        ("from sivdnas_tf.config import Config\ndef get_config():\n  return Config()\n", "ConfigDict. Received: Config(seed=0,"),
        ("def get_config():\n  return '\0'\n", "cannot contain null bytes"),
        ("x = " + "[" * 100_000, "the configuration file is not Python: too many nested parentheses"),
        ("x = " + "-" * 100_000 + "1", "the configuration cannot be read: "),
        ("raise SystemExit(3)\n", "the configuration cannot be read: SystemExit: 3."),
        ("def get_config():\n  return undefined\n", "the configuration cannot be read: NameError: name 'undefined' is not defined"),
        ("def get_config():\n  return 1 / 0\n", "ZeroDivisionError"),
        ("def get_config():\n  return len(1)\n", "TypeError: object of type 'int' has no len()"),
        ("def get_config():\n  return int('x')\n", "ValueError: invalid literal for int() with base 10: 'x'"),
        ("def get_config(size):\n  return 1\n", "missing 1 required positional argument: 'size'"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n  open('/does/not/exist')\n", "No such file or directory: '/does/not/exist'"),
        (_FILE + "  config.search.epoch = 3\n  return config\n", "unknown field config.search.epoch. Did you mean 'epochs'?"),
        (_FILE + "  config.serch = {}\n  return config\n", "unknown field config.serch. Did you mean 'search'?"),
        (_FILE + "  config.serch.epochs = 3\n  return config\n", "AttributeError: '\\'serch\\'\\nDid you mean"),
        (_FILE + "  config.search.epochs = 3.5\n  return config\n", "Could not override field 'epochs'"),
        (_FILE + "  config.search.epochs = 0\n  return config\n", "config.search.epochs must be at least 1. Received: 0"),
        (_FILE + "  config.search.mixing = 'softmx'\n  return config\n", "config.search.mixing. Did you mean 'softmax'?"),
        (
            "import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict({'seed': 'x'})\n",
            "config.seed must be of type int",
        ),
    ],
)
def test_a_configuration_file_that_is_wrong(refusal, workdir, tmp_path, text, expected):
    path = tmp_path / "wrong.py"
    path.write_text(text, encoding="utf-8")
    assert expected in refusal("search", f"--config={path}", f"--workdir={workdir}")


def test_a_configuration_file_that_is_binary(refusal, workdir, tmp_path):
    (tmp_path / "wrong.py").write_bytes(b"\xff\x89PNG\r\n")
    expected = (
        "the configuration file is not Python: (unicode error) 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    )
    assert expected in refusal("search", f"--config={tmp_path}/wrong.py", f"--workdir={workdir}")
    assert "does not exist. Expected a Python file" in refusal("search", f"--config={tmp_path}", f"--workdir={workdir}")


def test_a_file_does_not_see_what_the_file_before_it_defined(refusal, call, workdir, tmp_path, tiny_config):
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    assert call("search", f"--config={tiny_config}", f"--workdir={workdir}", "--config.search.epochs=0")[0] == 2
    assert "no attribute 'get_config'" in refusal("search", f"--config={tmp_path}/empty.py", f"--workdir={workdir}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--config.search.epoch=3", "unknown field config.search.epoch. Did you mean 'epochs'? Expected one of search_space, channels,"),
        ("--config.search.epoch=3", "Received: --config.search.epoch=3"),
        ("--config.serch.epochs=3", "unknown field config.serch. Did you mean 'search'?"),
        ("--config.search.epochs.x=3", "config.search.epochs is one value and has no fields. Received: --config.search.epochs.x=3"),
        ("--config.search.epochs=many", "--config.search.epochs=many: invalid literal for int()"),
        ("--config.search.epochs=2.5", "--config.search.epochs=2.5: invalid literal for int()"),
        ("--config.data.flip=perhaps", "Non-boolean argument"),
        ("--config.search.kl_weight=heavy", "could not convert string to float"),
        ("--config.search.kl_weight=nan", "config.search.kl_weight must be a finite number. Received: nan"),
        ("--config.search.kl_weight=-1", "config.search.kl_weight must be at least 0.0. Received: -1.0"),
        ("--config.search.channels=0", "config.search.channels must be at least 2. Received: 0"),
        ("--config.search.epochs=-1", "config.search.epochs must be at least 1. Received: -1"),
        ("--config.train.epochs=-600", "config.train.epochs must be at least 1. Received: -600"),
        ("--config.search.batch_size=0", "config.search.batch_size must be at least 1. Received: 0"),
        ("--config.train.batch_size=0", "config.train.batch_size must be at least 1. Received: 0"),
        ("--config.train.drop_path_rate=1.5", "config.train.drop_path_rate must be at most 0.99. Received: 1.5"),
        ("--config.train.label_smoothing=-0.1", "config.train.label_smoothing must be at least 0.0. Received: -0.1"),
        ("--config.search.momentum=1.5", "config.search.momentum must be at most 0.9999. Received: 1.5"),
        ("--config.data.holdout_fraction=1.5", "config.data.holdout_fraction must be at most 0.9. Received: 1.5"),
        ("--config.data.resolution=-8", "config.data.resolution must be at least 0. Received: -8"),
        (
            "--config.search.search_space=dart",
            "config.search.search_space. Did you mean 'darts'? Expected one of darts, nasbench201. Received",
        ),
        ("--config.derive.rule=buget", "config.derive.rule. Did you mean 'budget'?"),
        ("--config.seed=-1", "config.seed must be at least 0. Received: -1"),
        ("--config.seed=99999999999999999999", "config.seed must be at most 2147483647. Received: 99999999999999999999"),
        ("--config.search.warmup_epochs=3", "search.warmup_epochs must be less than search.epochs"),
        ("--config.search=3", "is not a dict"),
        ("--config.export.formats=onxx", "config.export.formats. Did you mean 'onnx'?"),
        ("--config.distribution.strategy=tpu", "Expected one of auto, none, mirrored, multi_worker. Received: 'tpu'"),
    ],
)
def test_an_override_that_is_wrong(refusal, workdir, tiny_config, override, expected):
    assert expected in refusal("search", f"--config={tiny_config}", f"--workdir={workdir}", override)


def test_a_work_directory_that_is_a_file(refusal, tiny_config, tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for command in ("run", "search", "train"):
        expected = f"the work directory must be a directory. Received: {path}, which is a file"
        assert expected in refusal(command, f"--config={tiny_config}", f"--workdir={path}")
    assert "which is a file" in refusal("report", f"--workdir={path}")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "missing", "before"),
    [
        ("derive", "search/posterior.npz", "search"),
        ("evaluate", "train/weights.weights.h5", "train"),
        ("export", "train/weights.weights.h5", "train"),
    ],
)
def test_a_stage_before_the_one_that_it_needs(refusal, tmp_path, command, missing, before):
    assert f"has no {missing}: `{before}` has not finished there" in refusal(command, f"--workdir={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_train_before_derive(refusal, listing, searched, tiny_config, tmp_path):
    run = searched.copy(tmp_path / "run")
    before = listing(run)
    for workdir in (run, tmp_path / "empty"):
        assert "has no genotype.json: `derive` has not" in refusal("train", f"--config={tiny_config}", f"--workdir={workdir}")
    assert listing(run) == before and not (tmp_path / "empty").exists()


@pytest.mark.parametrize("option", ["--rule=mod", "--seed=-1", "--budget_macs=-5"])
def test_values_that_derive_does_not_take(refusal, listing, searched, tmp_path, option):
    run = searched.copy(tmp_path / "run")
    before = listing(run)
    message = refusal("derive", f"--workdir={run}", option)
    assert message.startswith("sivdnas_tf: config.") and option.partition("=")[2] in message.partition("Received: ")[2]
    assert listing(run) == before


@pytest.mark.parametrize("option", ["--formats=onxx", "--formats=", "--preprocessing=outsid", "--onnx_layout=nwhc", "--budget_macs=nan"])
def test_values_that_export_does_not_take(refusal, listing, trained, tmp_path, option):
    run = trained.copy(tmp_path / "run")
    before = listing(run)
    assert refusal("export", f"--workdir={run}", option).startswith("sivdnas_tf: config.")
    assert listing(run) == before


# Data.


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--config.data.name=digitz"], "dataset 'digitz' is neither prepared nor known to TFDS. Did you mean 'digits'?"),
        (["--config.data.name=cifar10", "--config.data.data_dir=/does/not/exist"], "nothing is downloaded here"),
        (["--config.data.name=https://example.org/a"], "data.name must be "),
        (
            ["--config.data.holdout_fraction=0.9", "--config.data.test_fraction=0.9"],
            "too few images of 'digits' for its splits: none may be empty, and each of the 10 classes needs an image in weights and one in "
            "architecture. Received: test=1617, holdout=162, weights=9, architecture=9; without an image in both halves: ",
        ),
        (["--config.data.resolution=9"], "must be a multiple of 4"),
        (["--config.data.resolution=9"], "Received: resolution=9"),
        (["--config.search.resolution=68"], "config.search.resolution must be at most 64. Received: 68"),
        (["--config.data.crop_padding=8"], "crop_padding must be from 0 to 7"),
        (
            ["--config.{stage}.channels=5"],
            "channels must be even and positive (factorized reduce splits them in two).",
        ),
        (["--config.{stage}.cutout_length=99"], "cutout_length must be from 0 to 7"),
        (["--config.{stage}.batch_size=1795"], "a batch must hold from 1 to "),
        (
            ["--config.{stage}.batch_size=33", "--config.distribution.strategy=mirrored"],
            "a multiple of the number of replicas, 2.",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["search", "train"])
def test_data_that_a_stage_cannot_take(refusal, workdir, tiny_config, stage, overrides, expected):
    """Found out once TensorFlow and the images are there; a genotype that was given is not left behind."""
    flags = [override.format(stage=stage) for override in overrides]
    given = ["--genotype=PDARTS", "--config.budget.macs=1e12"] if stage == "train" else []
    assert expected in refusal(stage, f"--config={tiny_config}", f"--workdir={workdir}", *given, *flags)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "--config.data.resolution=6",
            "a search takes images of 8 to 64 pixels a side: search.resolution makes them so. Received: images of 6",
        ),
        ("--config.search.resolution=10", "since every reduction halves an even size exactly. Received: resolution=10"),
        ("--config.search.steps_per_epoch=6", "search.steps_per_epoch must be at most 5, the batches of 128 that half of the training"),
    ],
)
def test_sizes_that_a_search_cannot_take(refusal, workdir, tiny_config, override, expected):
    assert expected in refusal("search", f"--config={tiny_config}", f"--workdir={workdir}", override)


def test_a_refused_training_leaves_the_run_as_it_was(refusal, listing, searched, tiny_config, tmp_path):
    run = searched.copy(tmp_path / "run")
    before = listing(run)
    start = ["train", f"--config={tiny_config}", f"--workdir={run}", "--genotype=PDARTS", "--config.export.formats=onnx"]
    for override, code in (("--config.budget.macs=1", 3), ("--config.train.batch_size=1795", 2), ("--config.train.channels=5", 2)):
        refusal(*start, "--config.budget.macs=1e12", override, code=code)
    assert listing(run) == before


# Work directories.


@pytest.mark.parametrize("command", ["run", "search", "train"])
def test_a_work_directory_that_cannot_be_made(refusal, listing, tiny_config, tmp_path, command):
    """Under a file, and by a name that no file system takes: true for root, too, whom permissions do not stop."""
    (tmp_path / "file").write_text("mine")
    before = listing(tmp_path)
    for path in (tmp_path / "file" / "run", tmp_path / ("x" * 300), tmp_path / "new" / ("x" * 300)):
        message = refusal(command, f"--config={tiny_config}", f"--workdir={path}")
        assert f"the work directory must be writable. Received: {path} (" in message
    assert listing(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_work_directory_that_is_not_writable(refusal, tiny_config, tmp_path):
    tmp_path.chmod(0o500)
    for path in (tmp_path, tmp_path / "new"):
        message = refusal("search", f"--config={tiny_config}", f"--workdir={path}")
        assert f"the work directory must be writable. Received: {path} (Permission denied)" in message
    assert not list(tmp_path.iterdir())


# A loss that is not finite.

SMALLEST = {
    "normal": [["skip_connect", 0], ["max_pool_3x3", 1]],
    "normal_concat": [2],
    "reduce": [["max_pool_3x3", 0], ["skip_connect", 1]],
}


# Weight decay times learning rate is 10: the weights grow by about a factor of 9 a step, and overflow in the second epoch of 10 steps.
DIVERGING = ["--config.train.learning_rate=0.05", "--config.train.weight_decay=200", "--config.train.gradient_clip_norm=0"]


def test_a_loss_that_becomes_nan_stops_the_training(call, tiny_config, tmp_path):
    """The last good checkpoint stays. The cell comes as DARTS writes it; the run has it in schema 1."""
    path, run = tmp_path / "smallest.json", tmp_path / "run"
    path.write_text(json.dumps(SMALLEST), encoding="utf-8")
    code, out, err = call("train", f"--config={tiny_config}", f"--workdir={run}", f"--genotype={path}", *DIVERGING)
    converted, stopped = err.splitlines()
    assert converted.startswith(f"sivdnas_tf: converted the DARTS genotype {path}: normal 2 edges into nodes 2, concat 2; reduction 2")
    assert code == 1
    assert re.match(r"sivdnas_tf: train: loss became (nan|inf) at step 1\d \(epoch 2\)\. The last good checkpoint stays: ", stopped)
    assert stopped.endswith("ckpt-10. Try a smaller train.learning_rate or a smaller train.gradient_clip_norm.")
    assert out.startswith("train 1/2 ") and out.count("\n") == 1
    checkpoint = pathlib.Path(re.search(r"stays: (.*)\. Try", stopped)[1])
    assert checkpoint.parent == run / "train/checkpoints" and checkpoint.with_name("ckpt-10.index").exists()
    assert not (run / "train/weights.weights.h5").exists()
    assert json.loads((run / "genotype.json").read_text()) == darts_genotype.load(path)[0].to_dict()


@pytest.mark.slow
def test_a_loss_that_becomes_nan_stops_the_search(call, tiny_config, tmp_path):
    """Weight decay times learning rate is 1,000: the weights overflow in the second epoch of 5 steps, the first of both halves."""
    run, diverging = tmp_path / "run", [flag.replace("train", "search").replace("=200", "=20000") for flag in DIVERGING]
    code, out, err = call("search", f"--config={tiny_config}", f"--workdir={run}", *diverging)
    (stopped,) = err.splitlines()
    assert code == 1
    assert re.match(r"sivdnas_tf: search: \w*loss became (nan|inf) at step [5-9] \(epoch 2\)\. The last good checkpoint stays: ", stopped)
    assert "ckpt-5. Try a smaller search.learning_rate or search.architecture_learning_rate" in stopped
    assert out.startswith("search 1/3 ") and out.count("\n") == 1
    assert (run / "search/checkpoints/ckpt-5.index").exists() and not (run / "search/posterior.npz").exists()
