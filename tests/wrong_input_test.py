"""What a user can get wrong, given to the command line: an exit code, one line, and nothing changed."""

import pytest

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
        (["profile", "--genotype=PDARTS", "--network=cifr"], "--network=cifr: value should be one of <cifar|imagenet>"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--cells=many"], "--cells=many: invalid literal for int()"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--cells=2"], "at least 3 cells"),
        (["profile", "--genotype=PDARTS", "--network=cifar", "--channels=-2"], "Received: channels=-2"),
        (["profile", "--genotype=PDARTZ", "--network=cifar"], "unknown genotype: no published one has this name, and no file"),
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
        ("--config.search.warmup_epochs=3", "search.warmup_epochs must be less than search.epochs"),
        ("--config.search=3", "is not a dict"),
        ("--config.export.formats=onxx", "config.export.formats. Did you mean 'onnx'?"),
        ("--config.distribution.strategy=tpu", "Expected one of auto, none, mirrored. Received: 'tpu'"),
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


def test_genotypes_that_are_no_genotypes(refusal, tiny_config, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('{"schema_version": 2}')
    (tmp_path / "run").mkdir()
    start = ["train", f"--config={tiny_config}", f"--workdir={tmp_path}/run"]
    assert "Did you mean 'DARTS_V2'?" in refusal(*start, "--genotype=DARTS_V22")
    for arguments in (start, ["profile", "--network=cifar"]):
        message = refusal(*arguments, f"--genotype={bad}")
        assert f"{bad}: the genotype lacks 'name'" in message
    assert not list((tmp_path / "run").iterdir())
