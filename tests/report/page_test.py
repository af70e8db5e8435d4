import json
import re
import subprocess
import sys

import numpy as np
import pytest

from sivdnas_tf.errors import GenotypeError, RunDirError
from sivdnas_tf.report.markup import SVG_NAMESPACE
from sivdnas_tf.report.page import write_report
from sivdnas_tf.run_dir import RunDir, read_json, write_json
from sivdnas_tf.search_space import CELL_TYPES, get_search_space
from sivdnas_tf.zoo import registry

STAGES = ("search", "derive", "train", "evaluate", "export")
HEADINGS = [
    "The cells",
    "What was dropped, and why",
    "Diagnosis of the search",
    "Keep probabilities",
    "Uncertainty of the posterior",
    "KL divergence and prior gap",
    "Learning curves of the search",
    "Learning curves of the training",
    "Cost",
    "Exported artifacts",
    "Configuration",
]
HOSTILE = "<script>alert(1)</script>"


def section(page, heading):
    """The markup of one section."""
    (found,) = re.findall(rf"<section><h2>{re.escape(heading)}</h2>(.*?)</section>", page.source, re.DOTALL)
    return found


def numbers_of(value):
    """All numbers in JSON types."""
    if isinstance(value, dict):
        return {number for item in value.values() for number in numbers_of(item)}
    if isinstance(value, list):
        return {number for item in value for number in numbers_of(item)}
    return {float(value)} if isinstance(value, (int, float)) else set()


def test_a_whole_run(make_run, parse_page):
    run_dir = make_run(*STAGES)
    path = write_report(run_dir)
    assert path == run_dir.file("report.html")
    page = parse_page(path)
    assert re.findall(r"<h2>(.*?)</h2>", page.source) == HEADINGS
    assert "<h1>found here</h1>" in page.source and "<title>found here</title>" in page.source
    assert "not run" not in page.text and "not finished" not in page.text
    assert [row["state"] for row in page.table("stage")] == [
        "finished, 6 epochs",
        "finished, rule budget",
        "finished, 4 epochs",
        "finished, 359 images",
        "finished, 2 artifacts",
    ]
    # Two cells, three drawings of each posterior, four charts of its uncertainty, two each of prior, search and training.
    assert len(page.svgs) == page.source.count("<svg") == 2 + 2 * 3 + 4 + 2 + 2 + 2


def test_the_page_needs_no_other_file_and_no_script(make_run, parse_page):
    page = parse_page(write_report(make_run(*STAGES)))
    assert set(re.findall(r"https?://[^\"' <)]*", page.source)) == {SVG_NAMESPACE}
    assert not re.search(r"url\(|@import|javascript:", page.source)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "a", "form", "image", "use"}
    assert not {
        name for _, attributes in page.tags for name in attributes if name in ("src", "href", "xlink:href") or name.startswith("on")
    }
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"}) in page.tags


def test_the_summary_holds_the_numbers_of_the_files(make_run, parse_page):
    run_dir = make_run(*STAGES)
    details = read_json(run_dir.file("derive.json"))
    page = parse_page(write_report(run_dir))
    (summary,) = re.findall(r'<p class="summary">(.*?)</p>', page.source)
    assert "test top-1 <b>96.37 %</b> · test top-5 <b>99.72 %</b>" in summary
    assert f'title="{details["cost"]["macs"]:,}"' in summary and f'title="{details["cost"]["params"]:,}"' in summary
    assert f"{details['cost']['macs'] / 1e6:.2f}M" in summary and 'title="700,000,000"' in summary
    assert "<b>within the budget</b>" in summary


def test_a_network_over_the_budget_is_called_so(make_run, parse_page):
    run_dir = make_run("search", "derive")
    details = read_json(run_dir.file("derive.json"))
    details["budget"]["macs"] = details["cost"]["macs"] - 1
    write_json(run_dir.file("derive.json"), details)
    assert "over the budget" in parse_page(write_report(run_dir)).text
    # The convention says which count is held against the budget.
    details["budget"] |= {"macs": details["cost"]["macs"], "convention": "macs_ptflops"}
    write_json(run_dir.file("derive.json"), details)
    assert "over the budget" in parse_page(write_report(run_dir)).text
    details["budget"]["convention"] = "macs"
    write_json(run_dir.file("derive.json"), details)
    assert "within the budget" in parse_page(write_report(run_dir)).text


