import collections
import dataclasses

import numpy as np
import pytest

from sivdnas_tf.config import BudgetConfig, Config, replace
from sivdnas_tf.derive import MAX_DRAWS, derive
from sivdnas_tf.errors import BudgetError, RunDirError
from sivdnas_tf.posterior import Posterior
from sivdnas_tf.random_search import uniform_posterior, write_random_search
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.search_space import DARTS_PRIMITIVES, get_search_space

BUDGET = BudgetConfig(network="cifar", channels=4, cells=3, classes=2, resolution=4, image_channels=1, macs=1e12)
POSTERIOR = uniform_posterior(get_search_space("darts"))
CONFIG = replace(Config(), search={"method": "random"})


def run(seed, rule=None, **limits):
    return derive(POSTERIOR, rule=rule, seed=seed, budget=dataclasses.replace(BUDGET, **limits))


def test_the_draw_of_a_seed_is_fixed_and_seeds_differ():
    found = [run(seed).genotype.sha256 for seed in range(20)]
    assert found == [run(seed).genotype.sha256 for seed in range(20)]
    assert len(set(found)) == 20
    # Where the first draw fits, it is that of rule "sample".
    assert found[3] == run(3, "sample").genotype.sha256


def test_no_operation_is_likelier_than_another():
    kept = collections.Counter()
    for seed in range(300):
        kept.update(edge.operation for cell in ("normal", "reduction") for edge in run(seed).genotype.cell(cell).edges)
    counts = np.array([kept[primitive] for primitive in DARTS_PRIMITIVES])
    # A node that nothing feeds gets back the first operation of its first edge, as ties break.
    expected = counts[1:].mean()
    assert expected == pytest.approx(300 * 2 * 14 * 0.1, rel=0.1)
    assert np.abs(counts[1:] - expected).max() < 5 * np.sqrt(expected)


def test_every_draw_is_within_the_budget():
    costs = np.array([run(seed).details["cost"]["macs"] for seed in range(40)])
    limit = float(np.median(costs))
    within = [run(seed, macs=limit) for seed in range(40)]
    assert max(found.details["cost"]["macs"] for found in within) <= limit < costs.max()
    for seed in np.flatnonzero(costs <= limit):  # what fits at once is as it was
        assert within[seed].genotype.sha256 == run(int(seed)).genotype.sha256
    assert {found.details["rule"] for found in within} == {"redraw"}


def test_a_budget_that_no_draw_fits_is_refused_with_the_cheapest_one(monkeypatch):
    from sivdnas_tf import derive as module

    assert MAX_DRAWS >= 1000
    monkeypatch.setattr(module, "MAX_DRAWS", 30)
    costs = []
    priced = module.deployed_cost
    monkeypatch.setattr(module, "deployed_cost", lambda *arguments: costs.append(priced(*arguments)) or costs[-1])
    with pytest.raises(BudgetError, match=r"the cheapest network of the .* draws of rule redraw costs more") as caught:
        run(0, macs=1.0)
    assert f"Received: {min(cost.macs for cost in costs):,} macs" in str(caught.value) and len(costs) == 30


def test_a_search_by_random_writes_its_posterior_and_record_alone(tmp_path):
    run_dir, lines = RunDir(tmp_path), []
    posterior = write_random_search(CONFIG, run_dir, say=lines.append)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "config.json",
        "stages/search.json",
        "search/posterior.npz",
    }
    assert read_json(tmp_path / "config.json")["search"]["method"] == "random"
    read = run_dir.read_posterior()
    assert (read.method, read.epoch, posterior.method) == ("random", 0, "random")
    for name, value in read.to_arrays().items():
        np.testing.assert_array_equal(value, posterior.to_arrays()[name])
    write_random_search(CONFIG, run_dir, say=lines.append)
    assert len(lines) == 2 and lines[0].startswith("search: method random trains no supernet") and "done already" in lines[1]


def test_a_search_by_another_method_is_not_overwritten(tmp_path):
    RunDir(tmp_path).begin("search", Config().stage_settings("search"))
    with pytest.raises(RunDirError, match=r"search.method='si_vdnas', now 'random'"):
        write_random_search(CONFIG, RunDir(tmp_path))
    assert not (tmp_path / "config.json").exists()


def test_run_search_takes_the_same_way_and_reads_no_images(tmp_path):
    from sivdnas_tf.training.search import run_search

    posterior = run_search(CONFIG, None, tmp_path, say=lambda line: None)
    assert posterior.method == "random" and RunDir(tmp_path).is_done("search")


def test_a_posterior_without_a_method_is_of_si_vdnas_and_an_unknown_one_is_refused():
    arrays = POSTERIOR.to_arrays()
    assert arrays.pop("method") == "random"
    assert Posterior.from_arrays(arrays).method == "si_vdnas"
    with pytest.raises(RunDirError, match=r"posterior.npz: method must be one of si_vdnas, .* Received: 'gdas'"):
        Posterior.from_arrays({**arrays, "method": np.array("gdas")})
