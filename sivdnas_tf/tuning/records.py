"""What `tune` leaves in the run directory beside the trials' own: results, table, summary, picture, best configuration. No TensorFlow.

tune/results/ID.json     written as a trial ends, by the process that ran it
tune/trials.jsonl        the same, an object a line, in the order of the trials
tune/summary.json        best trial, Pareto front, importance; max_trials says how many trials it is of
tune/pareto.svg          objective against multiply-adds
tune/best_config.py      written last: its presence says that the trials are done
"""

import json

from sivdnas_tf.errors import BudgetError, NonFiniteError
from sivdnas_tf.report.curves import Series, scatter_chart
from sivdnas_tf.run_dir import read_json, write_bytes, write_json
from sivdnas_tf.tuning import analysis
from sivdnas_tf.tuning.settings import best_config, config_source

HEADER = f"tune: {'trial':>5}  {'accuracy':>8}  {'macs':>13}  {'seconds':>8}  values"
_FAILURES = {"over_budget": "over budget", "not_finite": "NaN", "out_of_memory": "memory"}
STATUSES = ("completed", *_FAILURES)
_DOT, _FRONT = "#0072b2", "#d55e00"


def new_result(trial_id, values, epochs, directory):
    """The result of a trial before its end.

    Args:
      trial_id: Keras Tuner's, a number as text.
      values: dict of the hyperparameters' names to values.
      epochs: of the training.
      directory: where its stages write, below the run directory.

    Returns:
      dict: `status` (one of `STATUSES`), `reason` (of a failure), `continues` (trial of an earlier round, or None), `objective` (accuracy
      on the validation split, a fraction of 1), `loss`, `macs` and `params` of the deployed network, `seconds`; None as long as unknown.
    """
    unknown = dict.fromkeys(("reason", "continues", "objective", "loss", "macs", "params", "seconds", "genotype_sha256"))
    return {"trial": trial_id, "status": "completed", "values": values, "epochs": epochs, "directory": directory, **unknown}


def _result_file(run_dir, trial_id):
    return run_dir.file(f"tune/results/{int(trial_id)}.json")


def write_result(run_dir, result):
    """Writes tune/results/ID.json of a trial that ended: a dict of JSON types."""
    write_json(_result_file(run_dir, result["trial"]), result)


def read_result(run_dir, trial_id):
    """The result of a trial that ended; raises `RunDirError` where there is none."""
    return read_json(_result_file(run_dir, trial_id))


def read_results(run_dir):
    """The results of all trials that ended, in the order of the trials."""
    paths = run_dir.file("tune/results").glob("[0-9]*.json")
    return [read_json(path) for path in sorted(paths, key=lambda path: int(path.stem))]


def write_trials(run_dir):
    """Writes tune/trials.jsonl anew; returns its objects."""
    trials = read_results(run_dir)
    write_bytes(run_dir.file("tune/trials.jsonl"), "".join(json.dumps(trial, allow_nan=False) + "\n" for trial in trials).encode())
    return trials


def row(trial):
    """A trial's line of the table that is printed as the trials end."""
    accuracy = f"{trial['objective']:.4f}" if trial["status"] == "completed" else "failed"
    macs = "-" if trial["macs"] is None else f"{trial['macs']:,}"
    values = "  ".join(f"{name}={_shown(value)}" for name, value in trial["values"].items())
    further = f"  (from trial {int(trial['continues'])}, to epoch {trial['epochs']})" if trial["continues"] is not None else ""
    reason = "" if trial["status"] == "completed" else f"  {_FAILURES[trial['status']]}: {trial['reason']}"
    return f"tune: {int(trial['trial']):>5}  {accuracy:>8}  {macs:>13}  {trial['seconds']:>8.1f}  {values}{further}{reason}"


