"""The tuner over trials that take no time: what is drawn, continued, failed and counted."""

import json
import socket

import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.errors import ConfigError, RunDirError
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.tuning import tuner as tuner_module
from sivdnas_tf.tuning.settings import check_tune
from sivdnas_tf.tuning.trials import TrialFailed

SPACE = (
    ("train.learning_rate", "log_float", 0.01, 1.0, 10),
    ("train.channels,budget.channels", "int", 4, 12, 4),
    ("data.flip", "choice", True, False),
)
# A Gaussian process takes seconds a trial.
TUNERS = ("random", "hyperband", "grid", pytest.param("bayesian", marks=pytest.mark.slow))


def config_of(tuner, max_trials, **sections):
    tune = {"tuner": tuner, "space": SPACE, "max_trials": max_trials, "initial_points": 3, "factor": 2}
    return replace(Config(), train={"epochs": 4}, tune=tune, **sections)


class Trials:
    """Stands in for `run_trial`: a made-up accuracy at once; stops the process, so to speak, at the calls of `kill_at`."""

    def __init__(self, kill_at=(), error=KeyboardInterrupt, failing=lambda config: None):
        self.calls, self._kill_at, self._error, self._failing = [], set(kill_at), error, failing

    def __call__(self, config, trial_input, run_dir, *, epochs, keep_checkpoints, say):
        number = len(self.calls)
        self.calls.append((int(run_dir.path.name), config.train.learning_rate, config.train.channels, config.data.flip, epochs))
        if number in self._kill_at:
            raise self._error("stopped")
        if failure := self._failing(config):
            raise failure
        accuracy = 0.5 + config.train.learning_rate / 10 + config.train.channels / 100 + epochs / 100
        macs = config.budget.channels * 1000
        return {"objective": accuracy, "loss": 1.0, "macs": macs, "params": 1, "epochs": epochs, "genotype_sha256": "0"}


@pytest.fixture(name="tune")
def fixture_tune(monkeypatch, tmp_path):
    """A function that runs `run_tune` in a directory of a name, and returns the trials' values."""

    def tune(name, config, trials):
        monkeypatch.setattr(tuner_module, "run_trial", trials)
        run_dir = RunDir(tmp_path / name)
        tuner_module.run_tune(config, check_tune(config), run_dir, "alone", None, say=lambda line: None)
        return [json.loads(line) for line in run_dir.file("tune/trials.jsonl").read_text().splitlines()]

    return tune


@pytest.mark.parametrize("kind", TUNERS)
def test_the_same_seed_gives_the_same_trials_and_another_seed_others(tune, kind):
    expected = tune("a", config_of(kind, 8), Trials())
    assert len(expected) == 8 and [int(one["trial"]) for one in expected] == list(range(8))
    assert tune("b", config_of(kind, 8), Trials()) == expected
    if kind != "grid":
        assert tune("c", config_of(kind, 8, seed=1), Trials()) != expected


@pytest.mark.parametrize("kind", TUNERS)
@pytest.mark.parametrize("kills", [(0,), (3,), (2, 3, 6)])
def test_a_run_that_is_stopped_again_and_again_has_the_trials_of_one_that_is_not(tune, kind, kills):
    expected = tune("whole", config_of(kind, 8), Trials())
    trials = Trials(kills)
    for _ in kills:
        with pytest.raises(KeyboardInterrupt):
            tune("stopped", config_of(kind, 8), trials)
    actual = tune("stopped", config_of(kind, 8), trials)
    assert actual == expected
    for kill in kills:
        assert trials.calls[kill + 1] == trials.calls[kill]  # the same trial, in the same directory


def test_a_gaussian_process_draws_the_same_trial_after_a_stop(tune):
    expected = tune("whole", config_of("bayesian", 4), Trials())
    trials = Trials([1, 3])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune("stopped", config_of("bayesian", 4), trials)
    assert tune("stopped", config_of("bayesian", 4), trials) == expected


@pytest.mark.parametrize("kind", TUNERS)
def test_more_trials_can_be_added(tune, kind):
    expected = [{**one, "trial": int(one["trial"])} for one in tune("whole", config_of(kind, 12), Trials())]
    first = tune("added", config_of(kind, 5), Trials())
    trials = Trials()
    actual = tune("added", config_of(kind, 12), trials)
    assert len(first) == 5 and len(trials.calls) == 7 and actual[:5] == first
    numbers = ("trial", "continues", "directory")
    for one, other in zip(actual, expected, strict=True):  # numbers are padded to the width of max_trials
        assert {key: value for key, value in one.items() if key not in numbers} == {k: v for k, v in other.items() if k not in numbers}


