import json
import xml.etree.ElementTree as ElementTree

import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.errors import BudgetError, NonFiniteError
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.tuning import records
from sivdnas_tf.tuning.space import parse_space

CONFIG = replace(Config(), tune={"space": (("search.kl_weight", "log_float", 1e-3, 1.0),), "max_trials": 4})


def result(number, objective, macs, status="completed", **others):
    return {
        **{"trial": f"{number:02}", "status": status, "reason": None if status == "completed" else "too dear", "continues": None},
        **{"values": {"search.kl_weight": 0.01 * (number + 1)}, "objective": objective, "loss": 0.1, "macs": macs, "params": 5},
        **{"epochs": 2, "seconds": 1.5, "genotype_sha256": None, "directory": f"tune/trials/{number}", **others},
    }


@pytest.fixture(name="run_dir")
def fixture_run_dir(tmp_path):
    return RunDir(tmp_path / "run")


def write(run_dir, *results):
    for one in results:
        records.write_result(run_dir, one)


def test_the_trials_are_summed_up(run_dir):
    some = (result(10, 0.9, 3_000_000), result(0, 0.8, 1_000_000), result(2, 0.85, 4_000_000), result(1, None, None, "over_budget"))
    write(run_dir, *some)
    lines = []
    records.finish(run_dir, CONFIG, parse_space(CONFIG), lines.append)
    trials = [json.loads(line) for line in run_dir.file("tune/trials.jsonl").read_text().splitlines()]
    assert trials == [some[1], some[3], some[2], some[0]]  # by number, not by name
    summary = read_json(run_dir.file("tune/summary.json"))
    assert summary["best"] == some[0] and summary["pareto_front"] == ["00", "10"] and summary["max_trials"] == 4
    assert summary["trials"] == {"completed": 3, "over_budget": 1, "not_finite": 0, "out_of_memory": 0}
    assert summary["importance"] == {"estimate": "rank correlation ratio", "values": {"search.kl_weight": pytest.approx(1.0)}}
    assert lines[0] == "tune: best trial 10: accuracy 0.9000, 3,000,000 macs: search.kl_weight=0.11"
    assert "trials 0, 10" in lines[1] and "search.kl_weight 1.00" in lines[2] and "best_config.py" in lines[3]
    assert "kl_weight = 0.11" in run_dir.file("tune/best_config.py").read_text()


def test_the_picture_has_a_dot_a_trial_and_the_front(run_dir):
    write(run_dir, result(0, 0.8, 1_000_000), result(1, 0.9, 3_000_000), result(2, 0.85, 4_000_000))
    records.finish(run_dir, CONFIG, parse_space(CONFIG), lambda line: None)
    root = ElementTree.fromstring(run_dir.file("tune/pareto.svg").read_text())
    groups = [group for group in root.iter("{http://www.w3.org/2000/svg}g") if group.get("class") == "point"]
    dots = [group.find("{http://www.w3.org/2000/svg}circle") for group in groups]
    assert len(dots) == 3 and [dot.get("fill") == records._FRONT for dot in dots] == [True, True, False]
    assert float(dots[0].get("cx")) < float(dots[1].get("cx")) < float(dots[2].get("cx"))
    assert float(dots[1].get("cy")) < float(dots[2].get("cy")) < float(dots[0].get("cy"))


def test_a_single_trial_is_summed_up(run_dir):
    write(run_dir, result(0, 0.8, 1_000_000))
    records.finish(run_dir, CONFIG, parse_space(CONFIG), lambda line: None)
    assert read_json(run_dir.file("tune/summary.json"))["importance"]["values"] == {}


def test_it_is_finished_until_more_trials_are_asked_for(run_dir):
    write(run_dir, result(0, 0.8, 1_000_000))
    assert not records.is_finished(run_dir, 1)
    records.finish(run_dir, CONFIG, parse_space(CONFIG), lambda line: None)
    assert records.is_finished(run_dir, 3) and records.is_finished(run_dir, 4) and not records.is_finished(run_dir, 5)


def test_trials_that_all_failed_end_in_what_they_failed_of(run_dir):
    write(run_dir, result(0, None, None, "over_budget"))
    with pytest.raises(BudgetError, match=r"every trial of tune was over the budget \(the last one: too dear\).*Received: 1 trials"):
        records.finish(run_dir, CONFIG, parse_space(CONFIG))
    write(run_dir, result(1, None, None, "not_finite"))
    with pytest.raises(NonFiniteError, match="no trial of tune was completed"):
        records.finish(run_dir, CONFIG, parse_space(CONFIG))
    assert not run_dir.is_done("tune")


def test_a_row_says_what_a_trial_did():
    assert records.row(result(3, 0.91234, 1_234_567)) == ("tune:     3    0.9123      1,234,567       1.5  search.kl_weight=0.04")
    assert records.row(result(3, None, None, "not_finite")).endswith("search.kl_weight=0.04  NaN: too dear")
    assert records.row(result(4, 0.5, 7, continues="01")).endswith("(from trial 1, to epoch 2)")
    assert len(records.row(result(3, 0.9, 1)).split("search")[0]) == len(records.HEADER.split("values")[0])
