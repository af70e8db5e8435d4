"""`profile` through the command line: what fits, where the multiply-adds are, TensorFlow's profiler, latency, any Keras model."""

import json
import re
import xml.etree.ElementTree as ElementTree

import keras
import pytest

from sivdnas_tf.config import BudgetConfig
from sivdnas_tf.profiling import costs
from sivdnas_tf.zoo import registry

SIZE = {"channels": 4, "cells": 3, "classes": 3, "resolution": 8}
SMALL = ["profile", "--genotype=PDARTS", "--network=cifar", *(f"--{name}={value}" for name, value in SIZE.items())]


@pytest.fixture(name="keras_file", scope="module")
def fixture_keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    images = keras.Input((None, None, 3))
    hidden = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, padding="same")(images))
    keras.Model(images, keras.layers.Dense(2)(hidden), name="small").save(path)
    return path


def rows(call, *arguments):
    code, out, err = call(*arguments, "--json")
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("multiple", [2, 4, 8, 16])
@pytest.mark.parametrize("convention", costs.CONVENTIONS)
def test_fit_finds_the_widest_multiple(call, multiple, convention):
    flags = ("--network=imagenet", "--fit", f"--multiple_of={multiple}", f"--convention={convention}")
    for row in rows(call, "profile", "--genotype=PDARTS,FairDARTS_a", *flags):
        genotype, widest = registry.load(row["name"]), row["fit_channels"]
        size = {name: row[name] for name in ("network", "cells", "classes", "resolution")}

        def cost(channels, genotype=genotype, size=size):
            return costs.cost_in(costs.network_cost(genotype, channels=channels, **size), convention)

        assert widest % multiple == 0 and cost(widest) <= 600e6 < cost(widest + multiple)


def test_fit_cells_finds_the_deepest(call):
    (row,) = rows(call, "profile", "--genotype=FairDARTS_a", "--network=imagenet", "--fit_cells")
    macs = [
        costs.network_cost(registry.load("FairDARTS_a"), network="imagenet", channels=48, cells=cells, classes=1000, resolution=224).macs
        for cells in (row["fit_cells"], row["fit_cells"] + 1)
    ]
    assert row["fit_cells"] > 14 and macs[0] <= 600e6 < macs[1]


def test_what_cannot_fit_says_so(call):
    (row,) = rows(call, *SMALL, "--fit", "--fit_cells", "--budget_macs=10")
    assert (row["fit_channels"], row["fit_cells"], row["within_budget"]) == (None, None, False)
    code, out, _ = call(*SMALL, "--fit", "--budget_macs=10")
    assert code == 0 and out.splitlines()[-1].endswith("no                        none")


def test_parameters_can_be_limited(call):
    (row,) = rows(call, *SMALL)
    assert row["within_budget"]
    for limit, within in ((row["params"], True), (row["params"] - 1, False)):
        (limited,) = rows(call, *SMALL, f"--budget_params={limit}", "--fit", "--multiple_of=2")
        assert limited["within_budget"] == within and limited["fit_channels"] == (4 if within else 2)


def test_the_table_adds_up_to_the_network(call):
    code, out, _ = call(*SMALL, "--table")
    assert code == 0
    lines = [re.fullmatch(r"(.+?)  +(\S.*?)  +(\d+)  +([\d,]+)  +([\d,]+)(  #+)?", line) for line in out.splitlines()[5:]]
    assert all(lines)
    params, macs = (sum(int(line[group].replace(",", "")) for line in lines) for group in (4, 5))
    cost = costs.network_cost(registry.load("PDARTS"), network="cifar", **SIZE)
    assert (params, macs) == (cost.params, cost.macs)
    assert {line[1] for line in lines} == {"stem", "cell 0 normal", "cell 1 reduction", "cell 2 reduction", "classifier"}
    longest = max(lines, key=lambda line: int(line[5].replace(",", "")))
    assert longest[6].strip() == "#" * 40


