import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from sivdnas_tf import __main__ as command_line
from sivdnas_tf import commands
from sivdnas_tf.errors import AgreementError, Interrupted, NonFiniteError
from sivdnas_tf.zoo import registry

ZOO = registry.names()
_FILE = """import ml_collections
from sivdnas_tf.config import Config
def get_config():
  config = ml_collections.ConfigDict(Config().to_dict())
"""


@pytest.fixture(name="call")
def fixture_call(capsys):
    """Calls a command in this process: `(exit code, standard output, standard error)`."""

    def call(*arguments):
        capsys.readouterr()
        code = command_line.main(["sivdnas_tf", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(name="refusal")
def fixture_refusal(call):
    """The one line on standard error of a command that must be refused with an exit code."""

    def refusal(*arguments, code=2):
        actual, out, err = call(*arguments)
        assert (actual, out) == (code, "")
        assert err.startswith("sivdnas_tf: ") and err.endswith("\n") and err.count("\n") == 1
        assert "Traceback" not in err
        return err

    return refusal


def listing(path):
    """Every directory, and every file with its hash."""
    return {
        str(item.relative_to(path)): hashlib.sha256(item.read_bytes()).hexdigest() if item.is_file() else "directory"
        for item in path.rglob("*")
    }


@pytest.fixture(name="workdir")
def fixture_workdir(tmp_path):
    """A work directory that a command with wrong arguments must not even make."""
    yield tmp_path / "run"
    assert not (tmp_path / "run").exists()


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


def test_train_before_derive(refusal, searched, tiny_config, tmp_path):
    run = searched.copy(tmp_path / "run")
    before = listing(run)
    for workdir in (run, tmp_path / "empty"):
        assert "has no genotype.json: `derive` has not" in refusal("train", f"--config={tiny_config}", f"--workdir={workdir}")
    assert listing(run) == before and not list((tmp_path / "empty").iterdir())


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


# A run that was made with other settings.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "--config.search.kl_weight=0.25"], "search in {run} was made with other settings: search.kl_weight=0.05, now 0.25."),
        (["search", "--config.seed=1", "--config.data.flip=true"], "seed=0, now 1; data.flip=False, now True."),
        (["search", "--config.train.epochs=9"], "train in {run} was made with other settings: train.epochs=2, now 9."),
        (["run", "--config.search.epochs=4"], "search in {run} was made with other settings: search.epochs=3, now 4."),
        (["train", "--config.train.learning_rate=0.5"], "train.learning_rate=0.05, now 0.5."),
        (["train", "--config.search.channels=6"], "search.channels=4, now 6."),
        (["train", "--genotype=PDARTS"], "is another genotype than --genotype. Expected another --workdir. Received: 'PDARTS'"),
        (["derive", "--rule=mode", "--budget_macs=2e6"], "derive.rule='budget', now 'mode'; budget.macs=160000.0, now 2000000.0"),
        (["derive", "--budget_macs=1e9", "--seed=3"], "derive.seed=0, now 3; budget.macs=160000.0, now 1000000000.0"),
    ],
)
def test_another_configuration_is_refused_by_name_and_changes_nothing(refusal, trained, tiny_config, tmp_path, arguments, expected):
    run = trained.copy(tmp_path / "run")
    before = listing(run)
    command, *flags = arguments
    if command != "derive":
        flags = [f"--config={tiny_config}", "--config.budget.macs=1e12", *flags]
    message = refusal(command, f"--workdir={run}", *flags)
    assert expected.format(run=run) in message
    assert listing(run) == before


@pytest.mark.parametrize("command", ["search", "train"])
def test_overwrite_takes_another_configuration_of_what_is_redone(call, refusal, trained, tiny_config, tmp_path, monkeypatch, command):
    from sivdnas_tf.training import search, train

    run, calls = trained.copy(tmp_path / "run"), []
    monkeypatch.setattr(search, "run_search", lambda config, *rest: calls.append(("search", config, rest[-2])))
    monkeypatch.setattr(train, "run_train", lambda config, *rest: calls.append(("train", config, rest[-2])))
    arguments = [command, f"--config={tiny_config}", f"--workdir={run}", "--overwrite", "--config.train.epochs=9"]
    # The search that the genotype came from stays as it is when only the training is redone.
    changed = "--config.search.kl_weight=0.25"
    if command == "train":
        assert "search.kl_weight=0.05, now 0.25" in refusal(*arguments, changed)
    else:
        arguments.append(changed)
    assert calls == [] and call(*arguments)[0] == 0
    ((called, config, overwrite),) = calls
    assert (called, overwrite, config.train.epochs) == (command, True, 9)
    written = json.loads((run / "config.json").read_text())
    assert (written["train"]["epochs"], written["search"]["kl_weight"]) == (9, 0.25 if command == "search" else 0.05)


