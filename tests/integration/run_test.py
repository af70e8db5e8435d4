"""The whole pipeline at size one, through the command line."""

import json

import pytest

from sivdnas_tf.__main__ import main

SIZE_ONE = {
    "search.epochs": 2,
    "search.warmup_epochs": 1,
    "search.batch_size": 256,
    "train.channels": 4,
    "train.cells": 3,
    "train.epochs": 1,
    "train.batch_size": 256,
    # Tight for the network that is trained: an untrained posterior is derived sparse, and a sparse network traces fast.
    "budget.channels": 4,
    "budget.cells": 3,
    "budget.macs": 80000,
}
# What INTERFACE.md lists for the stages that are built.
FILES = (
    "config.json",
    "search/metrics.jsonl",
    "search/posterior_history.npz",
    "search/posterior.npz",
    "search/checkpoints",
    "search/tensorboard",
    "genotype.json",
    "derive.json",
    "train/metrics.jsonl",
    "train/checkpoints",
    "train/tensorboard",
    "train/weights.weights.h5",
    "evaluation.json",
    "export/saved_model/1/saved_model.pb",
    "export/model.onnx",
    "export/model_fp32.tflite",
    "export/manifest.json",
    "report.html",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """The arguments of a `run` that is done, and its directory."""
    workdir = tmp_path_factory.mktemp("pipeline") / "run"
    overrides = [f"--config.{name}={value}" for name, value in SIZE_ONE.items()]
    config = request.config.rootpath / "configs/quickstart.py"
    arguments = ["sivdnas_tf", "run", f"--config={config}", f"--workdir={workdir}", *overrides]
    assert main(arguments) == 0
    return arguments, workdir


@pytest.mark.parametrize("name", FILES)
def test_the_run_directory_has(run, name):
    assert (run[1] / name).exists()


def test_the_evaluation_is_of_the_test_split(run):
    result = json.loads((run[1] / "evaluation.json").read_text())
    assert result["split"] == "test"
    assert result["images"] == 359
    assert 0 <= result["top1"] <= result["top5"] <= 1


def test_run_again_finds_every_stage_done(run, capsys):
    assert main(run[0]) == 0
    lines = capsys.readouterr().out.splitlines()
    for stage in ("search", "derive", "train", "evaluate", "export"):
        assert any(line.startswith(f"{stage}: done already") for line in lines), stage


def test_another_configuration_is_refused_and_changes_nothing(run, capsys):
    before = (run[1] / "config.json").read_bytes()
    assert main([*run[0], "--config.search.kl_weight=0.5"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "search.kl_weight=0.05, now 0.5" in error[0]
    assert (run[1] / "config.json").read_bytes() == before


def test_over_the_budget_derive_exits_with_3_and_keeps_the_genotype(run, capsys):
    before = (run[1] / "genotype.json").read_bytes()
    assert main(["sivdnas_tf", "derive", f"--workdir={run[1]}", "--budget_macs=1", "--overwrite"]) == 3
    assert "costs more than the budget allows" in capsys.readouterr().err
    assert (run[1] / "genotype.json").read_bytes() == before
