"""Keras Tuner over the stages: the hypermodel, the tuner, and `run_tune`.

Keras Tuner's `Tuner` builds Keras models and drives `fit`; a trial here is a run directory whose stages save and continue by themselves.
So this tuner stands on its `BaseTuner` and oracles, which draw the trials, keep them, and serve them to workers.
"""

import contextlib
import io
import os
import time

import grpc
import keras_tuner
import tensorflow as tf
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.errors import FailedTrialError
from tensorboard.plugins.hparams import api as hparams

from sivdnas_tf.errors import ConfigError, RunDirError, StorageError, WorkerLostError
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.tuning import records
from sivdnas_tf.tuning.cluster import chief_address
from sivdnas_tf.tuning.oracles import OBJECTIVE, declare, make_oracle
from sivdnas_tf.tuning.settings import trial_config
from sivdnas_tf.tuning.trials import TrialFailed, run_trial, trained_seconds

_IDLE_SECONDS = 1.0  # between two questions for a trial while there is none yet


class StagesHyperModel(keras_tuner.HyperModel):
    """The stages as a function of hyperparameters: `build` gives a trial's `Config`, `fit` runs its stages.

    Args:
      config: the `Config` of the run.
      space: its `Hyperparameter`s.
    """

    def __init__(self, config, space):
        super().__init__(name="stages")
        self._config, self._space = config, space

    def build(self, hp):
        """The trial's `Config`; raises `ConfigError` where its values do not go together."""
        declare(hp, self._space)
        return trial_config(self._config, self._space, self.values(hp))

    def values(self, hp):
        """dict of the hyperparameters' names to values as the configuration holds them."""
        return {one.name: one.value_of(hp.get(one.name)) for one in self._space}

    def fit(self, hp, config, trial_input, run_dir, epochs, say):
        """Runs the trial up to an epoch; returns and raises as `run_trial`."""
        del hp
        keep = self._config.tune.tuner == "hyperband"
        return run_trial(config, trial_input, run_dir, epochs=epochs, keep_checkpoints=keep, say=say)


class StagesTuner(BaseTuner):
    """Runs an oracle's trials, each in a directory of its own, and leaves a result of each.

    Args:
      config: the `Config` of the run.
      space: its `Hyperparameter`s.
      run_dir: the `RunDir`.
      trial_input: the `TrialInput`; None for a chief, which runs no trial.
      say: function of a line for the user.
      is_worker: whether a chief draws the trials.
    """

    def __init__(self, config, space, run_dir, trial_input, say, is_worker=False):
        self._run_dir, self._input, self._say = run_dir, trial_input, say
        self._serves, self._asked = not is_worker, 0
        oracle = make_oracle(config, declare(keras_tuner.HyperParameters(), space))
        oracle.serves_workers = not is_worker and "KERASTUNER_TUNER_ID" in os.environ
        super().__init__(
            oracle, StagesHyperModel(config, space), directory=str(run_dir.file("tune")), project_name="oracle", overwrite=False
        )

    def _get_tuner_fname(self):
        # The oracle's file is all the state there is; a worker has none.
        return os.path.join(self.project_dir, "oracle.json" if self._serves else f"{self.tuner_id}.none")

    def save(self):
        """Saves the oracle's state; a worker has none."""
        if self._serves:
            self.oracle.save()

    def reload(self):
        """Reloads the oracle's state."""
        self.oracle.reload()

    def pre_create_trial(self):
        """Waits a moment where the question before was answered with no trial yet."""
        if self._asked:
            time.sleep(_IDLE_SECONDS)
        self._asked += 1

    def _try_run_and_update_trial(self, trial, *fit_args, **fit_kwargs):
        """As Keras Tuner's, which makes a failed trial of any error: here what is not the trial's fault ends the run."""
        self._asked = 0
        try:
            self._run_and_update_trial(trial, *fit_args, **fit_kwargs)
            trial.status = "COMPLETED"
        except FailedTrialError as error:
            trial.status, trial.message = "FAILED", str(error)

    def run_trial(self, trial):
        """Runs a trial, or what is left of it; returns the objective.

        Raises:
          FailedTrialError: where it is over the budget, or its loss not finite; the result says so.
          UserError, Interrupted, StorageError: as `trials.run_trial`.
        """
        hp = trial.hyperparameters
        config = self.hypermodel.build(hp)
        first, epochs = hp.values.get("tuner/initial_epoch", 0), hp.values.get("tuner/epochs", config.train.epochs)
        name = f"tune/trials/{int(self._root(trial))}"
        directory = RunDir(self._run_dir.file(name))
        result = records.new_result(trial.trial_id, self.hypermodel.values(hp), epochs, name)
        result["continues"] = hp.values["tuner/trial_id"] if first else None
        with _log(directory) as log:
            try:
                result |= self.hypermodel.fit(hp, config, self._input, directory, epochs, log)
            except TrialFailed as failure:
                result |= {"status": failure.status, "reason": failure.reason}
        result["seconds"] = round(trained_seconds(directory, first), 3)
        _write_events(self._run_dir.file(f"tune/tensorboard/{int(trial.trial_id)}"), result)
        records.write_result(self._run_dir, result)
        self._say(records.row(result))
        if result["status"] != "completed":
            raise FailedTrialError(result["reason"])
        return {OBJECTIVE: result["objective"]}

    def _root(self, trial):
        """Number of the trial whose directory this one continues in: its own, or that of the first of Hyperband's rounds."""
        while trial.hyperparameters.values.get("tuner/initial_epoch"):
            trial = self.oracle.get_trial(trial.hyperparameters.values["tuner/trial_id"])
        return trial.trial_id


