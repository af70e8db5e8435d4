"""One trial of `tune`: the stages in a run directory of its own, measured on the validation images. Knows nothing of Keras Tuner."""

import dataclasses
import functools
import shutil

import keras
import tensorflow as tf

from sivdnas_tf.config import DeriveConfig
from sivdnas_tf.derive import derive
from sivdnas_tf.errors import BudgetError, NonFiniteError
from sivdnas_tf.profiling.costs import deployed_cost
from sivdnas_tf.run_dir import write_json
from sivdnas_tf.training.evaluate import measure
from sivdnas_tf.training.score import supernet_score
from sivdnas_tf.training.search import run_search
from sivdnas_tf.training.train import PAUSED_WEIGHTS, WEIGHTS, load_trained, run_train
from sivdnas_tf.tuning.validation import with_validation


@dataclasses.dataclass(frozen=True)
class TrialInput:
    """What all trials have in common.

    Attributes:
      datasets: `Datasets` without a test split.
      validation: the `Split` that trials are measured on; in none of the others.
      genotype: the `Genotype` that every trial trains, or None: each searches its own.
      latency_measure: function of a `BudgetConfig` to the `measure_latency` that `run_train` takes.
    """

    datasets: object
    validation: object
    genotype: object
    latency_measure: object


def make_trial_input(config, datasets, genotype, latency_measure):
    """The `TrialInput` of a configuration.

    Args:
      config: the `Config` of the run.
      datasets: `Datasets`, of which the test split is not read.
      genotype, latency_measure: as `TrialInput`.

    Raises:
      DataError: where too few images are left beside the validation split.
    """
    kept, validation = with_validation(datasets, config.tune.validation_fraction, config.seed)
    return TrialInput(kept, validation, genotype, latency_measure)


class TrialFailed(Exception):
    """A trial whose settings do not lead to a network.

    Args:
      status: "over_budget", "not_finite" or "out_of_memory".
      reason: the line for the table.
    """

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status, self.reason = status, reason


def run_trial(config, trial_input, run_dir, *, epochs, keep_checkpoints, say):
    """Searches, derives, trains and measures, or continues wherever the directory's own files say that an earlier process came to.

    Args:
      config: the trial's `Config`.
      trial_input: a `TrialInput`.
      run_dir: the trial's `RunDir`.
      epochs: epochs of `config.train.epochs` after which the training pauses.
      keep_checkpoints: whether a later round may continue the training.
      say: function of a line of the stages.

    Returns:
      dict: `objective` (top-1 accuracy on the validation split, a fraction of 1), `loss`, `macs`, `params`, `epochs`, `genotype_sha256`.

    Raises:
      TrialFailed: where the network is over the budget, the loss is not finite, or the memory does not suffice.
      UserError, Interrupted, StorageError: what would go wrong in any trial, or is not the trial's fault.
    """
    keras.utils.clear_session()  # the graphs of the trial before
    try:
        genotype = trial_input.genotype or _searched(config, trial_input, run_dir, say)
        measure_latency = trial_input.latency_measure(config.budget)
        run_train(config, genotype, trial_input.datasets, run_dir, say=say, measure_latency=measure_latency, until=epochs)
    except BudgetError as error:
        raise TrialFailed("over_budget", str(error)) from error
    except NonFiniteError as error:
        raise TrialFailed("not_finite", str(error).split(". The last good")[0]) from error
    except tf.errors.ResourceExhaustedError as error:
        raise TrialFailed("out_of_memory", error.message.splitlines()[0][:200]) from error
    datasets, weights = trial_input.datasets, WEIGHTS if epochs == config.train.epochs else PAUSED_WEIGHTS
    model = load_trained(config, genotype, datasets, run_dir, weights)
    measured = measure(model, trial_input.validation, mean=datasets.mean, std=datasets.std)
    for stage in ("search",) if keep_checkpoints else ("search", "train"):
        shutil.rmtree(run_dir.file(f"{stage}/checkpoints"), ignore_errors=True)
    cost = deployed_cost(genotype, config.budget)
    return {
        "objective": measured["top1"],
        "loss": measured["loss"],
        "macs": cost.macs,
        "params": cost.params,
        "epochs": epochs,
        "genotype_sha256": genotype.sha256,
    }


def trained_seconds(run_dir, first_epoch=0):
    """Seconds of the epochs of a trial's search, and of its training from an epoch on, by their metrics.jsonl: kills do not count."""
    searched = run_dir.read_metrics("search") if first_epoch == 0 else []
    return sum(record["seconds"] for record in [*searched, *run_dir.read_metrics("train")[first_epoch:]])


def _searched(config, trial_input, run_dir, say):
    """The genotype of the trial's own search."""
    posterior = run_search(config, trial_input.datasets, run_dir, say=say)
    if run_dir.is_done("derive"):  # not derived again: a latency would be measured again
        return run_dir.read_genotype()

    @functools.cache
    def scorer():
        return supernet_score(config, trial_input.datasets, run_dir)

    # The default rule is the method's own, as for the command.
    rule = None if config.derive.rule == DeriveConfig.rule else config.derive.rule
    derivation = derive(
        posterior,
        rule=rule,
        seed=config.derive.seed,
        budget=config.budget,
        measure_latency=trial_input.latency_measure(config.budget),
        samples=config.derive.samples,
        score=lambda genotype: scorer()(genotype),
    )
    write_json(run_dir.file("derive.json"), derivation.details)
    run_dir.write_genotype(derivation.genotype)
    return derivation.genotype
