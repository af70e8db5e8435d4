"""benchmarks/ablation.py: its runs are valid, and docs/ablation.md says what its lines say."""

import json
import pathlib
import re
import shlex
import sys

import pytest

from sivdnas_tf import __main__ as command_line
from sivdnas_tf.config import Config
from sivdnas_tf.derive import derive
from sivdnas_tf.genotype import Genotype
from sivdnas_tf.methods.registry import METHODS
from sivdnas_tf.profiling.costs import check_budget, deployed_cost
from sivdnas_tf.random_search import uniform_posterior
from sivdnas_tf.search_space import get_search_space

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(name="ablation", scope="module")
def fixture_ablation():
    sys.path.insert(0, str(BENCHMARKS))
    import ablation

    yield ablation
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(name="page", scope="module")
def fixture_page(ablation):
    import ablation_page

    assert ablation_page.read_lines is ablation.read_lines
    return ablation_page


def config_of(run):
    """The `Config` of the run's first command."""
    name, *arguments = next(iter(run.commands("unused", "data")))
    values, _ = command_line._parse(name, command_line.COMMANDS[name], arguments)
    return Config.from_dict(values.config.to_dict())


def test_every_run_is_a_valid_configuration_of_its_own(ablation, monkeypatch):
    monkeypatch.chdir(BENCHMARKS.parent)
    runs, seen = ablation.runs(), {}
    assert len({run.key for run in runs}) == len(runs)
    for run in runs:
        config = config_of(run)
        assert config.seed == config.derive.seed == run.seed and config.data.data_dir == "data"
        seen.setdefault(json.dumps([run.genotype, config.to_dict()], sort_keys=True), run.key)
        assert not run.best_of or config.search.method == "si_vdnas"
        if run.genotype:
            check_budget(Genotype.from_architecture_string(run.genotype), config.budget)
    assert len(seen) == len(runs), "two runs have the same configuration"


def test_every_method_is_searched_with_three_seeds_and_trained_with_two(ablation):
    runs = ablation.runs()
    trained = set(METHODS)
    for question, methods, seeds in ((1, trained - {"random"}, 3), (2, trained, 2)):
        for method in methods:
            assert len([run for run in runs if run.question == question and run.name == method]) >= seeds
    assert {run.question for run in runs} == {1, 2, 3, 4, 5}
    assert all(run.trains == (run.question in (2, 5)) for run in runs)


@pytest.mark.parametrize(("question", "least_macs"), [(2, 0.95 * 1.6e6), (5, 110e6)])
def test_random_cells_cost_at_least_that_much_and_none_is_left_out(ablation, monkeypatch, question, least_macs):
    monkeypatch.chdir(BENCHMARKS.parent)
    runs = {run.seed: run for run in ablation.runs() if run.question == question and run.name == "random"}
    config, near = config_of(runs[min(runs)]), []
    posterior = uniform_posterior(get_search_space(config.search.search_space))
    for seed in range(max(runs) + 1):
        derivation = derive(posterior, rule="redraw", seed=seed, budget=config.budget, name="random")
        if derivation.details["cost"]["macs"] >= least_macs:
            near.append(seed)
    assert near == sorted(runs)


def test_every_cell_of_question_1_is_trained_once_and_the_reference_with_three_seeds(ablation, monkeypatch):
    found = {
        "1/a/0": {"question": 1, "architecture_string": "|none~0|", "best_of": {"architecture_string": "|skip_connect~0|"}},
        "1/a/1": {"question": 1, "architecture_string": "|none~0|"},
        "4/b/0": {"question": 4, "architecture_string": "|avg_pool_3x3~0|"},
    }
    monkeypatch.setattr(ablation, "read_lines", lambda: found)
    cells = [(run.genotype, run.seed) for run in ablation.runs() if run.genotype]
    assert sorted(cells) == sorted([("|none~0|", 0), ("|skip_connect~0|", 0), *((ablation._REFERENCE, seed) for seed in range(3))])