def test_over_the_budget_is_exit_code_3_and_changes_nothing(refusal, searched, trained, tiny_config, tmp_path):
    for run, name in ((searched, "searched"), (trained, "trained")):
        workdir = run.copy(tmp_path / name)
        before = listing(workdir)
        for flags in (["--budget_macs=1"], ["--budget_macs=1", "--rule=mode"], ["--budget_macs=1", "--overwrite"]):
            message = refusal("derive", f"--workdir={workdir}", *flags, code=3)
            assert "more than the budget allows. Expected at most 1 macs" in message
        assert listing(workdir) == before
    message = refusal(
        "train", f"--config={tiny_config}", f"--workdir={tmp_path}/new", "--genotype=PDARTS", "--config.budget.macs=1", code=3
    )
    assert "Expected at most 1 macs" in message
    assert not list((tmp_path / "new").iterdir())


# Exit codes.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NonFiniteError("search: loss became nan at step 3"), 1),
        (AgreementError("model.onnx does not agree"), 4),
        (Interrupted(15, "SIGTERM received"), 143),
        (Interrupted(2, "SIGINT received"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(refusal, monkeypatch, tmp_path, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(commands, "report", fail)
    message = refusal("report", f"--workdir={tmp_path}", code=code)
    assert message == f"sivdnas_tf: {error}\n" or (isinstance(error, KeyboardInterrupt) and "interrupted" in message)


def python(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("arguments", [["profile", "--genotype=PDARTS", "--network=cifar"], ["--help"]])
def test_a_reader_that_has_gone_is_no_traceback(arguments):
    with python("-m", "sivdnas_tf", *arguments) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (1, "")


def test_a_refusal_is_one_line_in_a_process_of_its_own(workdir, tmp_path):
    """ml_collections' own warning included: it is not heard beside the error."""
    (tmp_path / "none.py").write_text("def get_config():\n  return None\n", encoding="utf-8")
    with python("-m", "sivdnas_tf", "search", f"--config={tmp_path}/none.py", f"--workdir={workdir}") as process:
        out, err = process.communicate(timeout=60)
    expected = "sivdnas_tf: get_config() must return an ml_collections.ConfigDict. Received: None\n"
    assert (process.returncode, out, err) == (2, "", expected)


def test_lines_reach_a_pipe_when_they_are_printed():
    """A process that is killed has flushed nothing that was still in a buffer."""
    script = (
        "import os, signal, sivdnas_tf.__main__ as m\n"
        "m.main = lambda argv: (print('search 1/9'), os.kill(os.getpid(), signal.SIGKILL))\n"
        "m.console_main()"
    )
    with python("-c", script) as process:
        assert process.communicate(timeout=60)[0] == "search 1/9\n"
    assert process.returncode == -signal.SIGKILL


# Help.


def test_the_list_of_commands(call):
    for flag in ("--help", "-h", "help"):
        code, out, err = call(flag)
        assert (code, err) == (0, "")
        for name, command in command_line.COMMANDS.items():
            assert any(line.split(maxsplit=1) == [name, command.help] for line in out.splitlines())
    assert list(command_line.COMMANDS) == [
        "run",
        "search",
        "derive",
        "train",
        "evaluate",
        "profile",
        "export",
        "verify",
        "predict",
        "report",
    ]


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_the_help_of_a_command_fits_on_a_screen(call, name):
    command = command_line.COMMANDS[name]
    for flag in ("--help", "-h"):
        code, out, err = call(name, flag)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert len(lines) <= 24 and max(map(len, lines)) <= 110
        for flag_name in command.flags:
            (line,) = (line for line in lines if line.split()[:1] == [f"--{flag_name}"])
            assert ("(required)" in line) is (flag_name in command.required)


# Profile.


@pytest.mark.parametrize("network", ["cifar", "imagenet"])
def test_profile_counts_the_published_genotypes_exactly(call, network):
    code, out, err = call("profile", f"--genotype={','.join(ZOO)}", f"--network={network}", "--json")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["name"] for row in rows] == list(ZOO) and len(rows) == 19
    size = {"channels": 36, "cells": 20, "classes": 10, "resolution": 32}
    if network == "imagenet":
        size = {"channels": 48, "cells": 14, "classes": 1000, "resolution": 224}
    for row in rows:
        counts = registry.entry(row["name"])["counts"][network]
        assert row == {
            "name": row["name"],
            "network": network,
            **size,
            **{name: counts[name] for name in ("params", "macs", "macs_ptflops")},
            "within_budget": counts["macs"] <= 600e6,
        }
    assert {row["within_budget"] for row in rows} == {True, False}
    assert list(rows[0]) == ["name", "network", *size, "params", "macs", "macs_ptflops", "within_budget"]


def test_profile_takes_files_and_sizes(call, tmp_path):
    for name in ("DARTS_V1", "FairDARTS_b"):
        (tmp_path / f"{name}.json").write_text(registry.load(name).to_json(), encoding="utf-8")
    genotypes = f"{tmp_path}/DARTS_V1.json,PDARTS,{tmp_path}/FairDARTS_b.json"
    arguments = ["profile", f"--genotype={genotypes}", "--network=cifar", "--channels=8", "--cells=5", "--classes=3", "--resolution=16"]
    code, out, _ = call(*arguments, "--json", "--budget_macs=3e6")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["name"] for row in rows] == ["DARTS_V1", "PDARTS", "FairDARTS_b"]
    assert all((row["channels"], row["cells"], row["classes"], row["resolution"]) == (8, 5, 3, 16) for row in rows)
    for row in rows:
        assert row["within_budget"] is (row["macs"] <= 3e6)
    exact = min(row["macs"] for row in rows)
    within = [json.loads(line)["within_budget"] for line in call(*arguments, "--json", f"--budget_macs={exact}")[1].splitlines()]
    assert within.count(True) == 1  # the budget itself is allowed


def test_profile_prints_a_table(call):
    code, out, _ = call("profile", "--genotype=PDARTS,DARTS_V2", "--network=imagenet", "--budget_macs=530e6")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 4
    assert lines[0] == "imagenet network, 48 channels, 14 cells, 1000 classes, 224x224; budget 530,000,000 macs"
    assert lines[2].split() == ["PDARTS", "4,944,352", "542,819,328", "557,382,912", "no"]
    assert lines[3].split()[0] == "DARTS_V2" and lines[3].split()[-1] == "yes"


def test_profile_derive_and_refusals_start_without_tensorflow(searched, tiny_config, tmp_path):
    workdir = searched.copy(tmp_path / "run")
    script = (
        "import sys\nfrom sivdnas_tf.__main__ import main\n"
        "assert main(['', 'profile', '--genotype=PDARTS', '--network=cifar', '--json']) == 0\n"
        "assert 'ml_collections' not in sys.modules\n"
        f"assert main(['', 'derive', '--workdir={workdir}']) == 0\n"
        f"assert main(['', 'search', '--config={tiny_config}', '--workdir={workdir}', '--config.seed=1']) == 2\n"
        "assert not {'tensorflow', 'keras', 'tensorflow_probability'} & set(sys.modules)\n"
    )
    with python("-c", script) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert (workdir / "genotype.json").exists()


# A dry run.


def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(call, workdir, tiny_config):
    code, out, _ = call("run", f"--config={tiny_config}", f"--workdir={workdir}", "--dry_run")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "data: digits, 8x8x1, 10 classes"
    assert lines[1] == "splits: weights 647, architecture 647, holdout 144, test 359"
    assert lines[2].startswith("search: 3 epochs of 5 steps of 2 x 128 images, ")
    assert lines[3] == "train: 2 epochs of 10 steps of 128 images"
    assert "with every operation kept; budget 160,000" in lines[4]