def test_the_picture_holds_every_place_and_its_macs(call, tmp_path):
    path = tmp_path / "macs.svg"
    code, _, _ = call(*SMALL, f"--picture={path}")
    assert code == 0
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    words = {node.text for node in root.iter() if node.tag.endswith("text")}
    parts = costs.network_parts(registry.load("PDARTS"), network="cifar", **SIZE)
    for place in {place for place, _, _ in parts}:
        assert place in words
        assert f"{sum(cost.macs for other, _, cost in parts if other == place):,}" in words
    tips = [node.text for node in root.iter() if node.tag.endswith("title") and "macs" in (node.text or "")]
    total = sum(int(tip.rpartition(": ")[2].removesuffix(" macs").replace(",", "")) for tip in tips if tip.endswith("macs"))
    assert total == sum(cost.macs for _, _, cost in parts)


def test_the_profiler_reconciles_and_says_so(call):
    (row,) = rows(call, *SMALL, "--tf_profiler")
    code, out, _ = call(*SMALL, "--tf_profiler")
    assert code == 0
    assert f"2 x {row['macs']:,} macs, by the shapes of the network, are {2 * row['macs']:,}: equal" in out.splitlines()
    assert f"{row['float_ops']:,}" in next(line for line in out.splitlines() if line.startswith("total"))
    assert row["float_ops_corrected"] <= row["float_ops"] and row["float_ops"] > 2 * row["macs"]


def test_latency_is_of_every_runtime(call):
    (row,) = rows(call, *SMALL, "--latency")
    assert [each["runtime"] for each in row["latency"]] == ["keras", "tflite_1", "tflite_all", "onnxruntime"]
    assert row["latency"][1]["threads"] == 1
    for each in row["latency"]:
        assert 0 < each["p50_ms"] <= each["p90_ms"] <= each["p99_ms"] and each["runs"] == 30


def test_any_keras_model_is_priced(call, keras_file):
    (row,) = rows(call, "profile", f"--model={keras_file}", "--resolution=8", "--tf_profiler", "--latency", "--budget_params=121")
    assert row["name"] == "small" and row["network"] is None and row["macs_ptflops"] is None
    assert (row["params"], row["macs"]) == (9 * 3 * 4 + 4 + 4 * 2 + 2, 64 * 9 * 3 * 4 + 8)
    assert row["float_ops"] > 2 * row["macs"] and len(row["latency"]) == 4
    assert not row["within_budget"]  # 122 parameters
    code, out, _ = call("profile", f"--model={keras_file}", "--resolution=8")
    assert code == 0 and out == "small: 122 params, 6,920 macs; within budget: yes\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["profile"], "profile needs --genotype or --model, one of them."),
        (
            ["profile", "--genotype=PDARTS", "--model=x.keras", "--network=cifar"],
            "one of them. Received: --genotype=PDARTS --model=x.keras",
        ),
        (["profile", "--model=x.keras", "--network=cifar", "--fit"], "--network, --fit belong to --genotype. Received: --model=x.keras"),
        (["profile", "--model=x.keras"], "a Keras model must be a readable .keras file"),
        (["profile", "--model=x.keras", "--convention=macs_ptflops"], "priced in macs only. Received: convention='macs_ptflops'"),
        ([*SMALL, "--multiple_of=3"], "value should be one of <2|4|8|16>"),
        ([*SMALL, "--budget_params=-1"], "config.budget.params must be at least 0.0. Received: -1.0"),
        (["profile", "--genotype=PDARTS,DARTS_V2", "--network=cifar", "--picture=x.svg"], "--picture is of one genotype. Received: 2"),
    ],
)
def test_what_profile_does_not_take(refusal, arguments, expected):
    assert expected in refusal(*arguments)


def test_a_model_of_open_size_is_refused_without_a_resolution(refusal, keras_file):
    assert "leaves the size of its input open: give --resolution" in refusal("profile", f"--model={keras_file}")


def test_the_budget_of_a_run_holds_its_parameters():
    genotype, budget = registry.load("PDARTS"), BudgetConfig(network="cifar", **SIZE, image_channels=3)
    params = costs.deployed_cost(genotype, budget).params
    assert costs.check_budget(genotype, BudgetConfig(network="cifar", **SIZE, params=float(params)))
    with pytest.raises(costs.BudgetError, match=rf"Expected at most 600,000,000 macs and {params - 1:,} params; .* {params:,} params at"):
        costs.check_budget(genotype, BudgetConfig(network="cifar", **SIZE, params=params - 1.0))