def test_lines_are_of_runs_that_there_are(ablation, monkeypatch):
    monkeypatch.chdir(BENCHMARKS.parent)
    known = {run.key: run for run in ablation.runs()}
    for key, line in ablation.read_lines().items():
        assert [shlex.split(command)[3:] for command in line["commands"]] == list(known[key].commands("DIR", "DATA"))
        if "best_of" in line:  # never over the budget, and at least as good on its own score
            found = line["best_of"]
            (budget,) = {float(value) for command in line["commands"] for value in re.findall(r"--config.budget.macs=(\S+)", command)}
            assert found["macs"] <= budget and (found["mode_score"] is None or found["score"] >= found["mode_score"])
        if line["architecture_string"]:
            genotype = Genotype.from_architecture_string(line["architecture_string"])
            kept = [edge.operation for edge in genotype.normal.edges]
            assert line["operations"] == {"normal": [name for name in kept if name != "none"]}
            assert line["macs"] == deployed_cost(genotype, config_of(known[key]).budget).macs


def test_a_run_derives_from_the_finished_search_of_another(ablation, tmp_path, monkeypatch):
    monkeypatch.chdir(BENCHMARKS.parent)
    fields = {"search.method": "random"}
    first = ablation.Run(1, "random", 3, fields=fields)
    source, found = first.directory(tmp_path), ablation.execute(first, tmp_path, tmp_path)
    again = ablation.Run(1, "again", 3, fields={**fields, "budget.macs": found["macs"] - 1}, search_of=first.key)
    target = again.directory(tmp_path)
    (source / "search" / "of_the_source").touch()
    target.with_name(target.name + ".partial").mkdir()  # of a copy that was interrupted
    line = ablation.execute(again, tmp_path, tmp_path)
    assert (target / "search" / "of_the_source").exists() and line["macs"] < found["macs"]
    assert "findings" in found and "findings" not in line
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((source.name, target.name))
    assert ablation.execute(first, tmp_path, tmp_path) == found and ablation.execute(again, tmp_path, tmp_path) == line


def test_a_run_does_not_derive_from_a_search_that_has_not_finished(ablation, tmp_path):
    again = ablation.Run(1, "again", 3, search_of="1/random/3")
    for unfinished in (None, "search"):
        if unfinished:
            (ablation.Run(1, "random", 3).directory(tmp_path) / unfinished).mkdir(parents=True)
        with pytest.raises(RuntimeError, match=r"1_again_3 derives from the search of another run.*1_random_3"):
            ablation.execute(again, tmp_path, tmp_path)
    assert not again.directory(tmp_path).exists()


def test_what_derives_again_has_the_same_search(ablation, monkeypatch):
    monkeypatch.chdir(BENCHMARKS.parent)
    runs = {run.key: run for run in ablation.runs()}
    again = [run for run in runs.values() if run.search_of]
    assert again
    for run in again:
        assert config_of(run).stage_settings("search") == config_of(runs[run.search_of]).stage_settings("search")


def test_a_finished_run_becomes_a_line(ablation, tmp_path, monkeypatch):
    """Of the method that trains nothing: search and derive by their commands, in processes of their own."""
    monkeypatch.chdir(BENCHMARKS.parent)
    run = ablation.Run(1, "random", 3, fields={"search.method": "random", "budget.macs": 100e6})
    line = ablation.execute(run, tmp_path, tmp_path)
    assert line["key"] == "1/random/3" and line["macs"] <= 100e6 and line["steps"] == 0
    assert Genotype.from_architecture_string(line["architecture_string"]).normal.edges
    assert ablation.execute(run, tmp_path, tmp_path) == line
    wrong = ablation.Run(1, "over", 0, fields={"search.method": "random", "budget.macs": 1.0})
    with pytest.raises(RuntimeError, match="1/over/0: derive ended with 3"):
        ablation.execute(wrong, tmp_path, tmp_path)


def test_the_page_shows_what_the_lines_say(ablation, page):
    lines = ablation.read_lines()
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.render(text, lines) == text, "run benchmarks/ablation_page.py"
    for name, svg in page.plots(lines).items():
        assert (page.PAGE.with_suffix("") / name).read_text(encoding="utf-8") == svg, "run benchmarks/ablation_page.py"
    shown = page.render(text, {})
    assert not lines or shown != text  # the tables do hold the lines
    with pytest.raises(ValueError, match="one pair of markers of the table methods"):
        page.render(text.replace("<!-- methods -->", ""), lines)
