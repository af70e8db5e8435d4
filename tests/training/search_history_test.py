"""What a search says when it looks wrong: the watch by itself, and searches that are made to collapse or to go well."""

import shutil

import pytest

from sivdnas_tf import search_space
from sivdnas_tf.config import Config, replace
from sivdnas_tf.report.page import write_report
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.search_space import SearchSpace, get_search_space
from sivdnas_tf.training.search import run_search
from sivdnas_tf.training.search_history import Watch

EPOCHS = 6
CONFIG = replace(Config(), search={"epochs": EPOCHS, "warmup_epochs": 1})
# Skip connections from the third epoch on (the second in a row is found), and too few operations in one epoch alone.
SKIP_SHARES, EXPECTED = (0.1, 0.1, 0.8, 0.8, 0.8, 0.8), (190.0, 150.0, 120.0, 100.0, 2.0, 60.0)
FOUND = [[], [], [], ["skip_connections"], ["skip_connections", "few_operations"], ["skip_connections"]]


def records():
    return [
        {"epoch": epoch + 1, "step": 10 * (epoch + 1), "frozen": epoch == 0, "mean_entropy": 3.0}
        | {"skip_share": SKIP_SHARES[epoch], "expected_operations": EXPECTED[epoch]}
        for epoch in range(EPOCHS)
    ]


def watch_all(run_dir, seen, begin=0):
    """Shows a new watch the records from epoch `begin` on, writing metrics as the loop does; returns names and remarks of each."""
    watch, result = Watch(run_dir, get_search_space("darts"), CONFIG), []
    for record in records()[begin:]:
        names = watch.see(dict(record))
        seen.append({**record, "findings": names})
        result.append((names, watch.remarks(seen[-1])))
        run_dir.write_metrics("search", seen)
    return result


def test_a_finding_is_said_when_it_is_new_and_at_the_end(tmp_path):
    result = watch_all(RunDir(tmp_path), [])
    assert [names for names, _ in result] == FOUND
    assert [[line.split(":")[0] for line in lines] for _, lines in result] == [
        *([[]] * 3),
        ["  ! skip_connections"],
        ["  ! few_operations"],
        ["  ! skip_connections"],
    ]
    assert result[3][1][0].startswith("  ! skip_connections: 80% of the operations of the normal cell")
    content = read_json(tmp_path / "search" / "diagnosis.json")
    assert content["epochs"] == EPOCHS
    assert [(entry["name"], entry["epochs"]) for entry in content["findings"]] == [("skip_connections", [4, 5, 6]), ("few_operations", [5])]
    said = {line for _, lines in result for line in lines}
    assert {f"  ! {entry['name']}: {entry['seen']}; {entry['advice']}" for entry in content["findings"]} <= said


