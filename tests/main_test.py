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

ZOO = [name for name in registry.names() if "searched" not in registry.entry(name)]  # the published ones


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
def test_another_configuration_is_refused_by_name_and_changes_nothing(
    refusal, listing, trained, tiny_config, tmp_path, arguments, expected
):
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
    monkeypatch.setattr(train, "run_train", lambda config, *rest, **_: calls.append(("train", config, rest[-2])))
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
    assert config.search.kl_weight == (0.25 if command == "search" else 0.05)


def test_over_the_budget_is_exit_code_3_and_changes_nothing(refusal, listing, searched, trained, tiny_config, tmp_path):
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
    assert not (tmp_path / "new").exists()


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
        "tune",
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
    assert lines[2].startswith("search: 3 epochs of 5 steps of 2 x 128 images of 8x8x1, ")
    assert lines[3] == "train: 2 epochs of 10 steps of 128 images"
    assert "with all that can be kept; budget 160,000" in lines[4]
