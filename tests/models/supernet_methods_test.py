"""What a search method makes of the supernet: its variables, draws, samples and KL divergence (METHOD.md section 5)."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import TINY, reset, values

from sivdnas_tf.methods.registry import METHODS
from sivdnas_tf.models.supernet import Supernet
from sivdnas_tf.posterior import Posterior
from sivdnas_tf.search_space import CELL_TYPES, SearchSpace, plan_network

E, P = len(TINY.edges), len(TINY.primitives)
PLAN = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
TRAINED = [name for name, method in METHODS.items() if method.trains_supernet]
NOISY = ("si_vdnas", "h_vdnas", "v_vdnas")
RANDOM = np.random.default_rng(0)


@pytest.fixture(name="built", scope="module")
def fixture_built():
    """A supernet a method, all with the same weights as far as they share them, and their values."""
    networks = {}
    for name in TRAINED:
        keras.utils.set_random_seed(0)
        networks[name] = Supernet(TINY, PLAN, method=METHODS[name], initial_log_dropout_rate=-1.0, seed=3)
    return networks, {name: values(network.variables) for name, network in networks.items()}


@pytest.fixture(name="supernets")
def fixture_supernets(built):
    """The shared supernets at their initial values."""
    networks, initial = built
    return {name: reset(network, initial[name]) for name, network in networks.items()}


def scatter(network):
    """Random architecture parameters; returns the log dropout rates, one array a variable."""
    for variable in network.architecture_variables:
        variable.assign(RANDOM.normal(size=variable.shape))
    return [variable.numpy().astype(np.float64) for variable in network.dropout_rate_variables]


def ard(log_rates):
    """The sum of 1/2 log(1 + 1/delta)."""
    return sum(0.5 * np.log1p(np.exp(-rates)).sum() for rates in log_rates)


def gates(network, step):
    return [gate for draw in network.draw(step).values() for gate in (draw.operations.gate.numpy(), draw.edges.gate.numpy())]


VARIABLES = {
    "si_vdnas": ["edges/weight", "operations/weight", "edges/log_dropout_rate", "operations/log_dropout_rate"],
    "h_vdnas": ["edges/weight", "operations/weight", "edges/log_dropout_rate", "operations/log_dropout_rate"],
    "v_vdnas": ["operations/weight", "operations/log_dropout_rate"],
    "darts_first": ["operations/weight"],
    "darts_second": ["operations/weight"],
}


@pytest.mark.parametrize("name", TRAINED)
def test_the_architecture_variables_of_a_method_are_those_that_it_has(supernets, name):
    network = supernets[name]
    paths = [variable.path.rpartition("/")[0].rpartition("/")[2] + "/" + variable.name for variable in network.architecture_variables]
    assert sorted(paths) == sorted(f"{cell_type}_{each}" for cell_type in CELL_TYPES for each in VARIABLES[name])
    trained = {id(variable) for variable in network.trainable_variables}
    assert {id(variable) for variable in network.architecture_variables} <= trained
    assert len(network.weight_variables) == len(trained) - len(paths)
    assert len(network.weight_variables) == len(supernets["si_vdnas"].weight_variables)


@pytest.mark.parametrize("name", TRAINED)
def test_weight_decay_is_on_the_weights_of_a_method_alone(supernets, name):
    network = supernets[name]
    network.compile(keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.1), architecture_weight_decay=0.5)
    decayed = [v.name for v, decay in zip(network.architecture_variables, network._architecture_weight_decays, strict=True) if decay]
    assert decayed == ["weight"] * sum(each.endswith("/weight") for each in VARIABLES[name]) * len(CELL_TYPES)
    # Adam has two moments a variable, and its number of steps and rate.
    assert len(network.architecture_optimizer.variables) == 2 + 2 * len(network.architecture_variables)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_of_a_method_reports_the_gradients_that_it_has(supernets, name, monkeypatch):
    network, applied = supernets[name], []
    network.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1), hypergradient_order=network.method.hypergradient_order or 1)
    monkeypatch.setattr(network.architecture_optimizer, "apply_gradients", lambda pairs: applied.extend(pairs))
    images = RANDOM.normal(size=(4, 8, 8, 1)).astype(np.float32), np.array([0, 1, 2, 0])
    logs = network.architecture_step((images, images))
    for key, kind in (("mixing_gradient_norm", "weight"), ("dropout_rate_gradient_norm", "log_dropout_rate")):
        squares = [np.sum(gradient.numpy().astype(np.float64) ** 2) for gradient, variable in applied if variable.name == kind]
        assert (key in logs) == bool(squares)
        assert not squares or float(logs[key]) == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)


def test_the_kl_divergence_of_each_method_is_that_of_the_paper(supernets):
    for name in TRAINED:
        network = supernets[name]
        log_rates, draw = scatter(network), network.draw(5)
        network.operation_prior_gap.assign(1.0)
        network.edge_prior_gap.assign(1.0)
        actual = float(network.kl_divergence(draw))
        if name == "si_vdnas":
            by_hand = sum(
                0.5 * (level.gate.numpy() * np.log1p(np.exp(-layers[cell_type].log_dropout_rate.numpy()))).sum()
                for cell_type in CELL_TYPES
                for layers, level in (
                    (network.operation_dropout, draw[cell_type].operations),
                    (network.edge_dropout, draw[cell_type].edges),
                )
            )
            assert actual == pytest.approx(by_hand, rel=1e-5) and 0 < actual < ard(log_rates)
        elif name in NOISY:
            assert len(log_rates) == (4 if name == "h_vdnas" else 2)
            assert actual == pytest.approx(ard(log_rates), rel=1e-5) and actual > 1
        else:
            assert actual == 0 and log_rates == []


def test_gates_are_drawn_by_si_vdnas_alone(supernets):
    for name in TRAINED:
        scatter(supernets[name])
        opened = np.concatenate([gate.ravel() for step in range(5) for gate in gates(supernets[name], step)])
        assert opened.shape == (5 * 2 * (E * P + E),)
        assert bool(opened.all()) is (name != "si_vdnas")
        for sample, computed in supernets[name].samples(supernets[name].draw(1)).values():
            assert sample.shape == (E, P) and (name == "si_vdnas" or computed.numpy().all())


def test_the_samples_of_each_method(supernets):
    for name in TRAINED:
        network = supernets[name]
        scatter(network)
        draw = network.draw(2)
        for cell_type, (sample, _) in network.samples(draw).items():
            operations, edges = network.operation_dropout[cell_type], network.edge_dropout[cell_type]
            w, noise = operations.weight.numpy(), draw[cell_type].operations.noise.numpy()
            if name.startswith("darts"):
                exponentials = np.exp(w)
                expected = exponentials / exponentials.sum(axis=1, keepdims=True)
                assert not noise.any() and not draw[cell_type].edges.noise.numpy().any()
            else:
                noisy = lambda layer, level: level.gate * layer.weight * (1 + np.exp(layer.log_dropout_rate / 2) * level.noise)  # noqa: E731
                expected = noisy(operations, draw[cell_type].operations).numpy()
                if name != "v_vdnas":
                    expected = expected * noisy(edges, draw[cell_type].edges).numpy()[:, None]
                assert noise.all()
            np.testing.assert_allclose(sample, expected, rtol=1e-4, atol=1e-6)


def test_without_a_draw_the_sample_is_the_mean_of_the_posterior(supernets):
    for name in ("h_vdnas", "v_vdnas", "darts_first"):
        network = supernets[name]
        scatter(network)
        mean = network.samples()["normal"][0].numpy()
        operations, edges = network.operation_dropout["normal"], network.edge_dropout["normal"]
        np.testing.assert_allclose(mean, edges.expected_sample().numpy()[:, None] * operations.mixing_weights().numpy(), rtol=1e-6)
        if name == "darts_first":
            np.testing.assert_array_equal(network.samples(network.draw(0))["normal"][0], mean)
        if name == "h_vdnas":
            np.testing.assert_array_equal(edges.expected_sample(), edges.weight.numpy())
        else:
            np.testing.assert_array_equal(edges.expected_sample(), 1.0)


@pytest.mark.parametrize("name", TRAINED)
def test_the_posterior_of_a_method_can_be_read_and_names_it(supernets, name, monkeypatch):
    from sivdnas_tf import search_space

    monkeypatch.setitem(search_space.SEARCH_SPACES, TINY.name, TINY)
    network = supernets[name]
    scatter(network)
    arrays = network.posterior(4).to_arrays()
    assert ("method" in arrays) is (name != "si_vdnas")
    posterior = Posterior.from_arrays(arrays)
    assert (posterior.method, posterior.epoch) == (name, 4)
    for cell_type in CELL_TYPES:
        cell, operations = posterior.cell(cell_type), network.operation_dropout[cell_type]
        np.testing.assert_array_equal(cell.operation_weights, operations.weight.numpy())
        if name.startswith("darts"):
            np.testing.assert_array_equal(cell.operation_keep_probability, 1.0)
        else:
            np.testing.assert_array_equal(cell.log_operation_dropout_rate, operations.log_dropout_rate.numpy())
        if name in ("si_vdnas", "h_vdnas"):
            np.testing.assert_array_equal(cell.edge_weights, network.edge_dropout[cell_type].weight.numpy())
            assert cell.edge_keep_probability.max() < 1
        else:
            np.testing.assert_array_equal(cell.edge_weights, 1.0)
            np.testing.assert_array_equal(cell.edge_keep_probability, 1.0)


TWO = SearchSpace("two", ("max_pool_3x3", "skip_connect"), n_nodes=1)
SCALE = np.array([0.7, -1.3], np.float32)  # of the two edges


class TwoOperations(Supernet):
    """Two operations on each of two edges, x A and x B, and nothing else: logits whose gradient fits on a line."""

    def call(self, images, draw=None, compute_all=False, gradients_to="all"):
        del compute_all, gradients_to
        sample, _ = self.samples(draw)["normal"]
        outputs = tf.stack([images @ MATRICES[0], images @ MATRICES[1]])
        return tf.einsum("e,ep,pbk->bk", SCALE, sample, outputs)


MATRICES = RANDOM.normal(size=(2, 5, 3)).astype(np.float32)


def test_the_architecture_gradient_of_darts_first_is_that_by_hand():
    plan = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(1, 1))
    network = TwoOperations(TWO, plan, method=METHODS["darts_first"])
    network.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(1.0), kl_weight=7.0)
    images, labels = RANDOM.normal(size=(6, 5)).astype(np.float32), RANDOM.integers(0, 3, 6)
    w = RANDOM.normal(size=(2, 2)).astype(np.float32)
    variable = network.operation_dropout["normal"].weight
    variable.assign(w)
    logs = network.architecture_step(((images, labels), (images, labels)))

    mixing = np.exp(w) / np.exp(w).sum(axis=1, keepdims=True)
    outputs = np.stack([images @ MATRICES[0], images @ MATRICES[1]])
    logits = np.einsum("e,ep,pbk->bk", SCALE, mixing, outputs)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    of_logits = (probabilities - np.eye(3)[labels]) / len(labels)
    of_mixing = np.einsum("e,pbk,bk->ep", SCALE, outputs, of_logits)
    of_w = mixing * (of_mixing - (mixing * of_mixing).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(w - variable.numpy(), of_w, rtol=1e-4, atol=1e-6)
    assert np.abs(of_w).min() > 1e-3
    assert float(logs["architecture_loss"]) == pytest.approx(-np.log(probabilities[np.arange(6), labels]).mean(), rel=1e-5)
    assert float(logs["kl"]) == 0
    np.testing.assert_array_equal(network.operation_dropout["reduction"].weight, 0.0)  # it is not in this network


def test_the_method_of_the_documentation_does_what_its_test_says(request):
    text = (request.config.rootpath / "docs" / "add_a_method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, "add_a_method.md", "exec"), names)
    names["test_noisy_darts"](TINY, PLAN)
    with pytest.raises(AssertionError):  # the test can fail
        names["NOISY_DARTS"] = METHODS["v_vdnas"]
        names["test_noisy_darts"](TINY, PLAN)