def test_top5_is_left_out_below_six_classes(make_run, parse_page):
    run_dir = make_run("evaluate")
    write_json(run_dir.file("evaluation.json"), {"split": "test", "images": 20, "top1": 0.5, "top5": None, "loss": 1.0})
    text = parse_page(write_report(run_dir)).text
    assert "test top-1 50.00 %" in text and "top-5" not in text


def test_the_derived_cells_are_drawn(make_run, parse_page, texts):
    run_dir = make_run("search", "derive")
    page = parse_page(write_report(run_dir))
    for svg, cell_type in zip(page.svgs, CELL_TYPES, strict=False):
        assert svg.get("aria-label") == f"{cell_type} cell of found here"
        assert sorted(texts(svg, "operation")) == sorted(edge.operation for edge in run_dir.read_genotype().cell(cell_type).edges)


def test_what_was_dropped_is_told_edge_by_edge(make_run, parse_page):
    run_dir = make_run("search", "derive")
    details = read_json(run_dir.file("derive.json"))
    page = parse_page(write_report(run_dir))
    tables = [rows for rows in page.tables if rows[0] == ["edge", "keep probability", "kept", "dropped, and why"]]
    for rows, cell_type in zip(tables, CELL_TYPES, strict=True):
        described = details["cells"][cell_type]
        assert [row[0] for row in rows[1:]] == details["edges"]
        assert [row[1] for row in rows[1:]] == [f"{value:.3f}" for value in described["edge_keep_probability"]]
        for edge, row, probabilities in zip(details["edges"], rows[1:], described["operation_keep_probability"], strict=True):
            named = {name: f"{name}\xa0{value:.3f}" for name, value in zip(details["primitives"], probabilities, strict=True)}
            kept = [entry["operation"] for entry in described["kept"] if entry["edge"] == edge]
            lost = [entry["operation"] for entry in described["dropped"] if entry["edge"] == edge and entry["operation"]]
            assert all(named[name] in row[2] for name in kept) and all(named[name] in row[3] for name in lost)
            assert len(re.findall(r"\d\.\d{3}", row[2])) == len(kept) and len(re.findall(r"\d\.\d{3}", row[3])) == len(lost)
            assert ("the whole edge" in row[3]) == (not kept)
            for entry in described["dropped"]:
                assert entry["edge"] != edge or entry["reason"] in row[3]
        n_operations = sum(entry["operation"] is not None for entry in described["dropped"])
        assert n_operations + described["n_operations"] == 98  # what the heading says is all there is
        assert f"{described['n_operations']} of 98 operations kept, on {described['n_edges']} of 14 edges" in page.text
        for entry in described["restored"]:
            assert f"{entry['operation']} on {entry['edge']}" in page.text


def test_a_raised_threshold_is_a_prominent_warning(make_run, parse_page):
    run_dir = make_run("search", "derive", macs=400e6)
    details = read_json(run_dir.file("derive.json"))
    assert details["raised"] and details["warning"]
    page = parse_page(write_report(run_dir))
    part = section(page, "What was dropped, and why")
    assert part.startswith('<p class="warning" role="alert">') and details["warning"] in page.text
    rows = page.table("network")
    assert [row["macs"] for row in rows] == [f"{details[key]['macs']:,}" for key in ("cost", "mode_cost")]
    run_dir = make_run("search", "derive", name="roomy", macs=1e11)
    assert 'class="warning"' not in write_report(run_dir).read_text()


