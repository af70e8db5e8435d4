"""Fields of config.SearchConfig that the paper does not have reach the supernet that is built, and the loop that runs it."""

import dataclasses

import numpy as np
import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.data.datasets import load_datasets
from sivdnas_tf.methods.registry import METHODS
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.training.search import build_supernet, run_search

SIZE = {"network": "nasbench201", "channels": 4, "cells": 3}
SMALL = replace(
    Config(),
    search={
        "search_space": "nasbench201",
        "channels": 2,
        "cells": 3,
        "epochs": 3,
        "warmup_epochs": 1,
        "steps_per_epoch": 2,
        "batch_size": 8,
        "architecture_learning_rate": 0.05,
    },
    budget={**SIZE, "classes": 10, "resolution": 8, "image_channels": 1},
    train={**SIZE, "auxiliary_weight": 0.0},
    data={"flip": False, "crop_padding": 1},
)
OPTIONS = {
    "noise_in": "architecture",
    "kl_centered": True,
    "kl_until_budget": True,
    "kl_ramp_epochs": 2,
    "dropout_rate_learning_rate": 0.2,
    "normalize_skips": True,
    "gate_gradient": "straight_through",
}


def build(**search):
    return build_supernet(replace(SMALL, search=search), (8, 8, 1), 10, 2)


def test_options_reach_the_supernet():
    plain, optional = build(), build(**OPTIONS)
    assert (plain.noise_in, plain.kl_centered, plain.gate_gradient, plain.dropout_rate_optimizer) == ("both", False, "none", None)
    assert (plain.kl_until_budget, optional.kl_until_budget) == (False, True)
    assert (optional.noise_in, optional.kl_centered, optional.gate_gradient) == ("architecture", True, "straight_through")
    assert float(optional.dropout_rate_optimizer.learning_rate) == pytest.approx(0.2)
    assert float(optional.architecture_optimizer.learning_rate) == pytest.approx(0.05)
    skips = [network.cells[0]._mixed[0]._skip for network in (plain, optional)]
    assert skips == ["image", "skip"]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.trains_supernet])
def test_what_a_method_has_no_use_for_has_no_effect(method):
    network = build(method=method, **OPTIONS | {"noise_in": "both"})
    has_rates, has_gates = bool(network.dropout_rate_variables), method == "si_vdnas"
    assert (network.dropout_rate_optimizer is not None) is has_rates is network.kl_until_budget
    assert network.gate_gradient == ("straight_through" if has_gates else "none")


def test_an_interrupted_search_with_an_optimizer_of_the_rates_ends_as_it_would_have(tmp_path):
    # A budget that is not reached, so that the divergence, ramp and centring count to the end.
    config = replace(SMALL, search=OPTIONS, deterministic=True, checkpoint={"keep": 3}, budget={"macs": 1e3})
    datasets = load_datasets(config.data, config.seed)
    whole = run_search(config, datasets, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop_after_two(line):
        if line.startswith("search 2/3"):
            raise Stop

    with pytest.raises(Stop):
        run_search(config, datasets, tmp_path / "stopped", say=stop_after_two)
    continued = run_search(config, datasets, tmp_path / "stopped")
    for field in dataclasses.fields(whole.normal):
        np.testing.assert_array_equal(getattr(continued.normal, field.name), getattr(whole.normal, field.name))
    assert not np.array_equal(whole.normal.log_operation_dropout_rate, np.full((6, 4), -5.0, np.float32))


def test_pruning_ends_at_the_budget(tmp_path):
    # Ten architecture steps of up to 0.7 take log delta from -5 past 0: far past this budget, unless the divergence stops weighing there.
    fast = {"epochs": 6, "kl_weight": 1.0, "architecture_learning_rate": 0.7, "method": "h_vdnas"}
    config, expected = replace(SMALL, search=fast, budget={"macs": 150e3}), []
    datasets = load_datasets(config.data, config.seed)
    for until_budget in (False, True):
        run_dir = RunDir(tmp_path / str(until_budget))
        run_search(replace(config, search={"kl_until_budget": until_budget}), datasets, run_dir, say=lambda line: None)
        expected.append([record["expected_macs"] for record in run_dir.read_metrics("search")])
    on, ended = expected
    assert on[:3] == pytest.approx(ended[:3], rel=1e-3) and on[2] > config.budget.macs > on[3]
    assert on[-1] < 0.7 * on[-2]
    assert ended[-1] > 0.9 * ended[-2] > 1.2 * on[-2]
