"""`budget.latency_ms` as derive and train hold it: once by a real measurement, elsewhere by a scripted one."""

import json

import pytest

from export import latency
from sivdnas_tf.config import Config, replace
from sivdnas_tf.data.datasets import load_datasets
from sivdnas_tf.errors import BudgetError, ConfigError
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.training import train
from sivdnas_tf.zoo import registry

IMPOSSIBLE = 1e-6  # milliseconds


@pytest.fixture(name="measured")
def fixture_measured(monkeypatch):
    """Genotypes that were measured, each in 10 milliseconds."""
    genotypes = []

    def deployed_latency_ms(genotype, budget):
        genotypes.append(genotype)
        return 10.0

    monkeypatch.setattr(latency, "deployed_latency_ms", deployed_latency_ms)
    return genotypes


def limit(run, milliseconds):
    """Sets the limit in the configuration of a run, as a search with it would have left it."""
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["budget"]["latency_ms"] = milliseconds
    path.write_text(json.dumps(config))
    return f"--config.budget.latency_ms={milliseconds}"


def test_an_impossible_limit_is_exit_code_3_and_changes_nothing(refusal, listing, searched, tiny_config, tmp_path):
    run = searched.copy(tmp_path / "run")
    flag = limit(run, IMPOSSIBLE)
    before = listing(run)
    message = refusal("derive", f"--workdir={run}", code=3)
    assert "the sparsest network that rule budget can derive takes longer than the budget allows" in message
    assert "Expected at most 1e-06 ms an image, the median in tflite_1 on this machine" in message
    assert listing(run) == before
    arguments = [f"--config={tiny_config}", f"--workdir={tmp_path}/new", "--genotype=DARTS_V2", "--config.budget.macs=1e9", flag]
    message = refusal("train", *arguments, code=3)
    assert "the deployed network takes longer than the budget allows" in message and "channels=4, cells=3" in message
    assert not (tmp_path / "new").exists()


def test_derive_measures_once_and_a_rerun_not_again(call, searched, measured, tmp_path):
    run = searched.copy(tmp_path / "run")
    limit(run, 10.0)
    code, out, _ = call("derive", f"--workdir={run}")
    assert code == 0 and len(measured) == 1
    assert "derive: 10 of 10 ms an image in tflite_1 on this machine" in out.splitlines()
    details = json.loads((run / "derive.json").read_text())
    assert details["latency"]["ms"] == 10.0 and details["budget"]["latency_runtime"] == "tflite_1"
    code, out, _ = call("derive", f"--workdir={run}")
    assert (code, len(measured), out) == (0, 1, f"derive: done already ({run}/genotype.json)\n")


class Begun(Exception):
    """Stands in for a training."""


@pytest.fixture(name="no_training")
def fixture_no_training(monkeypatch):
    def begin(*_):
        raise Begun

    monkeypatch.setattr(train, "begin_stage", begin)


def test_train_measures_what_derive_did_not(call, refusal, searched, measured, no_training, tiny_config, tmp_path):
    run = searched.copy(tmp_path / "run")
    flag = limit(run, 10.0)
    assert call("derive", f"--workdir={run}")[0] == 0 and len(measured) == 1
    arguments = ["train", f"--config={tiny_config}", f"--workdir={run}"]
    with pytest.raises(Begun):
        call(*arguments, flag)
    assert len(measured) == 1
    # Under another limit, or in another runtime, what derive measured does not count.
    assert "Received: 10 ms" in refusal(*arguments, "--config.budget.latency_ms=9.5", code=3)
    with pytest.raises(Begun):
        call(*arguments, flag, "--config.budget.latency_runtime=keras")
    assert measured == [RunDir(run).read_genotype()] * 3


def test_a_training_in_python_needs_something_that_measures_until_it_has_begun(searched, no_training, tmp_path):
    run = searched.copy(tmp_path / "run")
    limit(run, 1.0)
    config = Config.from_dict(json.loads((run / "config.json").read_text()))
    arguments = config, registry.load("SNAS_aggressive"), load_datasets(config.data, config.seed), RunDir(run)
    with pytest.raises(ConfigError, match=r"budget.latency_ms needs measure_latency.*Received: latency_ms=1.0"):
        train.run_train(*arguments)
    with pytest.raises(Begun):
        train.run_train(*arguments, measure_latency=lambda genotype: 1.0)
    (run / "stages" / "train.json").write_text("{}")
    with pytest.raises(Begun):
        train.run_train(*arguments)
    with pytest.raises(ConfigError, match="needs measure_latency"):
        train.run_train(*arguments, overwrite=True)
    # A limit that is tightened while a training is under way is held, too.
    with pytest.raises(BudgetError, match=r"Expected at most 0\.5 ms an image.* Received: 1 ms"):
        train.run_train(replace(config, budget={"latency_ms": 0.5}), *arguments[1:], measure_latency=lambda genotype: 1.0)