def test_keep_probabilities_are_those_of_the_history(make_run, parse_page):
    run_dir = make_run("search", "derive")
    history, genotype = run_dir.read_npz("search/posterior_history.npz"), run_dir.read_genotype()
    page = parse_page(write_report(run_dir))
    by_title = {svg.get("aria-label"): svg for svg in page.svgs}
    for cell_type in CELL_TYPES:
        last = history[f"{cell_type}_operation_keep_probability"][-1]
        shown = ["".join(text.itertext()) for text in by_title[f"{cell_type} cell: operations after epoch 6"].iter()]
        for row in last:
            for value in row:
                assert f"{value:.3f}" in shown
        frames = [rect for rect in by_title[f"{cell_type} cell: operations after epoch 6"].iter() if rect.get("fill") == "none"]
        assert len(frames) == len(genotype.cell(cell_type).edges)
        shown = ["".join(text.itertext()) for text in by_title[f"{cell_type} cell: edges"].iter()]
        assert {f"{value:.3f}" for value in history[f"{cell_type}_edge_keep_probability"][-1]} <= set(shown)
        shown = ["".join(text.itertext()) for text in by_title[f"{cell_type} cell: operations, mean over the edges"].iter()]
        means = zip(history["primitives"], last.mean(axis=0), strict=True)
        assert {f"{name} {mean:.4g}" for name, mean in means} <= set(shown) and "warm-up ends" in shown


def test_curves_end_with_the_numbers_of_the_metrics(make_run, parse_page):
    run_dir = make_run(*STAGES)
    page = parse_page(write_report(run_dir))
    search, train = run_dir.read_metrics("search")[-1], run_dir.read_metrics("train")[-1]
    for heading, expected in {
        "KL divergence and prior gap": (f"kl {search['kl']:.4g}", f"prior_gap {search['prior_gap']:.4g}"),
        "Learning curves of the search": (
            f"weights half {search['loss']:.4g}",
            f"architecture half {search['architecture_loss']:.4g}",
            f"weights half {search['accuracy']:.4g}",
            f"architecture half {search['architecture_accuracy']:.4g}",
        ),
        "Learning curves of the training": (
            f"training images {train['loss']:.4g}",
            f"held-out images {train['holdout_loss']:.4g}",
            f"training images {train['accuracy']:.4g}",
            f"held-out images {train['holdout_accuracy']:.4g}",
        ),
    }.items():
        for label in expected:
            assert f">{label}</text>" in section(page, heading)
        assert ("warm-up ends" in section(page, heading)) == ("training" not in heading)


def test_a_search_that_is_still_warming_up_says_so(make_run):
    run_dir = make_run("search")
    run_dir.write_metrics("search", run_dir.read_metrics("search")[:2])
    source = write_report(run_dir).read_text()
    assert "still in warm-up" in source and "warm-up ends" not in source


def test_tables_hold_the_numbers_of_the_files_and_no_others(make_run, parse_page):
    run_dir = make_run(*STAGES)
    page = parse_page(write_report(run_dir))
    details, manifest = read_json(run_dir.file("derive.json")), read_json(run_dir.file("export/manifest.json"))
    costs = page.table("network")
    assert costs[0] == {"network": "deployed network, as derived"} | {key: f"{value:,}" for key, value in details["cost"].items()}
    assert costs[-1] == {"network": "exported model", "params": "24,680", "macs": "1,357,911", "macs_ptflops": ""}
    assert page.table("format") == [
        {"format": "saved_model", "path": "saved_model/1", "bytes": "765,432", "sha256": "0123456789ab", "max_abs_diff": "0"}
        | {"top1_agreement": "1", "latency_ms": "4.25"},
        {"format": "onnx", "path": "model.onnx", "bytes": "234,567", "sha256": "fedcba987654", "max_abs_diff": "1.5e-06"}
        | {"top1_agreement": "0.9961", "latency_ms": "not measured"},
    ]
    assert {attributes.get("title") for tag, attributes in page.tags if tag == "code"} == {
        artifact["sha256"] for artifact in manifest["artifacts"]
    }
    shown = [cell for rows in page.tables if rows[0][0] in ("network", "format") for row in rows[1:] for cell in row]
    shown = {float(cell.replace(",", "")) for cell in shown if re.fullmatch(r"[\d,.e-]+", cell)}
    assert shown <= numbers_of(details) | numbers_of(manifest) and len(shown) >= 10


