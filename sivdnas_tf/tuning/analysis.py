"""What a list of trials says: the best one, the Pareto front, and how much each hyperparameter mattered. Imports no TensorFlow.

A trial is an object of tune/trials.jsonl (`tuning.records`): `status`, `objective`, `macs`, `epochs`, `values`, …
"""

import numpy as np

ESTIMATE = "rank correlation ratio"


def completed(trials):
    """The trials that ended with a value of the objective."""
    return [trial for trial in trials if trial["status"] == "completed"]


def best_trial(trials):
    """The completed trial with the largest objective, of equals the one with the fewest multiply-adds, then the first; or None."""
    return max(completed(trials), key=lambda trial: (trial["objective"], -trial["macs"], -int(trial["trial"])), default=None)


def pareto_front(trials):
    """The completed trials that no other beats in objective (larger) without more multiply-adds, cheapest first, of equals the first."""
    front, best = [], -np.inf
    for trial in sorted(completed(trials), key=lambda trial: (trial["macs"], -trial["objective"], int(trial["trial"]))):
        if trial["objective"] > best:
            front.append(trial)
            best = trial["objective"]
    return front


def importance(trials, space):
    """How far a hyperparameter alone tells how a trial ranks: 0 not at all, 1 entirely; {} for fewer than three completed trials.

    Of a number it is the absolute correlation of its ranks with the objective's (Spearman's), of a choice the correlation ratio: the
    square root of the share of the variance of the objective's ranks that lies between its values. Ranks are among trials of the same
    number of epochs, so that Hyperband's rounds are not compared with each other. An estimate from few trials: chance alone gives
    values around 1 / sqrt(trials), and more for a choice of many values; interactions are not seen.

    Args:
      trials: trials.
      space: `Hyperparameter`s.

    Returns:
      dict of names to floats, the largest first.
    """
    trials = completed(trials)
    if len(trials) < 3:
        return {}
    epochs = np.array([trial["epochs"] for trial in trials])
    objective = _ranks_within([trial["objective"] for trial in trials], epochs)
    found = {}
    for hyperparameter in space:
        values = [trial["values"][hyperparameter.name] for trial in trials]
        if hyperparameter.kind == "choice":
            found[hyperparameter.name] = _correlation_ratio([str(value) for value in values], objective)
        else:
            found[hyperparameter.name] = _correlation(_ranks_within(values, epochs), objective)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _ranks_within(values, groups):
    """Ranks of the values within their groups from 0 to 1, float [n]; equals share the mean of their ranks, a value alone has 1/2."""
    values, ranks = np.asarray(values, np.float64), np.full(len(values), 0.5)
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        of_group = values[inside]
        below = (of_group[:, np.newaxis] > of_group).sum(axis=1)
        equal = (of_group[:, np.newaxis] == of_group).sum(axis=1)
        if len(inside) > 1:
            ranks[inside] = (below + (equal - 1) / 2) / (len(inside) - 1)
    return ranks


def _correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(abs(x @ y) / scale) if scale > 0 else 0.0


def _correlation_ratio(labels, y):
    labels, total = np.array(labels), ((y - y.mean()) ** 2).sum()
    members = [y[labels == label] for label in np.unique(labels)]
    between = sum(len(group) * (group.mean() - y.mean()) ** 2 for group in members)
    return float(np.sqrt(between / total)) if total > 0 else 0.0
