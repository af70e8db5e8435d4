"""A supernet whose gates are certain is the evaluation network of the genotype that derives from it: search and evaluation agree.

Every edge and operation that a gate closes is missing in the one and not computed in the other; all that is open has weight 1.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import BudgetConfig
from sivdnas_tf.derive import derive
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.models.evaluation_network import evaluation_network
from sivdnas_tf.models.supernet import CellDraw, Supernet
from sivdnas_tf.search_space import CELL_TYPES, get_search_space, plan_network
from sivdnas_tf.variational.distributions import Draw

SPACE = get_search_space("darts")
# Four cells: normal after the stem and after a reduction, reduction after a normal cell and after a reduction.
PLAN = plan_network("cifar", channels=4, cells=4, classes=3, resolution=8, image_channels=1)
CERTAIN = 20.0  # |log dropout rate| at which a gate is open, or closed, but once in half a billion draws
UNLIMITED = BudgetConfig(network="cifar", channels=4, cells=4, classes=3, resolution=8, image_channels=1, macs=1e12)
IMAGES = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Gates:
    """Gates of one cell type: edges [E], operations [E, P]."""

    edges: np.ndarray
    operations: np.ndarray

    @property
    def kept(self):
        return self.edges[:, np.newaxis] & self.operations


def random_gates(generator, keep):
    """Gates that leave every node an edge with an operation, as derivation requires."""
    n_edges, n_primitives = len(SPACE.edges), len(SPACE.primitives)
    while True:
        gates = Gates(generator.random(n_edges) < 0.7, generator.random((n_edges, n_primitives)) < keep)
        if all(gates.kept[list(SPACE.edges_into(node))].any() for node in SPACE.nodes):
            return gates


def pattern(seed, keep):
    generator = np.random.default_rng(seed)
    return {cell_type: random_gates(generator, keep) for cell_type in CELL_TYPES}


# Name to gates, and what normalises the evaluation network's pools: two layers that do the same in training.
PATTERNS = {"sparse": pattern(1, 0.2), "half": pattern(2, 0.5), "dense": pattern(3, 0.8)}
POOL_NORMALIZATIONS = {"sparse": "batch_statistics", "half": "batch", "dense": "batch_statistics"}


def genotype_of(gates):
    """Written from the gates alone: `derive` is held against it."""
    cells = []
    for cell_type in CELL_TYPES:
        edges = [
            Edge(node, predecessor, primitive)
            for (predecessor, node), row in zip(SPACE.edges, gates[cell_type].kept, strict=True)
            for primitive, kept in zip(SPACE.primitives, row, strict=True)
            if kept
        ]
        cells.append(Cell(tuple(edges), SPACE.nodes))
    return Genotype("gates", *cells)


@pytest.fixture(scope="module")
def supernet():
    """One for all patterns: its edges are traced once. Affine parameters and biases are away from their initial values."""
    keras.utils.set_random_seed(0)
    network = Supernet(SPACE, PLAN)
    generator = np.random.default_rng(4)
    for variable in network.weight_variables:
        if len(variable.shape) == 1:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    return network


def set_posterior(supernet, gates):
    for cell_type in CELL_TYPES:
        for layer, open_ in (
            (supernet.operation_dropout[cell_type], gates[cell_type].operations),
            (supernet.edge_dropout[cell_type], gates[cell_type].edges),
        ):
            layer.weight.assign(np.ones(open_.shape))
            layer.log_dropout_rate.assign(np.where(open_, -CERTAIN, CERTAIN))


def noiseless(gates):
    """The draw that such a posterior gives, without the noise of sqrt(e^-20) that it still has."""

    def as_draw(gate):
        gate = tf.constant(gate.astype(np.float32))
        return Draw(gate, tf.zeros_like(gate))

    return {cell_type: CellDraw(as_draw(gates[cell_type].operations), as_draw(gates[cell_type].edges)) for cell_type in CELL_TYPES}


def tail(variable):
    """`depthwise_1/kernel` of a variable's path: the same in a template and in an evaluation network's layer."""
    return "/".join(variable.path.split("/")[-2:])


def searched_weights(supernet, genotype):
    """Name of a layer of the evaluation network to the values of its convolutions, for all layers that the genotype names."""
    values = {}
    for plan, cell in zip(PLAN.cells, supernet.cells, strict=True):
        for number, layer in enumerate(cell.preprocessing):
            values[f"cell{plan.index}_preprocess{number}"] = {tail(variable): variable for variable in layer.variables}
        genotype_cell, edge_weights = genotype.cell(plan.cell_type), cell.edge_weights()
        for node in genotype_cell.nodes:
            for number, edge in enumerate(genotype_cell.edges_into(node)):
                primitive = SPACE.primitives.index(edge.operation)
                names = [tail(variable) for variable in cell._mixed[edge.predecessor].templates[primitive].trainable_variables]
                layer = f"cell{plan.index}_node{node}_{number}_from{edge.predecessor}_{edge.operation}"
                values[layer] = dict(zip(names, edge_weights[SPACE.edges.index((edge.predecessor, node))][primitive], strict=True))
    return values


def copy_weights(supernet, model, genotype):
    """Gives every layer of the model its weights; batch-norms of cells stay at scale 1 and offset 0, which the search's cells have."""
    values = searched_weights(supernet, genotype)
    stem = {tail(variable): variable for variable in supernet.stem.get_layer("stem").variables}
    for layer in model.layers:
        variables = {tail(variable): variable for variable in layer.trainable_variables}
        if layer.name == "stem":
            own = {name.replace("scale", "gamma").replace("offset", "beta"): variable for name, variable in stem.items()}
        elif layer.name == "classifier":
            own = {tail(variable): variable for variable in supernet.classifier.variables}
        else:
            variables = {name: variable for name, variable in variables.items() if name.endswith("kernel")}
            own = values[layer.name] if variables else {}
        assert own.keys() == variables.keys(), layer.name
        for name, variable in variables.items():
            variable.assign(own[name])