def test_what_looked_wrong_is_shown_by_epochs_and_at_the_end_in_a_box(make_run, parse_page):
    run_dir = make_run("search")
    page = parse_page(write_report(run_dir))
    rows = page.table("finding")
    assert [(row["finding"], row["epochs"]) for row in rows] == [("accuracy_fell", "3"), ("skip_connections", "3, 5-6")]
    assert rows[1]["when last seen"] == "75% of the operations" and rows[1]["what to change"] == "try a smaller search.kl_weight"
    part = section(page, "Diagnosis of the search")
    assert re.findall(r'<p class="finding"><b>(.*?)</b>: (.*?)</p>', part) == [
        ("skip_connections", "75% of the operations; try a smaller search.kl_weight.")
    ]
    write_json(
        run_dir.file("search/diagnosis.json"), {"epochs": 7, "findings": read_json(run_dir.file("search/diagnosis.json"))["findings"]}
    )
    assert "Nothing of this was left after epoch 7." in section(parse_page(write_report(run_dir)), "Diagnosis of the search")
    write_json(run_dir.file("search/diagnosis.json"), {"epochs": 6, "findings": []})
    part = section(parse_page(write_report(run_dir)), "Diagnosis of the search")
    assert "Nothing was found in 6 epochs." in part and 'class="finding"' not in part
    run_dir.file("search/diagnosis.json").unlink()  # as of an earlier version
    assert "this search left no diagnosis" in section(parse_page(write_report(run_dir)), "Diagnosis of the search")


def test_the_uncertainty_is_drawn_over_the_epochs_and_listed_by_edge(make_run, parse_page):
    run_dir = make_run("search", "derive")
    page = parse_page(write_report(run_dir))
    part = section(page, "Uncertainty of the posterior")
    details = read_json(run_dir.file("derive.json"))["uncertainty"]
    rows = page.table("edge, entropy in nats")
    assert [row["edge, entropy in nats"] for row in rows] == list(get_search_space("darts").edge_names)
    for cell_type in CELL_TYPES:
        assert [row[f"{cell_type} cell"] for row in rows] == [f"{value:.4g}" for value in details["edge_entropy"][cell_type]]
    interval = details["macs_interval"]
    assert f"90 % of 200 draws between {interval['low']:,.0f} and {interval['high']:,.0f}" in part
    assert f"{details['expected_macs']:,.0f} multiply-adds, standard deviation {details['macs_std']:,.0f}" in part
    assert f"expected: {details['expected_operations']:.4g} operations on {details['expected_edges']:.4g} edges" in part
    assert part.count("<svg") == 4 and "mean over the edges 2.25" in part and "warm-up ends" in part
    for record in (records := run_dir.read_metrics("search")):
        del record["mean_entropy"], record["macs_low"]
    run_dir.write_metrics("search", records)
    part = section(parse_page(write_report(run_dir)), "Uncertainty of the posterior")
    assert part.count("<svg") == 3 and re.findall(r"<title>(\d+) % of draws", part) == ["95"]


def test_the_configuration_is_shown_folded_and_whole(make_run, parse_page):
    run_dir = make_run()
    page = parse_page(write_report(run_dir))
    part = section(page, "Configuration")
    assert part.startswith("<details><summary>config.json</summary><pre>")
    shown = page.text[page.text.index("{") : page.text.rindex("}") + 1]
    assert json.loads(shown) == read_json(run_dir.file("config.json"))


@pytest.mark.parametrize("count", range(len(STAGES) + 1))
def test_a_run_is_reported_stage_by_stage(make_run, parse_page, count):
    run_dir = make_run(*STAGES[:count])
    page = parse_page(write_report(run_dir))
    states = {row["stage"]: row["state"] for row in page.table("stage")}
    assert [stage for stage in STAGES if states[stage] == "not run"] == list(STAGES[count:])
    if not count:
        assert "There is nothing to report yet" in page.text and "<h1>Run run</h1>" in page.source
        assert not page.svgs
        return
    absent = {stage: f"not run: {stage}" in page.text for stage in ("search", "derive", "train", "export")}
    assert absent == {stage: stage in STAGES[count:] for stage in absent}
    assert ("test accuracy: not run" in page.text) == (count < 4)
    assert ("A frame marks" in page.text) == (count > 1)