@pytest.mark.parametrize("killed", range(EPOCHS))
@pytest.mark.parametrize("later", [0, 1])
def test_a_search_that_continues_finds_what_it_would_have_found(tmp_path, killed, later):
    """Killed with so many epochs in its newest checkpoint, and `later` more in its files."""
    whole = watch_all(RunDir(tmp_path / "whole"), [])
    run_dir, seen = RunDir(tmp_path / "run"), []
    watch_all(run_dir, seen)
    run_dir.write_metrics("search", seen[: killed + later])
    assert watch_all(run_dir, seen[:killed], killed) == whole[killed:]
    for name in ("search/diagnosis.json", "search/metrics.jsonl"):
        assert run_dir.file(name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_worker_that_has_no_earlier_records_goes_on_without(tmp_path):
    assert [names for names, _ in watch_all(RunDir(tmp_path), [], begin=3)][-1] == ["skip_connections"]


# Searches.

SETTINGS = {"channels": 4, "cells": 3, "epochs": 5, "warmup_epochs": 1, "batch_size": 64}
BUDGET = {"network": "cifar", "channels": 4, "cells": 3, "classes": 10, "resolution": 8, "image_channels": 1, "macs": 1e9}
SMALL = SearchSpace("darts", ("max_pool_3x3", "skip_connect", "sep_conv_3x3"), n_nodes=2)


# Adam can raise a log dropout rate by 0.6 a step, and macs weigh more than the cross-entropy: all closes, convolutions first.
COLLAPSING = {"architecture_learning_rate": 0.6, "cost_scale": 20.0, "kl_weight": 0.05}
# By 0.1 a step, 4 in all, from -5: some noise, little dropped, while the weights learn.
SLOW = {"architecture_learning_rate": 0.1, "kl_weight": 0.02}


def search(datasets, path, settings):
    """The lines and the records of a search in a space that traces in seconds."""
    config = replace(Config(), data={"crop_padding": 1, "flip": False}, search={**SETTINGS, **settings}, budget=BUDGET)
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(search_space.SEARCH_SPACES, "darts", SMALL)
        run_search(config, datasets, path, say=lines.append)
        write_report(RunDir(path))
    return lines, RunDir(path).read_metrics("search")


@pytest.fixture(name="collapsed", scope="module")
def fixture_collapsed(digits, tmp_path_factory):
    """A search that is made to collapse: its directory, its lines and its records."""
    path = tmp_path_factory.mktemp("collapsed") / "run"
    return path, *search(digits, path, COLLAPSING)


def findings_of(path):
    return read_json(path / "search" / "diagnosis.json")["findings"]


def test_a_search_that_is_made_to_collapse_says_so(collapsed):
    path, lines, records = collapsed
    at_end = {"without_weights", "few_operations", "accuracy_fell"}
    assert at_end <= set(records[-1]["findings"]) and records[0]["findings"] == records[1]["findings"] == []
    index = next(number for number, line in enumerate(lines) if line.startswith("search 5/5"))
    assert [line[4:].partition(":")[0] for line in lines[index + 1 :]] == records[-1]["findings"]
    for line in lines[index + 1 :]:
        assert "try a smaller search.architecture_learning_rate or search.kl_weight or search.cost_scale, or more search.warmup" in line
    for name in at_end:  # each in the first epoch that has it
        first = next(record["epoch"] for record in records if name in record["findings"])
        after = next(number for number, line in enumerate(lines) if line.startswith(f"  ! {name}: "))
        assert [line for line in lines[:after] if line.startswith("search ")][-1].startswith(f"search {first}/5")
    page = (path / "report.html").read_text(encoding="utf-8")
    assert {entry["name"] for entry in findings_of(path)} >= at_end
    for entry in findings_of(path):
        assert all(entry[key] in page for key in ("name", "seen", "advice"))


@pytest.mark.slow
def test_a_collapsed_search_that_continues_finds_the_same(collapsed, digits, tmp_path):
    """Without its last epoch's checkpoint and its result, as a kill before them leaves it."""
    original, _, records = collapsed
    path = tmp_path / "run"
    shutil.copytree(original, path)
    (path / "search" / "posterior.npz").unlink()
    newest = max(path.glob("search/checkpoints/ckpt-*.index"), key=lambda file: int(file.stem[5:]))
    for file in newest.parent.glob(f"{newest.stem}.*"):
        file.unlink()
    lines, again = search(digits, path, COLLAPSING)
    assert any("resuming at step 40" in line for line in lines)
    assert [record["findings"] for record in again] == [record["findings"] for record in records]
    before, after = ([(entry["name"], entry["epochs"]) for entry in findings_of(each)] for each in (original, path))
    assert after == before


@pytest.mark.slow
def test_a_search_that_goes_well_says_nothing(digits, tmp_path):
    lines, records = search(digits, tmp_path, SLOW)
    assert [record["findings"] for record in records] == [[]] * 5 and len(lines) == 5
    assert records[-1]["accuracy"] > records[1]["accuracy"] and records[-1]["expected_operations"] < records[1]["expected_operations"]
    assert read_json(tmp_path / "search" / "diagnosis.json") == {"epochs": 5, "findings": []}
    assert "Nothing was found in 5 epochs" in (tmp_path / "report.html").read_text(encoding="utf-8")
