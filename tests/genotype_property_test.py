"""Properties of genotypes: any valid one round-trips, builds, is priced exactly and exports; any mutated one is refused or still valid."""

import collections
import copy
import dataclasses
import json

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export import runtimes
from export.saved_model import write_saved_model
from export.to_tflite import write_tflite
from sivdnas_tf import darts_genotype
from sivdnas_tf.errors import GenotypeError
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.models.evaluation_network import evaluation_network
from sivdnas_tf.profiling.costs import network_cost
from sivdnas_tf.quiet import quiet
from sivdnas_tf.search_space import DARTS_OPERATIONS, plan_network
from sivdnas_tf.zoo import registry

SIZE = {"network": "cifar", "channels": 4, "cells": 3, "classes": 3, "resolution": 8, "image_channels": 1}
COMMON = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}


@st.composite
def cells(draw, max_nodes=5, max_edges=4):
    """A cell: nodes left out, several operations on an edge, the same one twice, dead ends, entries and concat in any order."""
    nodes = draw(st.lists(st.integers(2, 1 + max_nodes), min_size=1, max_size=max_nodes, unique=True).map(sorted))
    edges = []
    for number, node in enumerate(nodes):
        predecessors = st.sampled_from([0, 1, *nodes[:number]])
        operations = st.sampled_from(DARTS_OPERATIONS)
        edges += draw(st.lists(st.builds(Edge, st.just(node), predecessors, operations), min_size=1, max_size=max_edges))
    concat = draw(st.lists(st.sampled_from(nodes), min_size=1, unique=True))
    return Cell(tuple(draw(st.permutations(edges))), tuple(concat))


def genotypes(**limits):
    return st.builds(Genotype, st.text("ab é<", max_size=5), cells(**limits), cells(**limits))


def build(genotype):
    """The deployed network, its batch-norm away from the initial values, and images for it."""
    keras.utils.set_random_seed(0)
    model = evaluation_network(genotype, plan_network(**SIZE, multipliers=genotype.multipliers))
    generator = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(generator.uniform(0.5, 2.0, variable.shape))
        elif variable.name in ("beta", "moving_mean"):
            variable.assign(generator.normal(0.0, 0.5, variable.shape))
    return model, generator.normal(size=(2, 8, 8, 1)).astype(np.float32)


@settings(max_examples=100, **COMMON)
@given(genotypes())
def test_any_genotype_survives_a_round_trip(genotype):
    assert Genotype.from_json(genotype.to_json()) == genotype
    canonical = genotype.canonical()
    assert canonical.canonical() == canonical
    assert sorted(canonical.normal.edges, key=str) == sorted(genotype.normal.edges, key=str)
    assert genotype.sha256 == dataclasses.replace(genotype, name="z").sha256


def test_the_cells_are_as_various_as_they_should_be():
    """Fails where the properties here have become vacuous."""
    seen = set()

    @settings(max_examples=100, **COMMON)
    @given(cells())
    def look(cell):
        pairs = [(edge.node, edge.predecessor) for edge in cell.edges]
        read = {edge.predecessor for edge in cell.edges} | set(cell.concat)
        for name, holds in {
            "several operations on an edge": len(set(pairs)) < len(pairs),
            "an operation twice": len(set(cell.edges)) < len(cell.edges),
            "a node left out": max(cell.nodes) - 1 > len(cell.nodes),
            "a dead end": not set(cell.nodes) <= read,
            "an unused input": not {0, 1} <= read,
            "a concat out of order": list(cell.concat) != sorted(cell.concat),
            "a node that is not concatenated": len(cell.concat) < len(cell.nodes),
        }.items():
            if holds:
                seen.add(name)

    look()
    assert len(seen) == 7


@settings(max_examples=8, **COMMON)
@given(genotypes(max_nodes=3, max_edges=3))
def test_any_genotype_builds_with_the_parameters_that_it_is_priced_at(genotype):
    model, images = build(genotype)
    params = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert params == network_cost(genotype, **SIZE).params
    logits = model(images, training=False).numpy()
    assert logits.shape == (2, 3) and np.all(np.isfinite(logits))


