"""Search and derive by other methods than the paper's through the command line, in a space that traces in seconds."""

import json

import numpy as np
import pytest

from sivdnas_tf import search_space
from sivdnas_tf.commands import read_config
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.search_space import CELL_TYPES, SearchSpace
from sivdnas_tf.uncertainty import describe

SMALL = SearchSpace("darts", ("max_pool_3x3", "skip_connect", "sep_conv_3x3"), n_nodes=2)


@pytest.fixture(name="small_space")
def fixture_small_space(monkeypatch):
    monkeypatch.setitem(search_space.SEARCH_SPACES, "darts", SMALL)


@pytest.fixture(name="search")
def fixture_search(call, tiny_config, tmp_path):
    """A function that searches by a method and says where; two epochs of two steps, of which the first is warm-up."""

    def search(method, *flags):
        run = tmp_path / method
        flags = ["--config.search.epochs=2", "--config.search.steps_per_epoch=2", *flags]
        code, out, err = call("search", f"--config={tiny_config}", f"--workdir={run}", f"--config.search.method={method}", *flags)
        assert (code, err) == (0, ""), err
        return run, out

    return search


def check_search(run, method):
    """What every search by another method leaves; returns the posterior."""
    run_dir = RunDir(run)
    records, history, posterior = run_dir.read_metrics("search"), run_dir.read_npz("search/posterior_history.npz"), run_dir.read_posterior()
    assert [record["method"] for record in records] == [method] * 2
    assert str(history["method"]) == posterior.method == method
    # lambda = 0 throughout, whatever search.prior_gap_decay says.
    assert [record["prior_gap"] for record in records] == [1.0, 1.0]
    return records, posterior


def kept(run, cell_type):
    return [(edge.predecessor, edge.node, edge.operation) for edge in RunDir(run).read_genotype().cell(cell_type).edges]


@pytest.mark.slow
def test_h_vdnas_from_search_to_genotype(search, call, refusal, small_space):
    run, _ = search("h_vdnas", "--config.search.warmup_epochs=0")  # annealing, if there were any, would begin after the first epoch
    records, posterior = check_search(run, "h_vdnas")
    sizes = [posterior.cell(cell_type).log_operation_dropout_rate.size + 5 for cell_type in CELL_TYPES]
    # After a few steps of the architecture, whose rates began at -5; all gates are 1, so all parameters count.
    assert sum(sizes) * 0.5 * np.log1p(np.exp(5.0)) * 0.8 < records[1]["kl"] < sum(sizes) * 0.5 * np.log1p(np.exp(5.0))
    assert all(np.all(posterior.cell(cell_type).log_edge_dropout_rate != -5.0) for cell_type in CELL_TYPES)
    message = refusal("derive", f"--workdir={run}", "--rule=sample")
    assert "rule sample does not fit what the method h_vdnas leaves. Expected budget or mode or darts." in message
    code, out, _ = call("derive", f"--workdir={run}", "--budget_macs=1e9")
    details = read_json(run / "derive.json")
    assert code == 0 and "derive: normal cell keeps 15 of 15 operations" in out
    assert (details["method"], details["rule"], details["rule_reason"]) == ("h_vdnas", "budget", "the rule of method h_vdnas")


def test_darts_from_search_to_genotype_and_report(search, call, refusal, small_space):
    run, _ = search("darts_second", "--config.search.architecture_learning_rate=0.1")
    records, posterior = check_search(run, "darts_second")
    assert records[1]["kl"] == 0 and records[0]["architecture_loss"] is None
    for cell_type in CELL_TYPES:
        cell = posterior.cell(cell_type)
        assert np.all(cell.operation_weights != 0) and np.all(cell.edge_weights == 1)
        assert np.all(cell.operation_keep_probability == 1) and np.all(cell.edge_keep_probability == 1)
    for rule in ("budget", "mode", "sample", "redraw"):
        assert f"Expected darts. Received: rule='{rule}', method='darts_second'" in refusal("derive", f"--workdir={run}", f"--rule={rule}")
    assert "the network that rule darts derives costs more" in refusal("derive", f"--workdir={run}", "--budget_macs=1", code=3)
    assert not (run / "genotype.json").exists()
    code, out, _ = call("derive", f"--workdir={run}", "--budget_macs=1e9")
    assert code == 0
    uncertainty = read_json(run / "derive.json")["uncertainty"]
    assert uncertainty["expected_macs"] is None and uncertainty["macs_interval"] is None
    assert 0.9 * np.log(3) < uncertainty["mean_entropy"] < uncertainty["largest_entropy"] == np.log(3)
    assert out.splitlines()[-1] == f"derive: uncertainty: entropy {uncertainty['mean_entropy']:.2f} of 1.10 nats an edge"
    assert records[1]["mixing_gradient_norm"] > 0 and records[1]["dropout_rate_gradient_norm"] is records[1]["macs_low"] is None
    for cell_type in CELL_TYPES:
        weights = posterior.cell(cell_type).operation_weights
        softmax = np.exp(weights) / np.exp(weights).sum(axis=1, keepdims=True)
        history = RunDir(run).read_npz("search/posterior_history.npz")[f"{cell_type}_operation_weight"]
        np.testing.assert_allclose(history, [np.full(weights.shape, 1 / 3), softmax], rtol=1e-6)
        strongest = np.sort(np.argsort(-softmax[2:].max(axis=1), kind="stable")[:2]) + 2
        edges = [0, 1, *strongest]
        assert kept(run, cell_type) == [(*SMALL.edges[edge], SMALL.primitives[int(np.argmax(weights[edge]))]) for edge in edges]
    details = read_json(run / "derive.json")
    assert (details["rule"], details["rule_reason"]) == ("darts", "the rule of method darts_second")
    for flags in ([], ["--rule=darts"]):  # the method's own rule, asked for or not
        assert "done already" in call("derive", f"--workdir={run}", "--budget_macs=1e9", *flags)[1]
    assert call("report", f"--workdir={run}")[0] == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "method darts_second" in page and "outranked" in page and "The method has no keep probabilities" in page