def test_a_trial_that_was_drawn_but_not_yet_noted_is_drawn_again(tune, tmp_path):
    expected = tune("whole", config_of("random", 3), Trials())
    trials = Trials([1])
    with pytest.raises(KeyboardInterrupt):
        tune("cut", config_of("random", 3), trials)
    oracle = tmp_path / "cut/tune/oracle/oracle.json"
    # As a kill between the trial's file and the oracle's leaves it.
    state = json.loads(oracle.read_text())
    state |= {"ongoing_trials": {}, "start_order": state["start_order"][:1], "seed_state": state["seed_state"] - len(SPACE)}
    state["tried_so_far"].remove(state["id_to_hash"].pop("1"))
    oracle.write_text(json.dumps(state))
    assert tune("cut", config_of("random", 3), trials) == expected


def test_a_grid_goes_through_every_combination_once_and_ends_by_itself(tune):
    trials = tune("grid", config_of("grid", 100), Trials())
    values = [tuple(trial["values"].values()) for trial in trials]
    assert sorted(values) == sorted((rate, width, flip) for rate in (0.01, 0.1, 1.0) for width in (4, 8, 12) for flip in (True, False))


def test_hyperbands_rounds_continue_the_best_trials_where_they_are(tune):
    results = tune("bands", config_of("hyperband", 12), Trials())
    by_number = {int(one["trial"]): one for one in results}
    further = [one for one in results if one["continues"] is not None]
    assert {one["epochs"] for one in results} == {1, 2, 4} and further
    for one in further:
        before = by_number[int(one["continues"])]
        assert before["values"] == one["values"] and before["epochs"] * 2 == one["epochs"]
        assert before["directory"] == one["directory"]
    chosen = [by_number[int(one["continues"])]["objective"] for one in further if one["epochs"] == 2]
    first = sorted((one["objective"] for one in results[:8] if one["epochs"] == 1), reverse=True)
    assert set(chosen) <= set(first[: len(chosen) + 1])


def test_failed_trials_are_counted_and_do_not_end_the_run(tune):
    def failing(config):
        if config.train.channels == 12:
            return TrialFailed("over_budget", "too wide")
        return TrialFailed("not_finite", "NaN") if config.train.channels == 8 else None

    trials = Trials(failing=failing)
    results = tune("failed", config_of("grid", 18), trials)
    found = {one["values"]["train.channels,budget.channels"]: (one["status"], one["reason"]) for one in results}
    assert found == {4: ("completed", None), 8: ("not_finite", "NaN"), 12: ("over_budget", "too wide")}
    assert len(results) == len(trials.calls) == 18  # none is tried twice, and any number may fail in a row


@pytest.mark.parametrize("error", [ConfigError, RuntimeError])
def test_what_is_not_the_trials_fault_ends_the_run_at_once(tune, error):
    trials = Trials([1], error)
    with pytest.raises(error, match="stopped"):
        tune("wrong", config_of("random", 5), trials)
    assert len(trials.calls) == 2


def test_a_damaged_state_is_refused_by_name(tune, tmp_path):
    tune("damaged", config_of("random", 2), Trials())
    (tmp_path / "damaged/tune/oracle/oracle.json").write_text("{")
    with pytest.raises(RunDirError, match=r"cannot read .*oracle\.json"):
        tune("damaged", config_of("random", 3), Trials())


def test_what_a_kill_leaves_of_a_file_is_passed_over(tune, tmp_path):
    expected = tune("whole", config_of("random", 3), Trials())
    tune("left", config_of("random", 2), Trials())
    for name in ("tune/oracle/.oracle-x.json", "tune/oracle/trial_0/.trial-x.json", "tune/results/.0-x.json"):
        (tmp_path / "left" / name).write_text("{")
    assert tune("left", config_of("random", 3), Trials()) == expected


def test_a_chief_that_cannot_listen_says_so(monkeypatch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
        for name, value in zip(names, ("chief", "127.0.0.1", str(taken.getsockname()[1])), strict=True):
            monkeypatch.setenv(name, value)
        config = config_of("random", 2)
        with pytest.raises(ConfigError, match=r"the chief cannot listen\. Expected a free port of this host\. Received: 127\.0\.0\.1:"):
            tuner_module.run_tune(config, check_tune(config), RunDir(tmp_path), "chief", None, say=lambda line: None)


def test_tensorboard_gets_values_and_objective_of_every_trial(tune, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    results = tune("board", config_of("random", 3), Trials())
    for one in results:
        events = EventAccumulator(str(tmp_path / f"board/tune/tensorboard/{int(one['trial'])}"))
        events.Reload()
        content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        started = metadata.parse_session_start_info_plugin_data(content)
        assert {name: value.number_value or value.bool_value for name, value in started.hparams.items()} == pytest.approx(one["values"])
        assert {"objective", "macs", "seconds"} <= set(events.Tags()["tensors"])
