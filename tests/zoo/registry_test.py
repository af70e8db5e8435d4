import dataclasses
import importlib.util
import json
import pathlib

import pytest

from sivdnas_tf.config import Config
from sivdnas_tf.errors import GenotypeError
from sivdnas_tf.genotype import Genotype
from sivdnas_tf.profiling.costs import deployed_cost
from sivdnas_tf.zoo import registry

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

SEARCHED = tuple(name for name in registry.names() if "searched" in registry.entry(name))


def test_names_are_those_of_the_published_cells_and_then_of_our_own():
    assert len(registry.names()) == 19 + len(SEARCHED) and registry.names()[19:] == SEARCHED
    assert tuple(f"SI_VDNAS_cifar10_small_{seed}" for seed in range(3)) == SEARCHED
    assert {"DARTS_V1", "DARTS_V2", "PDARTS", "PC_DARTS_cifar", "FairDARTS_b", "DCO_EDGE_BS_64"} <= set(registry.names())


@pytest.mark.parametrize("name", registry.names())
def test_every_entry_is_complete_and_valid(name):
    entry = registry.entry(name)
    assert set(entry) - {"note", "searched", "measured"} == {"genotype", "source", "published", "counts"}
    assert entry["genotype"]["name"] == name
    assert Genotype.from_dict(entry["genotype"]) == registry.load(name)
    assert registry.load(name).to_dict() == entry["genotype"]
    for network in ("cifar", "imagenet"):
        counts = entry["counts"][network]
        assert 0 < counts["params"] < counts["macs"] < counts["macs_ptflops"]


@pytest.mark.parametrize("name", SEARCHED)
def test_what_was_searched_here_says_how_and_is_within_the_budget_of_its_configuration(name):
    entry = registry.entry(name)
    searched = entry["searched"]
    assert searched["command"].startswith("python -m sivdnas_tf run --config=configs/cifar10_small.py")
    assert searched["command"].endswith(f"--config.seed={name[-1]}") and searched["rule"] == "budget"
    spec = importlib.util.spec_from_file_location("cifar10_small", CONFIGS / "cifar10_small.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    budget = Config.from_dict(module.get_config().to_dict()).budget
    cost = dataclasses.asdict(deployed_cost(registry.load(name), budget))
    assert cost["macs"] <= budget.macs < searched["mode_macs"]
    measured = entry.get("measured")  # a later training adds it
    if measured:
        assert measured["split"] == "test" and 0.1 < measured["top1"] < 1.0 and measured["images"] == 10_000
        assert cost.items() <= measured.items()


def test_architectures_are_different():
    assert len({registry.load(name).sha256 for name in registry.names()}) == len(registry.names())


def test_an_entry_is_the_callers_own():
    registry.entry("DARTS_V2")["genotype"]["normal"]["edges"].clear()
    registry.entry("DARTS_V2")["counts"]["cifar"]["params"] = 0
    assert len(registry.entry("DARTS_V2")["genotype"]["normal"]["edges"]) == 8
    assert registry.entry("DARTS_V2")["counts"]["cifar"]["params"] == 3349342


def test_some_cells_have_variable_edges():
    # What this project can build and a DARTS implementation cannot; the other tests lean on their presence.
    cells = [registry.load(name).cell(cell_type) for name in registry.names() for cell_type in ("normal", "reduction")]
    counts = {len(cell.edges_into(node)) for cell in cells for node in cell.nodes}
    assert {1, 2} < counts
    pairs = [[(edge.node, edge.predecessor) for edge in cell.edges] for cell in cells]
    assert any(len(set(edges)) < len(edges) for edges in pairs)  # several operations on one edge


def test_unknown_names_are_refused():
    for function in (registry.entry, registry.load):
        with pytest.raises(GenotypeError, match=r"Did you mean 'PDARTS'\?.*Received: 'PDART'"):
            function("PDART")


def test_resolve_takes_a_name_or_a_path(tmp_path):
    assert registry.resolve("PDARTS") == registry.load("PDARTS")
    path = tmp_path / "mine.json"
    path.write_text(registry.load("DARTS_V1").to_json(), encoding="utf-8")
    assert registry.resolve(path) == registry.resolve(str(path)) == registry.load("DARTS_V1")


def test_a_name_of_the_zoo_comes_before_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PDARTS").write_text(registry.load("DARTS_V1").to_json(), encoding="utf-8")
    assert registry.resolve("PDARTS") == registry.load("PDARTS")
    assert registry.resolve("./PDARTS") == registry.load("DARTS_V1")


def test_resolve_names_the_nearest_and_the_missing_file():
    with pytest.raises(GenotypeError) as caught:
        registry.resolve("DARTS_V3")
    message = str(caught.value)
    assert "\n" not in message
    assert "no file of this name exists" in message
    assert "Did you mean 'DARTS_V" in message
    assert message.endswith("Received: 'DARTS_V3'")
    with pytest.raises(GenotypeError, match=r"no file of this name exists.*Received: 'no/such/file.json'"):
        registry.resolve("no/such/file.json")


def test_resolve_names_a_refused_file(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(GenotypeError, match=r"broken\.json: the genotype lacks 'schema_version'"):
        registry.resolve(path)
    with pytest.raises(GenotypeError, match="cannot read the genotype file"):
        registry.resolve(tmp_path)
    entry = tmp_path / "entry.json"  # an entry of the zoo's file is not a genotype
    entry.write_text(json.dumps(registry.entry("PDARTS")), encoding="utf-8")
    with pytest.raises(GenotypeError, match="unknown key"):
        registry.resolve(entry)