def test_random_search_trains_nothing_and_fits_the_budget(search, call, refusal, small_space):
    run, out = search("random")
    assert out.count("\n") == 1 and "trains no supernet" in out
    assert not (run / "search" / "checkpoints").exists() and not (run / "search" / "metrics.jsonl").exists()
    costs = []
    for seed in (0, 1, 1):
        assert call("derive", f"--workdir={run}", f"--seed={seed}", "--budget_macs=110e3", "--overwrite")[0] == 0
        costs.append((read_json(run / "derive.json")["cost"]["macs"], kept(run, "normal"), kept(run, "reduction")))
    uncertainty = read_json(run / "derive.json")["uncertainty"]
    assert uncertainty == json.loads(json.dumps(describe(RunDir(run).read_posterior(), read_config(RunDir(run)).budget)))
    # 30 operations, each with a probability of 1/2 x 1/5, on 10 edges, each with 1/2 x (1 - (4/5)^3).
    assert (uncertainty["expected_operations"], uncertainty["expected_edges"]) == pytest.approx((3.0, 2.44), rel=1e-6)
    low, high = uncertainty["macs_interval"]["low"], uncertainty["macs_interval"]["high"]
    line = call("derive", f"--workdir={run}", "--seed=1", "--budget_macs=110e3", "--overwrite")[1].splitlines()[-1]
    assert line.startswith("derive: uncertainty: entropy 2.19 of 2.77 nats an edge; expected 3.0 operations on 2.4 edges, ")
    assert line.endswith(f"(standard deviation {uncertainty['macs_std']:,.0f}; 90% of draws {low:,.0f} to {high:,.0f})")
    assert costs[1] == costs[2] != costs[0] and max(cost for cost, *_ in costs) <= 110e3
    assert "of the 1000 draws of rule redraw costs more than the budget" in refusal(
        "derive", f"--workdir={run}", "--budget_macs=1", "--seed=1", "--overwrite", code=3
    )
    code, out, _ = call("report", f"--workdir={run}")
    assert code == 0 and "method random" in (run / "report.html").read_text(encoding="utf-8")


def test_a_dry_run_of_random_search_builds_no_supernet(call, tiny_config, workdir):
    code, out, _ = call("run", f"--config={tiny_config}", f"--workdir={workdir}", "--dry_run", "--config.search.method=random")
    assert code == 0 and "search: method random trains no supernet\n" in out


def test_a_contradicting_setting_is_refused_before_anything_is_made(refusal, tiny_config, workdir):
    flags = ["--config.search.method=darts_first", "--config.search.hypergradient_order=2"]
    message = refusal("search", f"--config={tiny_config}", f"--workdir={workdir}", *flags)
    assert message.endswith("Expected search.hypergradient_order 1, or the method darts_second. Received: search.hypergradient_order=2\n")
    assert "Did you mean 'darts_first'?" in refusal(
        "search", f"--config={tiny_config}", f"--workdir={workdir}", "--config.search.method=dartsfirst"
    )


@pytest.mark.slow
def test_best_of_scores_draws_in_the_supernet_of_the_search(search, call, refusal, small_space, monkeypatch):
    from sivdnas_tf.training import score

    built = []
    build = score.build_supernet
    monkeypatch.setattr(score, "build_supernet", lambda *arguments: built.append(build(*arguments)) or built[-1])
    run, _ = search("si_vdnas", "--config.derive.samples=4")
    derived = []
    for _ in range(2):
        code, out, err = call("derive", f"--workdir={run}", "--rule=best_of", "--budget_macs=1e9", "--overwrite")
        assert (code, err) == (0, "") and "of 5: accuracy" in out
        derived.append((RunDir(run).read_genotype(), read_json(run / "derive.json")))
    assert derived[0] == derived[1]
    genotype, details = derived[0]
    scores = [entry["score"] for entry in details["candidates"]]
    assert len(scores) == 5 and all(0 <= value <= 1 for value in scores) and scores[0] <= max(scores)
    # The supernet that scored is the one that was searched.
    posterior, scored = RunDir(run).read_posterior(), built[0].posterior(2)
    for name, value in posterior.to_arrays().items():
        np.testing.assert_array_equal(scored.to_arrays()[name], value)
    draw = score.genotype_draw(genotype, SMALL)
    for cell_type in CELL_TYPES:
        entries = {(edge.predecessor, edge.node, edge.operation) for edge in genotype.cell(cell_type).edges}
        gates = np.argwhere(draw[cell_type].operations.gate)
        assert {(*SMALL.edges[edge], SMALL.primitives[primitive]) for edge, primitive in gates.tolist()} == entries
    for path in (run / "search" / "checkpoints").iterdir():
        path.unlink()
    message = refusal("derive", f"--workdir={run}", "--rule=best_of", "--budget_macs=1e9", "--overwrite")
    assert "Expected a checkpoint of the search. Received: none in" in message
