"""Keras Tuner's oracles, which draw the trials, with state that survives `kill -9` at any moment.

What is changed: files are written whole; a trial that was drawn but is not yet in the oracle's file is drawn again; a trial that was
running goes back to whoever ran it; random numbers depend on the seed and the trials, not on how often the process was started.
"""

import functools
import json
import warnings

import keras_tuner
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sivdnas_tf.run_dir import write_bytes

OBJECTIVE = "validation_accuracy"
_ENDLESS = 10**6  # Hyperband's iterations, failures in a row: max_trials ends a run


class _Kept:
    """A mixin over an `Oracle`.

    Attributes:
      on_end: function that is called with a trial that has ended, after the state is written.
      serves_workers: whether this is a chief, whose workers may outlive it and come back for their trials.
    """

    on_end = staticmethod(lambda trial: None)
    serves_workers = False

    def save(self):
        """Writes oracle.json, whole or not at all."""
        write_bytes(self._get_oracle_fname(), json.dumps(self.get_state()).encode())

    def _save_trial(self, trial):
        write_bytes(f"{self._get_trial_dir(trial.trial_id)}/trial.json", json.dumps(trial.get_state()).encode())

    def reload(self):
        """Reads the state; trials that ran when it was written are run again, by the same worker where it comes back."""
        super().reload()
        # Drawn, and killed before oracle.json knew of it: drawn again, with the same values and the same number.
        self.trials = {trial_id: trial for trial_id, trial in self.trials.items() if trial_id in self.start_order}
        with open(self._get_oracle_fname(), encoding="utf-8") as stream:
            ongoing = json.load(stream)["ongoing_trials"]
        if self.serves_workers:
            kept = {tuner_id: trial_id for tuner_id, trial_id in ongoing.items() if tuner_id != "tuner0"}  # which ran alone
            self.ongoing_trials = {tuner_id: self.trials[trial_id] for tuner_id, trial_id in kept.items()}
            self._retry_queue = [trial_id for trial_id in self._retry_queue if trial_id not in kept.values()]
        self._retry_queue = list(dict.fromkeys(self._retry_queue))

    @keras_tuner.synchronized
    def end_trial(self, trial):
        """Ends a trial, and says so."""
        super().end_trial(trial)
        self.save()  # what an oracle notes after Keras Tuner's own save
        self.on_end(trial)


class RandomOracle(_Kept, keras_tuner.oracles.RandomSearchOracle):
    """Values at random, each combination once."""


class HyperbandOracle(_Kept, keras_tuner.oracles.HyperbandOracle):
    """Many short trials, the best of which go on."""


class BayesianOracle(_Kept, keras_tuner.oracles.BayesianOptimizationOracle):
    """Values that a Gaussian process expects most of."""

    def populate_space(self, trial_id):
        """As Keras Tuner's, from random numbers of the trial's own, which a process that was started again draws alike."""
        self._random_state = np.random.RandomState(self.seed + len(self.trials))
        with warnings.catch_warnings():  # of a kernel's length at its bound, trial after trial
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().populate_space(trial_id)


class GridOracle(_Kept, keras_tuner.oracles.GridSearchOracle):
    """Every combination, in order."""

    def reload(self):
        """As any oracle's; the order of the trials, which Keras Tuner's file does not hold, is that of their values."""
        super().reload()
        compare = functools.cmp_to_key(lambda one, other: self._compare(self._values(one), self._values(other)))
        before = None
        for trial_id in sorted(self.trials, key=compare):
            self._ordered_ids.insert(trial_id, before)
            before = trial_id
        self._populate_next = list(self.end_order)  # those whose next combination was drawn already are passed over

    def _values(self, trial_id):
        return self.trials[trial_id].hyperparameters.values


def make_oracle(config, hyperparameters):
    """The oracle of a configuration.

    Args:
      config: a `Config`.
      hyperparameters: `keras_tuner.HyperParameters` that hold the whole space.
    """
    tune = config.tune
    common = {
        "objective": keras_tuner.Objective(OBJECTIVE, "max"),
        "hyperparameters": hyperparameters,
        "seed": config.seed + 1,  # 0 means none to Keras Tuner
        "max_consecutive_failed_trials": _ENDLESS,
    }
    if tune.tuner == "hyperband":
        epochs = tune.short_epochs if tune.objective == "short_accuracy" else config.train.epochs
        oracle = HyperbandOracle(max_epochs=epochs, factor=tune.factor, hyperband_iterations=_ENDLESS, **common)
    elif tune.tuner == "bayesian":
        oracle = BayesianOracle(num_initial_points=tune.initial_points or None, **common)
    else:
        oracle = {"random": RandomOracle, "grid": GridOracle}[tune.tuner](**common)
    oracle.max_trials = tune.max_trials
    return oracle


def declare(hyperparameters, space):
    """Declares `Hyperparameter`s in `keras_tuner.HyperParameters`; a field drawn already keeps its value."""
    for one in space:
        if one.kind == "choice":
            hyperparameters.Choice(one.name, list(one.values))
        elif one.kind == "int":
            hyperparameters.Int(one.name, *one.values, step=one.step)
        else:
            sampling = "log" if one.kind == "log_float" else "linear"
            hyperparameters.Float(one.name, *one.values, step=one.step, sampling=sampling)
    return hyperparameters
