import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import BATCH, TINY, assert_same, differ, reset, values

from sivdnas_tf.models.supernet import CellDraw, Supernet
from sivdnas_tf.posterior import Posterior
from sivdnas_tf.search_space import CELL_TYPES, get_search_space, plan_network
from sivdnas_tf.training import objective
from sivdnas_tf.variational.distributions import Draw

PLAN = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
GENERATOR = np.random.default_rng(0)


def batch():
    return GENERATOR.normal(size=(BATCH, 8, 8, 1)).astype(np.float32), GENERATOR.integers(0, 3, BATCH).astype(np.int32)


WEIGHT_BATCH, ARCHITECTURE_BATCH = batch(), batch()
DATA = (WEIGHT_BATCH, ARCHITECTURE_BATCH)
LOGS = {"loss", "accuracy", "architecture_loss", "architecture_accuracy", "kl", "mixing_gradient_norm", "dropout_rate_gradient_norm"}


def tiny_supernet(cells=3, **kwargs):
    plan = plan_network("cifar", channels=4, cells=cells, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
    return Supernet(TINY, plan, **kwargs)


@pytest.fixture(scope="module")
def built():
    """One supernet for all tests in eager mode, its functions traced once, and its initial values."""
    keras.utils.set_random_seed(0)
    network = tiny_supernet(initial_log_dropout_rate=-1.0)
    return network, [variable.numpy() for variable in network.variables]


@pytest.fixture
def supernet(built):
    """The shared supernet at its initial values."""
    return reset(*built)


def compiled(supernet, *, weight_rate=0.1, architecture_rate=0.1, momentum=0.0, architecture_optimizer=None, **kwargs):
    """Plain SGD for both, so that a step can be computed by hand."""
    supernet.compile(
        keras.optimizers.SGD(weight_rate, momentum=momentum), architecture_optimizer or keras.optimizers.SGD(architecture_rate), **kwargs
    )
    return supernet


def set_log_rate(supernet, value):
    for variable in supernet.dropout_rate_variables:
        variable.assign(np.full(variable.shape, value))


def close_gates(supernet, cell_type, primitive):
    """Closes a primitive on every edge for certain, and opens all else."""
    set_log_rate(supernet, -20.0)
    rates = supernet.operation_dropout[cell_type].log_dropout_rate
    rates.assign(np.where(np.arange(len(TINY.primitives)) == primitive, 20.0, -20.0) * np.ones(rates.shape))


def operation_variables(supernet, cell_type, primitive):
    return [
        variable
        for plan, cell in zip(PLAN.cells, supernet.cells, strict=True)
        if plan.cell_type == cell_type
        for operations in cell.operations.values()
        for variable in operations.operation_weights[primitive]
    ]


SEP_CONV = TINY.primitives.index("sep_conv_3x3")


# Variables.


def test_every_trainable_variable_is_an_architecture_variable_or_a_weight(supernet):
    architecture = {id(variable) for variable in supernet.architecture_variables}
    weights = {id(variable) for variable in supernet.weight_variables}
    assert architecture and weights and not architecture & weights
    assert architecture | weights == {id(variable) for variable in supernet.trainable_variables}
    assert len(supernet.architecture_variables) == len(architecture) and len(supernet.weight_variables) == len(weights)
    mixing, rates = supernet.mixing_variables, supernet.dropout_rate_variables
    assert {id(variable) for variable in [*mixing, *rates]} == architecture and len(mixing) == len(rates) == 4
    assert all(variable.path.endswith("/weight") for variable in mixing)
    assert all(variable.path.endswith("/log_dropout_rate") for variable in rates)


def test_weights_are_those_of_stem_cells_and_classifier_and_not_of_templates(supernet):
    expected = 3 + 2  # stem and classifier
    for plan in PLAN.cells:
        expected += (2 if plan.reduction_prev else 1) + 1  # preprocessing convolutions; a factorized reduce has two
        # Two depthwise and two pointwise convolutions, over the edges of a stride; a skip connection of stride 2 has two.
        expected += 4 + (4 + 2 if plan.reduction else 0)
        edges = [5] if not plan.reduction else [4, 1]  # one leaves a node, the others an input
        stacks = supernet.cells[plan.index].operations.values()
        assert sorted({variable.shape[0] for stack in stacks for variable in stack.variables}, reverse=True) == edges
    assert len(supernet.weight_variables) == expected
    assert len({variable.path for variable in supernet.variables}) == len(supernet.variables)


def test_the_number_of_architecture_parameters_does_not_depend_on_the_number_of_cells():
    counts = [{variable.path: tuple(variable.shape) for variable in tiny_supernet(cells).architecture_variables} for cells in (3, 5)]
    assert counts[0] == counts[1]
    assert sorted(counts[0].values()) == [(5,)] * 4 + [(5, 3)] * 4


# Draws.


def test_draws_are_fixed_by_seed_and_step_and_differ_between_steps_seeds_and_parameter_sets():
    supernet, same, other = (tiny_supernet(initial_log_dropout_rate=0.0, seed=seed) for seed in (1, 1, 2))

    def arrays(draw):
        return [np.asarray(each) for cell_type in CELL_TYPES for part in draw[cell_type] for each in part]

    first = arrays(supernet.draw(3))
    assert_same(first, arrays(supernet.draw(3)))
    assert_same(first, arrays(same.draw(3)))
    assert_same(first, arrays(tf.function(supernet.draw)(tf.constant(3, tf.int64))))
    assert all(differ(first, arrays(supernet.draw(4))))
    assert all(differ(first, arrays(other.draw(3))))
    normal, reduction = first[:4], first[4:]
    assert all(differ(normal, reduction))


def test_a_draw_is_of_the_current_rates(supernet):
    close_gates(supernet, "reduction", SEP_CONV)
    draw = supernet.draw(0)
    np.testing.assert_array_equal(draw["reduction"].operations.gate[:, SEP_CONV], 0.0)
    np.testing.assert_array_equal(draw["normal"].operations.gate, 1.0)


def test_samples_multiply_the_two_levels_and_close_what_either_gate_closes(supernet):
    generator = np.random.default_rng(1)
    for variable in supernet.mixing_variables:
        variable.assign(generator.normal(size=variable.shape))
    draw = supernet.draw(0)
    for cell_type in CELL_TYPES:
        sample, gates = supernet.samples(draw)[cell_type]
        operations, edges = draw[cell_type]
        w, phi = supernet.operation_dropout[cell_type].weight.numpy(), supernet.edge_dropout[cell_type].weight.numpy()
        noisy = [part.gate * (1.0 + np.exp(-0.5) * part.noise) for part in (operations, edges)]  # sqrt(delta) at log delta = -1
        np.testing.assert_allclose(sample, (phi * noisy[1])[:, np.newaxis] * w * noisy[0], rtol=1e-5)
        np.testing.assert_array_equal(gates, (edges.gate.numpy()[:, np.newaxis] * operations.gate.numpy()) == 1.0)
        assert 0 < np.sum(gates) < gates.shape.num_elements()


def test_a_vanishing_rate_is_the_plain_weighted_sum(supernet):
    set_log_rate(supernet, -20.0)
    images = WEIGHT_BATCH[0]

    def ones(draw):
        return Draw(tf.ones_like(draw.gate), tf.zeros_like(draw.noise))

    noiseless = {cell_type: CellDraw(*map(ones, draw)) for cell_type, draw in supernet.draw(0).items()}
    plain = supernet(images, draw=noiseless)
    np.testing.assert_allclose(supernet(images), plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(supernet(images, draw=supernet.draw(0)), plain, atol=5e-3)  # noise of sqrt(e^-20)
    set_log_rate(supernet, 0.0)
    assert np.abs(supernet(images, draw=supernet.draw(0)) - plain).max() > 0.05


def test_edges_and_nodes_are_weighted_sums(supernet):
    # One cell by hand: node 2 = edges 0->2, 1->2; node 3 = edges 0->3, 1->3, 2->3; an edge sums its three operations.
    cell, generator = supernet.cells[0], np.random.default_rng(2)
    samples = generator.normal(size=(5, 3)).astype(np.float32)
    inputs = [generator.normal(size=(2, 8, 8, 12)).astype(np.float32) for _ in range(2)]
    output = cell(inputs, samples, np.ones((5, 3), bool))
    states = {index: layer(tensor) for index, (layer, tensor) in enumerate(zip(cell.preprocessing, inputs, strict=True))}
    for node in (2, 3):
        total = 0.0
        for index, (predecessor, target) in enumerate(TINY.edges):
            if target == node:
                for primitive, template in enumerate(cell._mixed[predecessor].templates):
                    for variable, value in zip(template.trainable_variables, cell.edge_weights()[index][primitive], strict=True):
                        variable.assign(value)
                    total = total + samples[index, primitive] * template(states[predecessor])
        states[node] = total
    np.testing.assert_allclose(output, np.concatenate([states[2], states[3]], axis=-1), rtol=1e-4, atol=1e-4)


# The divergence.


def closed_form(draw, supernet, gaps):
    total = 0.0
    for cell_type in CELL_TYPES:
        layers = supernet.operation_dropout[cell_type], supernet.edge_dropout[cell_type]
        for part, layer, gap in zip(draw[cell_type], layers, gaps, strict=True):
            total += np.sum(part.gate * 0.5 * np.log1p(gap / np.exp(layer.log_dropout_rate.numpy().astype(np.float64))))
    return total


def test_divergence_counts_each_parameter_set_once_however_many_cells_share_it():
    networks = [tiny_supernet(cells, initial_log_dropout_rate=-1.0) for cells in (3, 5)]
    divergences = []
    for network in networks:
        network.operation_prior_gap.assign(0.8)
        network.edge_prior_gap.assign(0.3)
        generator = np.random.default_rng(3)
        for variable in network.dropout_rate_variables:
            variable.assign(generator.normal(-1.0, 1.0, variable.shape))
        draw = network.draw(5)
        divergences.append(float(network.kl_divergence(draw)))
        assert divergences[-1] == pytest.approx(closed_form(draw, network, (0.8, 0.3)), rel=1e-5)
        network.operation_prior_gap.assign(0.4)  # separately annealed
        assert float(network.kl_divergence(draw)) == pytest.approx(closed_form(draw, network, (0.4, 0.3)), rel=1e-5)
    assert divergences[0] == divergences[1] > 1.0


def test_an_operation_on_a_closed_edge_counts(supernet):
    draw = supernet.draw(0)
    closed = {name: CellDraw(each.operations, Draw(tf.zeros_like(each.edges.gate), each.edges.noise)) for name, each in draw.items()}
    operations_only = float(supernet.kl_divergence(closed))
    expected = sum(np.sum(each.operations.gate) for each in draw.values()) * 0.5 * np.log1p(np.exp(1.0))
    assert operations_only == pytest.approx(expected, rel=1e-5) and expected > 0
    assert float(supernet.kl_divergence(draw)) > operations_only


# The bilevel step.


def loss_of(supernet, images_and_labels, draw):
    images, labels = images_and_labels
    return objective.cross_entropy(labels, supernet(images, draw=draw))


def test_both_halves_of_a_step_make_the_same_draw(supernet, monkeypatch):
    compiled(supernet, weight_rate=0.0, architecture_rate=0.5, kl_weight=0.1)
    draw = supernet.draw(0)
    before = loss_of(supernet, ARCHITECTURE_BATCH, draw) + 0.1 * supernet.kl_divergence(draw)
    divergence, drawn, original = supernet.kl_divergence(draw), [], supernet.draw
    monkeypatch.setattr(supernet, "draw", lambda step, batch_size: drawn.append(int(step)) or original(step))
    logs = supernet.bilevel_step(DATA)
    assert drawn == [0, 0]
    assert float(logs["architecture_loss"]) == pytest.approx(float(before), rel=1e-5)
    assert float(logs["kl"]) == pytest.approx(float(divergence), rel=1e-5)
    # The weights see the updated architecture, with the gates and the noise that were drawn before it.
    assert float(logs["loss"]) == pytest.approx(float(loss_of(supernet, WEIGHT_BATCH, draw)), rel=1e-5)
    again = original(0)
    assert float(logs["loss"]) != pytest.approx(float(loss_of(supernet, WEIGHT_BATCH, original(1))), rel=1e-3)
    assert any(differ([again["normal"].operations.noise.numpy()], [original(1)["normal"].operations.noise.numpy()]))


def test_a_step_reports_the_accuracy_of_both_halves_and_counts_itself(supernet):
    compiled(supernet, weight_rate=0.0, architecture_rate=0.0)
    draws = [supernet.draw(step) for step in (0, 1)]
    for step, draw in enumerate(draws):
        logs = supernet.bilevel_step(DATA)
        assert set(logs) == LOGS
        for name, (images, labels) in (("accuracy", WEIGHT_BATCH), ("architecture_accuracy", ARCHITECTURE_BATCH)):
            share = np.mean(np.argmax(supernet(images, draw=draw), axis=1) == labels)
            assert float(logs[name]) == pytest.approx(share)
        assert supernet.weight_optimizer.iterations.numpy() == step + 1  # which is what the next draw is keyed by


def test_the_architecture_update_leaves_every_weight_as_it_was(supernet):
    compiled(supernet, weight_rate=0.0, architecture_rate=0.1)
    weights, architecture = values(supernet.weight_variables), values(supernet.architecture_variables)
    supernet.bilevel_step(DATA)
    assert_same(weights, values(supernet.weight_variables))
    assert all(differ(architecture, values(supernet.architecture_variables)))


def test_the_weight_update_leaves_every_architecture_variable_as_it_was(supernet):
    compiled(supernet, architecture_rate=0.0)
    set_log_rate(supernet, -20.0)
    weights, architecture = values(supernet.weight_variables), values(supernet.architecture_variables)
    supernet.bilevel_step(DATA)
    assert_same(architecture, values(supernet.architecture_variables))
    assert all(differ(weights, values(supernet.weight_variables)))


def test_a_frozen_architecture_does_not_move_and_its_half_is_not_read(supernet):
    compiled(supernet, momentum=0.9, architecture_optimizer=keras.optimizers.Adam(0.1), architecture_weight_decay=0.1)
    weights, architecture = values(supernet.weight_variables), values(supernet.architecture_variables)
    unreadable = np.full_like(ARCHITECTURE_BATCH[0], np.nan), ARCHITECTURE_BATCH[1]
    logs = supernet.bilevel_step((WEIGHT_BATCH, unreadable), update_architecture=False)
    assert set(logs) == {"loss", "accuracy"} and np.isfinite(logs["loss"])
    assert_same(architecture, values(supernet.architecture_variables))
    assert any(differ(weights, values(supernet.weight_variables)))
    assert supernet.architecture_optimizer.iterations.numpy() == 0


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_a_closed_gate_means_not_computed_and_a_zero_gradient(cell_type, supernet):
    compiled(supernet, architecture_rate=0.01)
    close_gates(supernet, cell_type, SEP_CONV)
    closed = operation_variables(supernet, cell_type, SEP_CONV)
    for variable in closed:
        variable.assign(np.full(variable.shape, np.nan))  # whatever computes with these is not finite
    identities = {id(variable) for variable in closed}
    others = [variable for variable in supernet.weight_variables if id(variable) not in identities]
    before = values(others)
    logs = supernet.bilevel_step(DATA)
    assert all(np.isfinite(value) for value in logs.values())
    assert all(np.isnan(variable.numpy()).all() for variable in closed)
    assert all(differ(before, values(others)))  # a gate that is open, and a finite gradient
    assert all(np.isfinite(value).all() for value in values([*others, *supernet.architecture_variables]))
    # An open gate does compute them.
    set_log_rate(supernet, -20.0)
    assert not np.isfinite(supernet(WEIGHT_BATCH[0], draw=supernet.draw(0))).any()


def test_a_closed_edge_computes_none_of_its_operations(supernet):
    compiled(supernet)
    set_log_rate(supernet, -20.0)
    for cell_type in CELL_TYPES:
        rates = supernet.edge_dropout[cell_type].log_dropout_rate
        rates.assign([20.0, -20.0, -20.0, -20.0, -20.0])
    # Edge 0 leaves an input: the first of those of stride 2 in a reduction cell, the first of all in a normal one.
    stacks = [cell.operations[plan.stride(0)] for plan, cell in zip(PLAN.cells, supernet.cells, strict=True)]
    closed = [variable for stack in stacks for variable in stack.variables]
    for variable in closed:
        variable.assign(np.concatenate([np.full_like(variable[:1], np.nan), variable[1:]]))
    logs = supernet.bilevel_step(DATA)
    assert closed and all(np.isfinite(value) for value in logs.values())
    assert all(np.isnan(variable[0]).all() and np.isfinite(variable[1:]).all() for variable in closed)
    identities = {id(variable) for variable in closed}
    others = [variable for variable in supernet.weight_variables if id(variable) not in identities]
    assert all(np.isfinite(value).all() for value in values(others))


def test_momentum_and_decay_go_on_for_a_closed_operation(supernet):
    compiled(supernet, momentum=0.9, weight_decay=0.5, architecture_rate=0.0)
    close_gates(supernet, "normal", SEP_CONV)
    variable = operation_variables(supernet, "normal", SEP_CONV)[0]
    expected, velocity = variable.numpy().astype(np.float64), 0.0
    for _ in range(3):
        supernet.bilevel_step(DATA, update_architecture=False)
        velocity = 0.9 * velocity + 0.5 * expected  # the gradient is 0
        expected = expected - 0.1 * velocity
    np.testing.assert_allclose(variable, expected, rtol=1e-5)


def test_swapping_the_halves_changes_the_result(built):
    def after(data):
        network = compiled(reset(*built))
        network.bilevel_step(data)
        return values(network.weight_variables), values(network.architecture_variables)

    first, again, swapped = after(DATA), after(DATA), after((ARCHITECTURE_BATCH, WEIGHT_BATCH))
    for part in (0, 1):
        assert_same(first[part], again[part])
        assert any(differ(first[part], swapped[part]))


def hand_gradients(supernet, loss, variables):
    tensors = [variable.value for variable in variables]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = loss()
    return [gradient.numpy() for gradient in tape.gradient(value, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)]


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_the_weight_update_by_hand(clip_norm, supernet):
    compiled(supernet, weight_decay=0.2, gradient_clip_norm=clip_norm)
    draw, variables = supernet.draw(0), supernet.weight_variables
    before, gradients = values(variables), hand_gradients(supernet, lambda: loss_of(supernet, WEIGHT_BATCH, draw), variables)
    norm = np.sqrt(sum(np.sum(gradient.astype(np.float64) ** 2) for gradient in gradients))
    assert norm > 0.05  # the clip binds
    factor = clip_norm / norm if clip_norm else 1.0
    supernet.bilevel_step(DATA, update_architecture=False)
    for start, gradient, variable in zip(before, gradients, variables, strict=True):
        np.testing.assert_allclose(variable, start - 0.1 * (factor * gradient + 0.2 * start), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_the_architecture_update_by_hand(kl_weight, supernet):
    compiled(supernet, weight_rate=0.0, kl_weight=kl_weight, architecture_weight_decay=0.2, gradient_clip_norm=1e-3)
    supernet.operation_prior_gap.assign(0.6)
    supernet.edge_prior_gap.assign(0.6)
    draw, variables = supernet.draw(0), supernet.architecture_variables
    before = values(variables)
    gradients = hand_gradients(supernet, lambda: loss_of(supernet, ARCHITECTURE_BATCH, draw), variables)
    gates = {}
    for cell_type in CELL_TYPES:
        gates[f"{cell_type}_operations"], gates[f"{cell_type}_edges"] = (part.gate.numpy() for part in draw[cell_type])
    logs, squares = supernet.bilevel_step(DATA), {"weight": 0.0, "log_dropout_rate": 0.0}
    for start, gradient, variable in zip(before, gradients, variables, strict=True):
        name, parameter = variable.path.split("/")[-2:]
        # Decay is on w and phi only, the divergence on the rates: d/d log delta of 1/2 log(1 + gap / delta) is -1/2 gap / (gap + delta).
        of_rate = kl_weight * gates[name] * -0.5 * 0.6 / (0.6 + np.exp(start))
        extra = 0.2 * start if parameter == "weight" else of_rate
        np.testing.assert_allclose(variable, start - 0.1 * (gradient + extra), rtol=1e-4, atol=1e-5)
        assert np.abs(gradient).max() > 0
        squares[parameter] += np.sum((gradient if parameter == "weight" else gradient + of_rate) ** 2)
    norms = [float(logs[name]) for name in ("mixing_gradient_norm", "dropout_rate_gradient_norm")]  # without the decay
    assert norms == pytest.approx(np.sqrt([squares["weight"], squares["log_dropout_rate"]]), rel=1e-4)


def test_kl_weight_scales_the_architectures_loss_only(built):
    logs = {}
    for kl_weight in (0.0, 0.5):
        logs[kl_weight] = compiled(reset(*built), architecture_rate=0.0, kl_weight=kl_weight).bilevel_step(DATA)
    assert float(logs[0.5]["kl"]) == float(logs[0.0]["kl"]) > 1.0
    difference = float(logs[0.5]["architecture_loss"] - logs[0.0]["architecture_loss"])
    assert difference == pytest.approx(0.5 * float(logs[0.0]["kl"]), rel=1e-4)
    for name in ("loss", "accuracy", "architecture_accuracy"):
        assert float(logs[0.5][name]) == float(logs[0.0][name])


# Results.


def test_class_weights_are_in_both_losses(supernet):
    weights = np.linspace(0.5, 3.0, supernet.plan.classes).astype(np.float32)
    compiled(supernet, weight_rate=0.0, architecture_rate=0.0, kl_weight=0.0, class_weights=weights)
    draw, logs = supernet.draw(0), supernet.bilevel_step(DATA)
    for name, (images, labels) in (("loss", WEIGHT_BATCH), ("architecture_loss", ARCHITECTURE_BATCH)):
        logits = supernet(images, draw=draw)
        expected = objective.cross_entropy(labels, logits, weights=weights)
        assert float(logs[name]) == pytest.approx(float(expected), rel=1e-5)
        assert float(logs[name]) != pytest.approx(float(objective.cross_entropy(labels, logits)), rel=1e-2)


def test_posterior_round_trip():
    plan = plan_network("cifar", channels=2, cells=3, classes=3, resolution=4)
    network, generator = Supernet(get_search_space("darts"), plan), np.random.default_rng(5)
    for variable in network.architecture_variables:
        variable.assign(generator.normal(size=variable.shape))
    posterior = network.posterior(4)
    assert (posterior.search_space, posterior.epoch) == ("darts", 4)
    for cell_type in CELL_TYPES:
        cell, operations, edges = posterior.cell(cell_type), network.operation_dropout[cell_type], network.edge_dropout[cell_type]
        np.testing.assert_array_equal(cell.operation_weights, operations.weight)
        np.testing.assert_array_equal(cell.log_operation_dropout_rate, operations.log_dropout_rate)
        np.testing.assert_array_equal(cell.edge_weights, edges.weight)
        np.testing.assert_array_equal(cell.log_edge_dropout_rate, edges.log_dropout_rate)
        np.testing.assert_allclose(cell.operation_keep_probability, operations.keep_probability(), rtol=1e-5)
    again = Posterior.from_arrays(posterior.to_arrays())
    assert_same(posterior.to_arrays().values(), again.to_arrays().values())


@pytest.mark.parametrize("mixing", ["sigmoid", "softmax"])
def test_mixing_reaches_both_levels(mixing):
    network = Supernet(TINY, PLAN, mixing=mixing, initial_log_dropout_rate=-20.0)
    sample, _ = network.samples()["normal"]
    if mixing == "sigmoid":
        np.testing.assert_allclose(sample, np.full((5, 3), 0.25), rtol=1e-5)
    else:  # over the three operations of an edge, and over a node's two or three edges
        np.testing.assert_allclose(sample, np.array([1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9])[:, np.newaxis] * np.ones(3), rtol=1e-5)


def test_the_expected_cost_follows_the_keep_probabilities_and_enters_the_loss_with_its_scale(supernet):
    network, rng = supernet, np.random.default_rng(0)
    for layer in (*network.operation_dropout.values(), *network.edge_dropout.values()):
        layer.log_dropout_rate.assign(rng.normal(size=layer.shape))
    terms = {cell_type: rng.random((len(TINY.edges), len(TINY.primitives))) for cell_type in CELL_TYPES}
    with tf.GradientTape() as tape:
        cost = network.expected_cost(0.5, terms)
    expected = 0.5
    gradients = iter(tape.gradient(cost, network.dropout_rate_variables))
    for cell_type in CELL_TYPES:
        layers = network.operation_dropout[cell_type], network.edge_dropout[cell_type]
        operations, edges = (1 / (1 + np.exp(layer.log_dropout_rate.numpy())) for layer in layers)
        expected += (edges[:, None] * operations * terms[cell_type]).sum()
        of_operations, of_edges = next(gradients), next(gradients)
        np.testing.assert_allclose(of_operations, -operations * (1 - operations) * edges[:, None] * terms[cell_type], rtol=1e-4)
        np.testing.assert_allclose(of_edges, -edges * (1 - edges) * (operations * terms[cell_type]).sum(axis=1), rtol=1e-4)
    assert float(cost) == pytest.approx(expected, rel=1e-5)
    labels, logits = tf.constant([0, 1]), tf.constant([[1.0, 0.0], [0.5, 0.0]])
    losses = [float(objective.architecture_loss(labels, logits, 2.0, 0.1, expected_cost=cost, cost_scale=scale)) for scale in (0.0, 3.0)]
    assert losses[1] - losses[0] == pytest.approx(3.0 * expected, rel=1e-5)
