"""NAS-Bench-201's space through the command line, on digits: the string, the same every time, by every method; then a whole run."""

import json

import pytest

from sivdnas_tf.genotype import Genotype
from sivdnas_tf.methods.registry import METHODS
from sivdnas_tf.run_dir import RunDir, read_json

SMALL = {
    "data.name": "digits",
    "data.flip": False,
    "data.crop_padding": 1,
    "data.holdout_fraction": 0.1,
    "search.channels": 2,
    "search.epochs": 2,
    "search.warmup_epochs": 1,
    "search.steps_per_epoch": 2,
    "search.batch_size": 8,
    "search.architecture_learning_rate": 0.1,
    "budget.macs": 205e3,  # every cell meets it, and the prior counts at first
    "budget.channels": 4,
    "budget.cells": 3,
    "budget.resolution": 8,
    "budget.image_channels": 1,
    "train.channels": 4,
    "train.cells": 3,
    "train.epochs": 1,
    "train.batch_size": 64,
}


@pytest.fixture(name="flags", scope="module")
def fixture_flags(request):
    config = request.config.rootpath / "configs" / "nasbench201_cifar10.py"
    return [f"--config={config}", *(f"--config.{field}={value}" for field, value in SMALL.items())]


def strings(out):
    return [line.removeprefix("derive: ") for line in out.splitlines() if line.startswith("derive: |")]


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in ("si_vdnas", "random") else pytest.mark.slow) for name in METHODS]
)
def test_every_method_prints_a_string_the_same_every_time(method, call, flags, tmp_path):
    found = []
    for number in range(2):
        workdir = f"--workdir={tmp_path / str(number)}"
        code, _, err = call("search", *flags, workdir, f"--config.search.method={method}", "--config.seed=3")
        assert (code, err) == (0, "")
        code, out, _ = call("derive", workdir)
        assert code == 0
        found += strings(out)
    assert len(found) == 2 and found[0] == found[1]
    genotype = Genotype.from_architecture_string(found[0])
    data = json.loads((tmp_path / "0" / "genotype.json").read_text())
    assert data["search_space"] == "nasbench201" and data["architecture_string"] == found[0]
    assert RunDir(tmp_path / "0").read_genotype().normal == genotype.normal
    assert not any("reduction" in key for key in RunDir(tmp_path / "0").read_npz("search/posterior.npz"))


@pytest.mark.slow
def test_a_whole_run_ends_in_artifacts_that_agree(call, flags, tmp_path):
    workdir = f"--workdir={tmp_path}"
    code, out, err = call("run", *flags, workdir)
    assert (code, err) == (0, ""), err
    (string,) = strings(out)
    manifest, derivation = read_json(tmp_path / "export" / "manifest.json"), read_json(tmp_path / "derive.json")
    assert manifest["model"]["network"] == "nasbench201" and manifest["model"]["macs"] == derivation["cost"]["macs"]
    assert {artifact["format"] for artifact in manifest["artifacts"]} >= {"saved_model", "onnx", "tflite"}
    report = (tmp_path / "report.html").read_text()
    assert string in report and "Normal cell" in report and "Reduction cell" not in report
    code, out, _ = call("derive", workdir, "--rule=best_of", "--overwrite")
    assert code == 0 and len(strings(out)) == 1
    entries = read_json(tmp_path / "derive.json")["candidates"]
    scores = [entry["score"] for entry in entries if entry["score"] is not None]
    assert max(scores) >= entries[0]["score"]


def test_profile_reads_the_string(call):
    code, out, _ = call(
        "profile",
        "--genotype=|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|",
        "--network=nasbench201",
        "--json",
    )
    row = json.loads(out)
    assert code == 0 and (row["channels"], row["cells"], row["classes"], row["resolution"]) == (16, 15, 10, 32)
    assert row["within_budget"] and row["params"] == 559_386


def test_the_profiler_reads_the_string_too(call):
    string = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
    size = ("--channels=2", "--cells=3", "--classes=3", "--resolution=8")
    code, out, _ = call("profile", f"--genotype={string}", "--network=nasbench201", *size, "--tf_profiler")
    assert code == 0 and "by the shapes of the network" in out and out.count(": equal") == 1