@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
def test_any_stage_alone_is_reported(make_run, parse_page, stage):
    states = {row["stage"]: row["state"] for row in parse_page(write_report(make_run(stage))).table("stage")}
    assert [name for name in STAGES if states[name] != "not run"] == [stage]


def test_a_given_genotype_needs_no_derivation(make_run, parse_page):
    run_dir = make_run("train")
    run_dir.write_genotype(registry.load("DCO_EDGE_BS_64"))
    page = parse_page(write_report(run_dir))
    assert "<h1>DCO_EDGE_BS_64</h1>" in page.source
    assert {row["stage"]: row["state"] for row in page.table("stage")}["derive"] == "not run: the genotype was given"
    assert "not run: derive" in section(page, "What was dropped, and why") and "not run: derive" in section(page, "Cost")


def test_an_interrupted_search_is_not_called_finished(make_run, parse_page):
    run_dir = make_run("search")
    run_dir.file("search/posterior.npz").unlink()
    assert parse_page(write_report(run_dir)).table("stage")[0]["state"] == "not finished: 6 of 50 epochs"
    other = make_run(name="begun")
    other.begin("search", {})
    run_dir.write_genotype(registry.load("DARTS_V2"))
    assert "Run begun" in parse_page(write_report(other)).text
    assert parse_page(write_report(other)).table("stage")[0]["state"] == "not finished: 0 of 50 epochs"


def test_a_history_without_an_epoch_is_no_history(make_run, parse_page):
    run_dir = make_run("search")
    history = run_dir.read_npz("search/posterior_history.npz")
    run_dir.begin("train", {})
    empty = {key: value if key in ("edges", "primitives") else value[:0] for key, value in history.items()}
    run_dir.write_npz("search/posterior_history.npz", empty)
    page = parse_page(write_report(run_dir))
    assert "not run: search" in section(page, "Keep probabilities")  # the fixture leaves no record of having begun
    assert "train has not written this yet" in section(page, "Learning curves of the training")


def test_the_same_files_give_the_same_bytes(make_run):
    run_dir = make_run(*STAGES)
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first
    assert sorted(path.name for path in run_dir.path.iterdir() if path.name.startswith(".")) == []  # no temporary file stays


def hostile_strings(value):
    """JSON types with every string made hostile."""
    if isinstance(value, dict):
        return {key: hostile_strings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile_strings(item) for item in value]
    return f"{HOSTILE}\"'&\x07\ud800{value}" if isinstance(value, str) else value


def test_hostile_names_are_escaped_everywhere(make_run, parse_page, make_genotype):
    run_dir = make_run(*STAGES, name="<b onclick=x>")
    for name in ("config.json", "derive.json", "evaluation.json", "export/manifest.json", "search/diagnosis.json"):
        write_json(run_dir.file(name), hostile_strings(read_json(run_dir.file(name))))
    details = read_json(run_dir.file("derive.json"))
    write_json(run_dir.file("derive.json"), details | {"warning": HOSTILE})
    history = run_dir.read_npz("search/posterior_history.npz")
    for key in ("edges", "primitives"):
        history[key] = np.array([f"{HOSTILE}{name}" for name in history[key]])
    run_dir.write_npz("search/posterior_history.npz", history)
    edges = [(0, 2, "skip_connect")]
    run_dir.write_genotype(make_genotype((edges, [2]), (edges, [2]), name=HOSTILE))
    page = parse_page(write_report(run_dir))  # every drawing is XML, every tag is closed
    assert "<script" not in page.source and page.text.count(HOSTILE) > 50
    assert not {tag for tag, _ in page.tags} & {"script", "b onclick=x"}
    run_dir.file("genotype.json").unlink()
    assert "<b onclick" not in write_report(run_dir).read_text()