@settings(max_examples=2, **COMMON)
@given(genotypes(max_nodes=3, max_edges=2))
def test_any_genotype_exports(tmp_path_factory, genotype):
    model, images = build(genotype)
    expected, path = model(images, training=False).numpy(), tmp_path_factory.mktemp("export")
    model.trainable = False
    with quiet((1, 2)):
        write_saved_model(model, path / "saved_model")
        write_tflite(model, path / "model.tflite")
    for name, file in (("saved_model", "saved_model"), ("tflite", "model.tflite")):
        np.testing.assert_allclose(runtimes.load(name, path / file).run(images), expected, rtol=0, atol=2e-5, err_msg=name)


# Mutations.


def paths(value, path=()):
    """The path of every part of JSON types, the whole included."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, part in parts for inner in paths(part, (*path, key)))]


def mutated(data, draw):
    """`data` with one part deleted, written twice, replaced, changed in value or wrapped."""
    path = draw(st.sampled_from(paths(data)))
    if not path:
        return draw(ANYTHING | st.just([data]) | st.just({"genotype": data}))
    *above, key = path
    parent = data
    for step in above:
        parent = parent[step]
    value = parent[key]
    action = draw(st.sampled_from(["delete", "duplicate", "replace", "number", "wrap", "move"]))
    if action == "delete":
        del parent[key]
    elif action == "duplicate" and isinstance(parent, list):
        parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(value))
    elif action == "duplicate":
        parent[draw(st.sampled_from([f"{key}s", "node", "edges", "normal"]))] = copy.deepcopy(value)
    elif action == "number" and isinstance(value, int):
        parent[key] = draw(st.sampled_from([value + 1, value - 1, -value, float(value), bool(value), str(value), value + 10**9, 64, 65]))
    elif action == "wrap":
        parent[key] = draw(st.sampled_from([[value], {"value": value}, [[value]]]))
    elif action == "move":
        other = data
        for step in draw(st.sampled_from(paths(data))):
            other = other[step]
        parent[key] = copy.deepcopy(other)
    else:
        parent[key] = draw(ANYTHING)
    return data


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=4) | st.sampled_from(DARTS_OPERATIONS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["node", "edges", "concat", "x"]), inner, max_size=3),
    max_leaves=6,
)


def refused_or_valid(path):
    """Reads a file as a command does; a genotype that is accepted can be priced and written, a refusal is one line."""
    try:
        genotype, _ = darts_genotype.load(path)
    except GenotypeError as error:
        assert "\n" not in str(error) and "Received: " in str(error)
        return False
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert network_cost(genotype, **SIZE).params > 0
    return True


@pytest.fixture(name="path", scope="module")
def fixture_path(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated") / "genotype.json"


def test_a_mutated_genotype_is_refused_or_still_valid(path):
    seen = collections.Counter()

    @settings(max_examples=400, **COMMON)
    @given(genotypes(max_nodes=2, max_edges=2), st.data(), st.integers(1, 2))
    def mutate(genotype, data, times):
        value = json.loads(genotype.to_json())
        for _ in range(times):
            value = mutated(value, data.draw)
        path.write_text(json.dumps(value), encoding="utf-8")
        seen[refused_or_valid(path)] += 1

    mutate()
    assert seen[False] > 100 and seen[True] > 10, seen


INSERTED = st.binary(max_size=3) | st.sampled_from([b'"', b"{", b"]", b",", b"1"])


@settings(max_examples=300, **COMMON)
@given(st.sampled_from(registry.names()), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), INSERTED), max_size=3))
def test_damaged_bytes_are_refused_or_still_valid(path, name, changes):
    content = registry.load(name).to_json().encode()
    for place, length, inserted in changes:
        start = int(place * len(content))
        content = content[:start] + inserted + content[start + length :]
    path.write_bytes(content)
    assert refused_or_valid(path) or changes
