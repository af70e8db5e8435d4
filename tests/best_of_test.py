import dataclasses

import numpy as np
import pytest

from sivdnas_tf.config import BudgetConfig
from sivdnas_tf.derive import derive
from sivdnas_tf.errors import BudgetError, ConfigError
from sivdnas_tf.posterior import CellPosterior, Posterior
from sivdnas_tf.search_space import CELL_TYPES, get_search_space

SPACE = get_search_space("darts")
E, P = len(SPACE.edges), len(SPACE.primitives)
WIDE = BudgetConfig(network="cifar", channels=4, cells=3, classes=2, resolution=4, image_channels=1, macs=1e12)
GENERATOR = np.random.default_rng(0)
ARRAYS = [GENERATOR.normal(0.5, 1.0, shape).astype(np.float32) for _ in CELL_TYPES for shape in ((E, P), (E, P), E, E)]
POSTERIOR = Posterior("darts", 5, CellPosterior(*ARRAYS[:4]), CellPosterior(*ARRAYS[4:]))


def convolutions(genotype):
    """A score that has nothing to do with the posterior."""
    return sum("conv" in edge.operation for cell_type in CELL_TYPES for edge in genotype.cell(cell_type).edges)


def run(rule="best_of", *, seed=0, score=convolutions, samples=16, **limits):
    return derive(POSTERIOR, rule=rule, seed=seed, budget=dataclasses.replace(WIDE, **limits), score=score, samples=samples)


def test_the_best_of_all_candidates_is_kept():
    found = run()
    candidates = found.details["candidates"]
    assert [entry["from"] for entry in candidates] == ["mode"] + ["draw"] * 16
    scores = [entry["score"] for entry in candidates]
    assert convolutions(found.genotype) == max(scores) > min(scores)
    best = candidates[int(np.argmax(scores))]
    assert best["genotype_sha256"] == dataclasses.replace(found.genotype, name="").sha256
    assert best["macs"] == found.details["cost"]["macs"]
    assert max(scores) >= scores[0] == convolutions(run("mode").genotype)
    worst = run(score=lambda genotype: -convolutions(genotype))
    assert convolutions(worst.genotype) == min(scores)


def test_it_is_never_over_the_budget_and_the_same_for_the_same_seed():
    macs = sorted(entry["macs"] for entry in run(samples=40).details["candidates"])
    limit = float(macs[12])
    for seed in range(5):
        found = run(seed=seed, samples=40, macs=limit)
        assert found.details["cost"]["macs"] <= limit
        assert found == run(seed=seed, samples=40, macs=limit)
        for entry in found.details["candidates"]:
            assert (entry["score"] is None) is (entry["macs"] > limit)
    assert len({run(seed=seed, samples=40, macs=limit).genotype.sha256 for seed in range(5)}) > 1


def test_only_what_fits_is_scored_and_each_genotype_once():
    asked = []
    certain = [np.full_like(array, 30.0) for array in ARRAYS[:4]]  # every gate closed: every draw is what the guarantee restores
    cell = CellPosterior(*certain)
    posterior = Posterior("darts", 5, cell, cell)
    derive(posterior, rule="best_of", seed=0, budget=WIDE, score=lambda genotype: asked.append(genotype) or 0.5)
    assert len(asked) == 1
    limit, asked = float(np.median([entry["macs"] for entry in run().details["candidates"]])), []
    found = run(score=lambda genotype: asked.append(genotype) or 0.5, macs=limit)
    assert len(asked) == sum(entry["macs"] <= limit for entry in found.details["candidates"]) < 17


def test_without_one_that_fits_the_error_names_the_cheapest():
    cheapest = min(entry["macs"] for entry in run().details["candidates"])
    with pytest.raises(BudgetError, match=f"the cheapest network that rule best_of drew costs more .* Received: {cheapest:,} macs"):
        run(macs=cheapest - 1.0, score=lambda genotype: pytest.fail("scored"))


def test_log_probabilities_are_those_of_the_gates():
    entries = run(samples=3).details["candidates"]
    log_mode = 0.0
    for cell_type in CELL_TYPES:
        cell = POSTERIOR.cell(cell_type)
        for keep in (cell.edge_keep_probability, cell.operation_keep_probability):
            log_mode += np.log(np.maximum(keep, 1 - keep)).sum()
    assert entries[0]["log_probability"] == pytest.approx(log_mode)
    assert all(entry["log_probability"] < log_mode for entry in entries[1:])


def test_it_needs_a_score():
    with pytest.raises(ConfigError, match="rule best_of needs score"):
        run(score=None)