def test_patterns_cover_every_primitive_at_both_strides_several_operations_and_dropped_edges():
    # Without this the equality could become vacuous.
    sampled = list(PATTERNS.values())
    from_input = np.array([predecessor < 2 for predecessor, _ in SPACE.edges])
    assert np.any([gates["reduction"].kept[from_input] for gates in sampled], axis=(0, 1)).all()  # stride 2
    assert np.any([gates["reduction"].kept[~from_input] for gates in sampled], axis=(0, 1)).all()
    for gates in sampled:
        for cell_type in CELL_TYPES:
            per_edge = gates[cell_type].kept.sum(axis=1)
            assert per_edge.max() >= 2 and per_edge.min() == 0
            assert (gates[cell_type].operations & ~gates[cell_type].edges[:, np.newaxis]).any()  # open on a dropped edge
    assert not np.array_equal(sampled[0]["normal"].kept, sampled[0]["reduction"].kept)


def evaluated(model):
    return model(IMAGES, training=True).numpy()  # in training, batch-norm takes the statistics of the batch


@pytest.mark.parametrize("name", PATTERNS)
def test_the_supernet_equals_the_evaluation_network_derived_from_it(name, supernet):
    gates = PATTERNS[name]
    set_posterior(supernet, gates)
    genotype = derive(supernet.posterior(0), rule="mode", seed=0, budget=UNLIMITED).genotype
    assert genotype.canonical().sha256 == genotype_of(gates).canonical().sha256
    model = evaluation_network(genotype, PLAN, pool_normalization=POOL_NORMALIZATIONS[name])
    searched, unrelated = supernet(IMAGES, draw=noiseless(gates)).numpy(), evaluated(model)
    copy_weights(supernet, model, genotype)
    assert np.ptp(searched, axis=0).min() > 0.01  # the images do matter
    assert np.abs(searched - unrelated).max() > 0.01  # and so do the weights
    assert np.abs(searched - evaluated(model)).max() < 1e-5 * np.abs(searched).max()
    if name == "half":
        other = supernet(IMAGES, draw=noiseless(PATTERNS["sparse"]))
        assert np.abs(other - evaluated(model)).max() > 0.01  # and the gates


@pytest.mark.parametrize("name", ["sparse", "dense"])
def test_the_posterior_draws_the_gates_that_it_is_certain_of(name, supernet):
    gates = PATTERNS[name]
    set_posterior(supernet, gates)
    draw = supernet.draw(0)
    for cell_type in CELL_TYPES:
        np.testing.assert_array_equal(draw[cell_type].operations.gate, gates[cell_type].operations)
        np.testing.assert_array_equal(draw[cell_type].edges.gate, gates[cell_type].edges)
    # Its noise is sqrt(e^-20) = 5e-5 of each operation and edge.
    np.testing.assert_allclose(supernet(IMAGES, draw=draw), supernet(IMAGES, draw=noiseless(gates)), atol=5e-3)


def test_the_sampling_rule_derives_the_same_network(supernet):
    gates = PATTERNS["half"]
    set_posterior(supernet, gates)
    rules = {
        rule: derive(supernet.posterior(0), rule=rule, seed=0, budget=UNLIMITED).genotype.sha256 for rule in ("mode", "sample", "budget")
    }
    assert set(rules.values()) == {rules["mode"]}