def _shown(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_finished(run_dir, max_trials):
    """Whether all of `max_trials` trials, or as many as there are, ended and were summed up."""
    if not run_dir.is_done("tune"):
        return False
    return read_json(run_dir.file("tune/summary.json"))["max_trials"] >= max_trials


def finish(run_dir, config, space, say=print):
    """Sums the trials up: writes summary.json, pareto.svg and best_config.py, and says the best.

    Args:
      run_dir: the `RunDir`.
      config: the `Config` of the run.
      space: its `Hyperparameter`s.
      say: function of a line for the user.

    Raises:
      BudgetError: where every trial was over the budget.
      NonFiniteError: where no trial was completed for other reasons too.
    """
    trials = write_trials(run_dir)
    best, front = analysis.best_trial(trials), analysis.pareto_front(trials)
    if best is None:
        _refuse_failures(trials)
    shares = analysis.importance(trials, space)
    summary = {
        "max_trials": config.tune.max_trials,
        "trials": {status: sum(trial["status"] == status for trial in trials) for status in STATUSES},
        "best": best,
        "pareto_front": [trial["trial"] for trial in front],
        "importance": {"estimate": analysis.ESTIMATE, "values": shares},
    }
    write_bytes(run_dir.file("tune/pareto.svg"), _picture(trials, front).encode())
    write_json(run_dir.file("tune/summary.json"), summary)
    path = run_dir.file("tune/best_config.py")
    write_bytes(path, config_source(best_config(config, space, best["values"]), _docstring(config, best, trials, path)).encode())
    for line in _summary_lines(best, front, shares, path):
        say(line)


def _refuse_failures(trials):
    reason = f"the last one: {trials[-1]['reason']}" if trials else "none was drawn"
    if trials and all(trial["status"] == "over_budget" for trial in trials):
        raise BudgetError(
            f"every trial of tune was over the budget ({reason}). Expected a larger config.budget, or a space that holds cheaper networks. "
            f"Received: {len(trials)} trials"
        )
    raise NonFiniteError(
        f"no trial of tune was completed ({reason}). Expected a space that holds settings that train. {len(trials)} trials"
    )


def _docstring(config, best, trials, path):
    end = "searched" if not config.tune.genotype else f"of the cell {config.tune.genotype}, which this file does not name"
    command = "run" if not config.tune.genotype else f"train --genotype={config.tune.genotype}"
    return [
        f"Trial {int(best['trial'])}, the best of {len(trials)} of `tune`: accuracy {best['objective']:.4f} on its validation images.",
        "",
        f"    python -m sivdnas_tf {command} --config={path} --workdir=DIR",
        "",
        f"Its network, {end}, has {best['macs']:,} multiply-adds and {best['params']:,} params; another one comes of all training images.",
        "Objective: " + config.tune.objective + "." + (" There is no budget." if config.tune.objective == "accuracy" else ""),
    ]


def _summary_lines(best, front, shares, path):
    values = "  ".join(f"{name}={_shown(value)}" for name, value in best["values"].items())
    yield f"tune: best trial {int(best['trial'])}: accuracy {best['objective']:.4f}, {best['macs']:,} macs: {values}"
    yield "tune: Pareto front of accuracy and macs: trials " + ", ".join(str(int(trial["trial"])) for trial in front)
    if shares:
        shown = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        yield f"tune: importance ({analysis.ESTIMATE}, an estimate): {shown}"
    yield f"tune: {path} holds the best configuration"


def _picture(trials, front):
    done = analysis.completed(trials)

    def series(name, members, colour, joined):
        x, y = ([trial[key] * scale for trial in members] for key, scale in (("macs", 1e-6), ("objective", 1.0)))
        return Series(name, tuple(x), tuple(y), colour, dash="4 3" if joined else "")

    return scatter_chart(
        [series("trials", done, _DOT, joined=False), series("Pareto front", front, _FRONT, joined=True)],
        labels=[str(int(trial["trial"])) for trial in done],
        title="accuracy on the validation images against multiply-adds",
        x_label="million multiply-adds of the deployed network",
    )