def drop_fields(value, depth):
    """Every variant of JSON types with one field (at most `depth` levels down) absent, null, or of another type."""
    for key in value:
        rest = {name: item for name, item in value.items() if name != key}
        yield rest
        for other in (None, 7, "text", [], {}, [1], [[]], {"edge": ["x"]}, 10**400):
            yield {**rest, key: other}
        if depth and isinstance(value[key], dict):
            yield from ({**rest, key: variant} for variant in drop_fields(value[key], depth - 1))


@pytest.mark.parametrize(("name", "depth"), [("derive.json", 1), ("evaluation.json", 0), ("search/diagnosis.json", 1)])
def test_a_file_of_another_version_is_shown_as_far_as_it_goes(make_run, parse_page, name, depth):
    run_dir = make_run("search", "derive", "evaluate")
    for drawn in ("search/posterior_history.npz", "search/metrics.jsonl", "genotype.json"):  # smaller pages, a quicker test
        run_dir.file(drawn).unlink()
    for variant in drop_fields(read_json(run_dir.file(name)), depth):
        write_json(run_dir.file(name), variant)
        assert parse_page(write_report(run_dir)).table("stage")


def test_metrics_that_lack_values_are_shown_as_far_as_they_go(make_run, parse_page):
    run_dir = make_run("search", "train")
    run_dir.write_metrics("search", [{"epoch": 1}, {}, {"epoch": "x", "loss": []}, {"epoch": 3, "loss": 0.5, "frozen": "no"}])
    run_dir.write_metrics("train", [{}])
    page = parse_page(write_report(run_dir))
    assert "weights half 0.5" in page.text and "no finite value" in section(page, "Learning curves of the training")


def test_without_a_configuration_there_is_nothing_to_report(tmp_path):
    run_dir = RunDir(tmp_path)
    with pytest.raises(RunDirError, match=r"^there is nothing to report\. Expected .*config\.json\. Received: .*, which has none$"):
        write_report(run_dir)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[1]"),
        ("config.json", "{"),
        ("derive.json", '"text"'),
        ("search/metrics.jsonl", "[1]\n"),
        ("search/diagnosis.json", "[]"),
        ("search/metrics.jsonl", "{\n"),
        ("train/metrics.jsonl", "null\n"),
        ("evaluation.json", "3"),
        ("export/manifest.json", "{}"),
        ("export/manifest.json", '{"artifacts": [1]}'),
        ("search/posterior_history.npz", "not an archive"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(make_run, name, content):
    run_dir = make_run(*STAGES)
    run_dir.file(name).write_text(content)
    with pytest.raises(RunDirError, match=re.escape(name)) as raised:
        write_report(run_dir)
    assert "\n" not in str(raised.value)
    assert not run_dir.file("report.html").exists()


def test_a_refused_genotype_is_named(make_run):
    run_dir = make_run("search", "derive")
    run_dir.file("genotype.json").write_text("{}")
    with pytest.raises(GenotypeError, match=r"genotype\.json"):
        write_report(run_dir)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("epoch", None),
        ("normal_operation_keep_probability", lambda value: value[:, :, :-1]),
        ("reduction_edge_keep_probability", lambda value: value[:-1]),
        ("edges", lambda value: value[:0]),
        ("primitives", lambda value: np.arange(len(value))),
        ("normal_edge_keep_probability", lambda value: value.astype(str)),
        ("epoch", lambda value: value[0]),
    ],
)
def test_a_history_with_other_axes_is_refused(make_run, key, change):
    run_dir = make_run("search")
    history = run_dir.read_npz("search/posterior_history.npz")
    value = history.pop(key)
    if change:
        history[key] = change(value)
    run_dir.write_npz("search/posterior_history.npz", history)
    with pytest.raises(RunDirError, match=r"posterior_history\.npz"):
        write_report(run_dir)


def test_the_report_imports_no_tensorflow():
    code = "import sys, sivdnas_tf.report.page; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
