import importlib.util
import json

import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.errors import ConfigError, WorkerLostError
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.tuning import cluster
from sivdnas_tf.tuning.cluster import tuner_role, wait_for_chief
from sivdnas_tf.tuning.settings import best_config, check_tune, config_source, trial_config, tune_settings

SPACE = (("search.kl_weight", "log_float", 1e-3, 1.0), ("train.channels,budget.channels", "int", 8, 24, 4))
VALUES = {"search.kl_weight": 0.5, "train.channels,budget.channels": 12}
VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def config_of(**tune):
    return replace(Config(), budget={"macs": 5e6, "params": 7e6, "latency_ms": 3.0}, tune={"space": SPACE, **tune})


def test_a_trial_within_the_budget_is_the_configuration_with_its_values():
    config = config_of()
    expected = replace(config, search={"kl_weight": 0.5}, train={"channels": 12}, budget={"channels": 12})
    assert trial_config(config, check_tune(config), VALUES) == expected


def test_without_a_budget_nothing_is_refused_and_the_best_configuration_runs_alike():
    config = config_of(objective="accuracy")
    space = check_tune(config)
    for built in (trial_config(config, space, VALUES), best_config(config, space, VALUES)):
        assert (built.budget.macs, built.budget.params, built.budget.latency_ms, built.budget.channels) == (1e18, 0.0, 0.0, 12)


def test_a_short_training_is_of_trials_only():
    config = config_of(objective="short_accuracy", short_epochs=3)
    space = check_tune(config)
    assert trial_config(config, space, VALUES).train.epochs == 3
    assert best_config(config, space, VALUES).train.epochs == config.train.epochs


def test_a_warm_up_longer_than_the_short_training_is_refused():
    config = replace(config_of(objective="short_accuracy", short_epochs=3), train={"warmup_epochs": 4})
    with pytest.raises(ConfigError, match=r"train\.warmup_epochs must be less than train\.epochs"):
        check_tune(config)


UNTIL_BUDGET = ("search.kl_until_budget", "choice", True, False)


@pytest.mark.parametrize(
    "steered, drawn",
    [
        ({"cost_scale": 0.1}, ()),
        ({}, (("search.cost_scale", "float", 0.0, 0.1),)),
        ({"kl_until_budget": True}, ()),
        ({}, (UNTIL_BUDGET,)),
        ({"kl_until_budget": True, "method": "darts_first"}, (("search.method", "choice", "darts_first", "v_vdnas"),)),
    ],
)
def test_a_search_steered_to_a_budget_needs_one(steered, drawn):
    config = replace(config_of(objective="accuracy", space=(*SPACE, *drawn)), search=steered)
    field = "cost_scale" if "cost_scale" in str((steered, drawn)) else "kl_until_budget"
    with pytest.raises(ConfigError, match=rf"takes the budget away, which search\.{field} steers to"):
        check_tune(config)
    check_tune(replace(config, tune={"objective": "accuracy_within_budget"}))


def test_a_search_without_dropout_rates_needs_no_budget_to_stop_at():
    config = replace(config_of(objective="accuracy"), search={"kl_until_budget": True, "method": "darts_first"})
    check_tune(config)


def test_streams_and_several_workers_in_a_training_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"Expected data\.streaming=False"):
        check_tune(replace(config_of(), data={"streaming": True}))
    with pytest.raises(ConfigError, match="a trial of tune runs on one host"):
        check_tune(replace(config_of(), distribution={"strategy": "multi_worker"}))
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}))
    with pytest.raises(ConfigError, match="a trial of tune runs on one host"):
        check_tune(config_of())


def test_the_record_has_everything_but_the_number_of_trials():
    assert tune_settings(config_of(max_trials=3)) == tune_settings(config_of(max_trials=9))
    for other in (config_of(validation_fraction=0.3), replace(config_of(), search={"epochs": 60}), replace(config_of(), seed=1)):
        assert tune_settings(other) != tune_settings(config_of())


def test_a_configuration_file_gives_the_configuration_back(tmp_path):
    config = replace(
        config_of(),
        seed=3,
        data={"name": 'folder:C:\\my "pets"', "mean": (0.5, 0.25, 0.1), "std": (1, 1, 1)},
        export={"formats": ("onnx",)},
    )
    path = tmp_path / "best.py"
    path.write_text(config_source(config, ['says """ and \\', "", "more"]), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("best", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__ == 'says """ and \\\n\nmore\n'
    assert Config.from_dict(module.get_config().to_dict()) == config


@pytest.mark.parametrize(
    ("values", "role"),
    [
        (("", "", ""), "alone"),
        (("chief", "127.0.0.1", "8000"), "chief"),
        (("worker0", "127.0.0.1", "8000"), "worker"),
        (("worker0", "", ""), None),
        (("", "127.0.0.1", "8000"), None),
        (("worker0", "127.0.0.1", ""), None),
        (("worker0", "127.0.0.1", "http"), None),
        (("worker0", "127.0.0.1", "70000"), None),
        (("tuner0", "127.0.0.1", "8000"), None),
    ],
)
def test_keras_tuners_variables_say_who_draws_and_who_runs(monkeypatch, values, role):
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    if role:
        assert tuner_role() == role
        return
    with pytest.raises(ConfigError, match=r"must all be set, or none of them.*Received: KERASTUNER_TUNER_ID="):
        tuner_role()


def test_a_worker_waits_until_its_chief_has_begun(monkeypatch, tmp_path):
    run_dir, lines, slept = RunDir(tmp_path), [], []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            run_dir.begin("tune", {})

    monkeypatch.setattr(cluster.time, "sleep", sleep)
    wait_for_chief(run_dir, lines.append)
    wait_for_chief(run_dir, lines.append)
    assert len(slept) == 3 and len(lines) == 1 and "waiting for the chief" in lines[0]
    monkeypatch.setattr(cluster, "_PATIENCE_SECONDS", -1.0)
    with pytest.raises(WorkerLostError, match="no chief has begun"):
        wait_for_chief(RunDir(tmp_path / "other"), lines.append)
