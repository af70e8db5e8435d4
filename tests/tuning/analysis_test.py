import numpy as np
import pytest

from sivdnas_tf.tuning.analysis import best_trial, importance, pareto_front
from sivdnas_tf.tuning.space import Hyperparameter

RATE = Hyperparameter("rate", ("train.learning_rate",), "log_float", (0.01, 1.0))
KIND = Hyperparameter("kind", ("search.mixing",), "choice", ("a", "b", "c"))


def trial(number, objective, macs=1, epochs=4, status="completed", **values):
    return {"trial": str(number), "status": status, "objective": objective, "macs": macs, "epochs": epochs, "values": values}


def test_the_best_trial_is_the_most_accurate_then_the_cheapest_then_the_first():
    trials = [trial(0, 0.8, 5), trial(1, 0.9, 7), trial(2, 0.9, 6), trial(3, 0.9, 6), trial(4, None, None, status="not_finite")]
    assert best_trial(trials)["trial"] == "2"
    assert best_trial(trials[4:]) is None and best_trial([]) is None


def test_the_front_holds_what_no_trial_beats():
    trials = [trial(0, 0.8, 5), trial(1, 0.7, 6), trial(2, 0.9, 7), trial(3, 0.9, 7), trial(4, 0.9, 8), trial(5, 0.6, 4), trial(6, 0.8, 9)]
    assert [one["trial"] for one in pareto_front(trials)] == ["5", "0", "2"]
    front = pareto_front(trials)
    for one in trials:  # by its definition
        beaten = any(
            (o["objective"], -o["macs"]) != (one["objective"], -one["macs"])
            and o["objective"] >= one["objective"]
            and o["macs"] <= one["macs"]
            for o in trials
        )
        assert beaten or any((o["objective"], o["macs"]) == (one["objective"], one["macs"]) for o in front)
    assert pareto_front([]) == []


def test_importance_is_one_for_what_decides_and_small_for_what_does_not():
    rng = np.random.default_rng(0)
    rates, kinds = rng.permutation(60) / 60 + 0.01, rng.choice(["a", "b", "c"], 60)
    by_rate = [trial(i, float(-rate), rate=float(rate), kind=str(kind)) for i, (rate, kind) in enumerate(zip(rates, kinds, strict=True))]
    found = importance(by_rate, (KIND, RATE))
    assert list(found) == ["rate", "kind"]  # the largest first
    assert found["rate"] == pytest.approx(1.0) and found["kind"] < 0.4
    by_kind = [{**one, "objective": {"a": 0.1, "b": 0.9, "c": 0.5}[one["values"]["kind"]]} for one in by_rate]
    found = importance(by_kind, (KIND, RATE))
    assert found["kind"] == pytest.approx(1.0) and found["rate"] < 0.4


def test_importance_equals_scipys_rank_correlation():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    rates, objective = rng.random(20), rng.integers(0, 6, 20) / 6  # with ties
    trials = [trial(i, float(o), rate=float(r)) for i, (r, o) in enumerate(zip(rates, objective, strict=True))]
    assert importance(trials, (RATE,))["rate"] == pytest.approx(abs(spearmanr(rates, objective)[0]))


def test_importance_does_not_compare_trials_of_different_epochs():
    # Within each round a larger rate is worse; the rounds together would say the opposite.
    trials = [trial(i, 0.5 - 0.1 * i, epochs=1, rate=0.1 * (i + 1)) for i in range(3)]
    trials += [trial(3 + i, 0.9 - 0.1 * i, epochs=4, rate=1.0 + i) for i in range(3)]
    assert importance(trials, (RATE,))["rate"] == pytest.approx(1.0)


def test_importance_of_few_or_equal_trials():
    assert importance([trial(0, 0.1, rate=1.0), trial(1, 0.2, rate=2.0)], (RATE,)) == {}
    equal = [trial(i, 0.5, rate=float(i), kind="a") for i in range(4)]
    assert importance(equal, (RATE, KIND)) == {"rate": 0.0, "kind": 0.0}