@contextlib.contextmanager
def _log(directory):
    """Yields a function of a line, which is appended to the trial's log.txt: the terminal has a row a trial."""
    with open(directory.file("log.txt"), "a", encoding="utf-8") as stream:

        def say(line):
            stream.write(line + "\n")
            stream.flush()

        yield say


def _write_events(directory, result):
    """A trial for TensorBoard's HParams: its values, objective and multiply-adds; raises `StorageError` on a full disk."""
    for stale in directory.glob("events*"):  # of the same trial, before a kill
        stale.unlink()
    try:
        writer = tf.summary.create_file_writer(str(directory))
        with writer.as_default():
            hparams.hparams(result["values"], trial_id=result["trial"])
            for name in ("objective", "macs", "seconds"):
                if result[name] is not None:
                    tf.summary.scalar(name, result[name], step=result["epochs"])
        writer.close()
    except tf.errors.OpError as error:
        reason = error.message.splitlines()[0]
        raise StorageError(f"tune: writing in {directory} failed: {reason}. Make room there; the same command continues") from error


def run_tune(config, space, run_dir, role, trial_input, say=print):
    """Runs trials until there are `config.tune.max_trials`, continuing those of an earlier process.

    Args:
      config: a `Config` that `settings.check_tune` passed.
      space: its `Hyperparameter`s.
      run_dir: the `RunDir`, of which tune/ is written; shared by a chief and its workers.
      role: "alone", "chief" or "worker" (`cluster.tuner_role`).
      trial_input: the `TrialInput`; None for a chief.
      say: function of a line for the user.

    Raises:
      UserError, Interrupted, StorageError: as `trials.run_trial`.
      ConfigError: where the chief cannot listen at its address.
      WorkerLostError: where a worker's chief is gone.
    """
    _check_state(run_dir)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Keras Tuner says what it reloads
            tuner = StagesTuner(config, space, run_dir, trial_input, say, is_worker=role == "worker")
        if role != "worker":
            tuner.oracle.verbose = 0
            tuner.oracle.on_end = _reporter(run_dir, role, say)
            tuner.save()
        say(records.HEADER)
        tuner.search()
    except grpc.RpcError as error:
        raise WorkerLostError(
            f"tune: the chief at {chief_address()} is gone ({error.code().name}); the trial's last good checkpoint stays. Start the same "
            "command again, on the chief first"
        ) from error
    except RuntimeError as error:  # gRPC's, for an address in use
        if role != "chief" or "bind" not in str(error).lower():
            raise
        raise ConfigError(f"the chief cannot listen. Expected a free port of this host. Received: {chief_address()}") from error


def _check_state(run_dir):
    """Raises `RunDirError` where a file of the oracle was damaged: Keras Tuner would end in a traceback."""
    oracle = run_dir.file("tune/oracle")
    for path in [*oracle.glob("oracle.json"), *oracle.glob("trial_*/trial.json")]:  # no temporary file that a kill left
        read_json(path)


def _reporter(run_dir, role, say):
    """What is called with a trial that ended: tune/trials.jsonl anew, and from the chief, whose workers ran it, its row."""

    def report(trial):
        try:
            records.write_trials(run_dir)
            if role == "chief":
                say(records.row(records.read_result(run_dir, trial.trial_id)))
        except (OSError, RunDirError) as error:  # a chief that raised here would keep the oracle locked; the end writes the file again
            say(f"tune: {run_dir.file('tune/trials.jsonl')} could not be written: {error}")

    return report
